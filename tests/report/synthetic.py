"""Datasets with the shape of real ones, made from a seed: charts and page are tested without a model."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

PASSAGE = (
    "Mr", " and", " Mrs", " D", "urs", "ley", " lived", " at", " number", " four", ".", " Nobody", " liked",
    " the", " D", "urs", "ley", "s",
)  # fmt: skip
SUBJECT = (3, 4, 5)
HOSTILE = (
    "</script><script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>",
    "\"'`${1}", "\\u0041\\",
    "\x00\x1b\n\t", "\u202egnp.exe", "\u2066x\u2069", "👩‍👩‍👧", "\u0301", "=1+1", "&lt;", "\u2028", "x" * 300,
)  # fmt: skip


def lens(tokens: Sequence[str] = PASSAGE, n_layers: int = 6, top_k: int = 5, seed: int = 0) -> xr.Dataset:
    """A lens that learns the next token with depth: rank 0 from a random layer on, for most positions."""
    rng = np.random.default_rng(seed)
    n_rows, n_positions = n_layers + 1, len(tokens)
    depth = np.linspace(0.0, 1.0, n_rows)[:, None]
    arrival = np.where(rng.uniform(size=n_positions) < 0.2, 2.5, rng.uniform(0.3, 1.2, n_positions))[None, :]
    sure = 1 / (1 + np.exp(-8 * (depth - arrival)))
    top = sure[..., None] * 0.7 ** np.arange(top_k) * 0.3 + 0.01 * rng.uniform(
        0.5, 1, (n_rows, n_positions, top_k)
    )
    top[..., 0] = 0.02 + 0.9 * sure
    top = -np.sort(-top, axis=-1)
    target_rank = np.where(sure > 0.5, 0, (1 + 20000 * (1 - sure) ** 6).astype(np.int64))
    target = np.log(0.9 * sure + 1e-5)
    target_rank[:, -1], target[:, -1] = -1, np.nan
    words = np.array([*tokens, *HOSTILE[-2:], " the", " a", " night"], dtype=object)
    top_token = rng.integers(0, len(words), (n_rows, n_positions, top_k))
    following = [*tokens[1:], ""]
    top_text = words[top_token]
    top_text[..., 0] = np.where(target_rank == 0, np.array(following, dtype=object), top_text[..., 0])
    sites = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(n_layers))]
    grid = ("layer", "position")
    return xr.Dataset(
        {
            "top_token": ((*grid, "rank"), top_token),
            "top_token_text": ((*grid, "rank"), top_text.astype(str)),
            "top_probability": ((*grid, "rank"), top),
            "entropy": (grid, 10 * (1 - sure) + rng.uniform(0, 0.3, sure.shape)),
            "kl_to_final": (grid, np.maximum(sure[-1] - sure, 0) * 12),
            "target_rank": (grid, target_rank),
            "target_log_probability": (grid, target),
        },
        coords={
            "layer": np.arange(n_rows),
            "site": ("layer", sites),
            "position": np.arange(n_positions),
            "token": ("position", list(tokens)),
            "next_token": ("position", following),
        },
        attrs={"model": "synthetic", "stream": "resid"},
    )


def trace(
    tokens: Sequence[str] = PASSAGE, n_layers: int = 6, subject: Sequence[int] = SUBJECT, seed: int = 1
) -> xr.Dataset:
    """A trace whose effect sits early on the last subject token and late on the last token."""
    rng = np.random.default_rng(seed)
    kinds, n_positions = ("state", "mlp", "attn"), len(tokens)
    depth = np.linspace(0, 1, n_layers)
    effect = np.zeros((3, n_layers, n_positions))
    for position in subject:
        effect[0, :, position] += 0.5 * (1 - depth) * (0.4 + 0.6 * (position == max(subject)))
        effect[1, :, position] += 0.3 * np.exp(-(((depth - 0.3) / 0.2) ** 2))
    effect[0, :, -1] += 0.55 * depth**2
    effect[2, :, -1] += 0.3 * np.exp(-(((depth - 0.7) / 0.2) ** 2))
    effect += 0.01 * rng.standard_normal(effect.shape)
    effect[:, :, : min(subject)] = 0.0
    stderr = 0.01 + 0.1 * np.abs(effect)
    grid, clean, corrupted = ("kind", "layer", "position"), 0.62, 0.05
    logs = np.log(np.maximum(corrupted + effect, 1e-4))
    is_subject = np.isin(np.arange(n_positions), subject)
    return xr.Dataset(
        {
            "p_clean": clean,
            "p_corrupted": corrupted,
            "p_corrupted_stderr": 0.01,
            "p_restored": (grid, corrupted + effect),
            "p_restored_stderr": (grid, stderr),
            "indirect_effect": (grid, effect),
            "indirect_effect_stderr": (grid, stderr),
            "indirect_effect_low": (grid, effect - 1.96 * stderr),
            "indirect_effect_high": (grid, effect + 1.96 * stderr),
            "total_effect": clean - corrupted,
            "total_effect_stderr": 0.01,
            "total_effect_low": 0.55,
            "total_effect_high": 0.59,
            "metric_corrupted": ("metric", [corrupted, np.log(corrupted)]),
            "metric_restored": (("metric", *grid), np.stack([corrupted + effect, logs])),
            "metric_effect": (("metric", *grid), np.stack([effect, logs - np.log(corrupted)])),
            "metric_effect_stderr": (("metric", *grid), np.stack([stderr, stderr / corrupted])),
            "p_corrupted_sample": ("sample", np.full(3, corrupted)),
            "baseline_indirect_effect": (grid, 1e-4 * rng.standard_normal(effect.shape)),
        },
        coords={
            "kind": list(kinds),
            "metric": ["probability", "log_probability"],
            "layer": np.arange(n_layers),
            "position": np.arange(n_positions),
            "token": ("position", list(tokens)),
            "is_subject": ("position", is_subject),
        },
        attrs={
            "answer": "s",
            "subject": "".join(tokens[position] for position in subject).strip(),
            "model": "synthetic",
            "window": 3,
        },
    )


def neurons(tokens: Sequence[str] = PASSAGE, n_layers: int = 6, seed: int = 2) -> xr.Dataset:
    """Importances over four decades, largest late and at the last token."""
    rng = np.random.default_rng(seed)
    n_positions, n_top, n_exact = len(tokens), 5, 8
    depth = np.linspace(-4, 0, n_layers)[:, None] + np.linspace(-1, 0, n_positions)[None, :]
    importance = 10 ** (depth - 2 + 0.3 * rng.standard_normal(depth.shape))
    shares = (
        rng.choice([-1, 1], (n_layers, n_positions, n_top))
        * importance[..., None]
        * 40
        * 0.7 ** np.arange(n_top)
    )
    grid = ("layer", "position")
    return xr.Dataset(
        {
            "importance": (grid, importance),
            "importance_max": (grid, importance * 40),
            "top_neuron": ((*grid, "rank"), rng.integers(0, 1536, shares.shape)),
            "top_attribution": ((*grid, "rank"), shares),
            "exact_layer": ("exact", rng.integers(0, n_layers, n_exact)),
            "exact_position": ("exact", rng.integers(0, n_positions, n_exact)),
            "exact_neuron": ("exact", rng.integers(0, 1536, n_exact)),
            "exact_effect": ("exact", rng.standard_normal(n_exact)),
            "exact_attribution": ("exact", rng.standard_normal(n_exact)),
            "rank_correlation": 0.8,
            "rank_correlation_low": 0.6,
            "rank_correlation_high": 0.9,
            "baseline_importance": (grid, importance * 1e-3),
        },
        coords={
            "layer": np.arange(n_layers),
            "position": np.arange(n_positions),
            "token": ("position", list(tokens)),
        },
        attrs={"metric": "log_probability", "answer": "s", "model": "synthetic"},
    )


def survey(
    tokens: Sequence[str] = PASSAGE, n_layers: int = 6, subject: Sequence[int] = SUBJECT
) -> xr.Dataset:
    """The three of one passage in one flat dataset, as `assay.activations.survey` makes it."""
    parts = {
        "lens": lens(tokens, n_layers),
        "trace": trace(tokens, n_layers, subject),
        "neurons": neurons(tokens, n_layers),
    }
    renamed = [
        part.rename({name: f"{prefix}.{name}" for name in {*part.variables, *part.dims}})
        for prefix, part in parts.items()
    ]
    attrs = {
        f"{prefix}.{name}": value for prefix, part in parts.items() for name, value in part.attrs.items()
    }
    return xr.merge(renamed, combine_attrs="drop").assign_attrs(attrs | {"model": "synthetic"})
