"""The picture of docs/known_circuits.md: what every method makes of parts and of idle parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
import xarray as xr

import assay
from assay.activations.circuits.graph import graph_of
from assay.models.model import Model
from assay.report.theme import config
from assay.zoo import copier, induction
from assay.zoo.decoder import Pairs

PAIRS = 12
FLOOR = 1e-7
"""What is less is drawn here, zeros too."""
EDGE_METHODS = {
    "eap": "edges: EAP",
    "eap_ig": "edges: EAP-IG",
    "eap_qk_fix": "edges: EAP, QK fix",
    "eap_star": "edges: EAP, both fixes",
}
NODE_METHODS = {"atp": "AtP", "qk_fix": "AtP, QK fix", "grad_drop": "AtP, GradDrop", "atp_star": "AtP*"}


@dataclass(frozen=True)
class Material:
    """A model, pairs of prompts, and the truth.

    Attributes:
        model: the model.
        pairs: of prompts.
        heads: of the circuit.
        edges: of the circuit.
    """

    model: Model
    pairs: Pairs
    heads: frozenset[str]
    edges: frozenset[str]

    def ask(self, verb: Callable[..., assay.Result], **settings: Any) -> xr.Dataset:
        """Ask a verb about all pairs."""
        pairs = self.pairs
        given = {"answer": pairs.answers, "foil": pairs.foils, **settings}
        return verb(self.model, pairs.clean, pairs.corrupted, **given).dataset


def material() -> dict[str, Material]:
    """Both models; of the trained one, the truth that the tests find by taking out one part at a time."""
    written, trained = (assay.load(f"zoo:{name}") for name in ("copier", "induction"))
    config, generator = written.module.config, torch.Generator().manual_seed(7)
    edges = {"embed>v.0.1", "head.0.1>k.1.0", "head.0.1>k.1.1", "head.1.0>logits", "head.1.1>logits"}
    return {
        "written down": Material(
            written,
            copier.swapped(config, PAIRS, generator=generator),  # type: ignore[arg-type]
            frozenset(copier.CIRCUIT),
            frozenset(copier.EDGES),
        ),
        "trained": Material(
            trained,
            induction.swapped(PAIRS, generator=generator),
            frozenset({"head.0.1", "head.1.0", "head.1.1"}),
            frozenset(edges),
        ),
    }


def sizes(given: Material) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What is scored (heads or edges), by which method, and the size of each score."""
    heads = [
        f"head.{layer}.{head}" for layer in range(2) for head in range(given.model.parts.blocks[0].n_heads)
    ]

    def of_heads(values: xr.DataArray) -> dict[str, float]:
        return dict(zip(heads, np.abs(values).max("position").values.ravel(), strict=True))

    def of_edges(values: xr.DataArray) -> dict[str, float]:
        table = np.abs(values).stack(edge_=("sender", "receiver")).to_series().dropna()
        return {f"{sender}>{receiver}": float(size) for (sender, receiver), size in table.items()}

    texts = [[*row, answer] for row, answer in zip(given.pairs.clean, given.pairs.answers, strict=True)]
    for value in ("zero", "mean"):
        effect = assay.ablate(given.model, texts, value=value, components=("heads",)).dataset["effect"]
        table = np.abs(effect.sel(metric="loss_difference")).to_series()
        yield "heads", f"ablation, {value}", {str(name): float(size) for name, size in table.items()}
    for direction in ("denoise", "noise"):
        patched = given.ask(
            assay.patch,
            site="z",
            by_head=True,
            metrics=("logit_difference",),
            direction=direction,
            baseline_pairs=0,
        )
        yield "heads", f"patching, {direction}", of_heads(patched["effect"][0])
    for method, name in NODE_METHODS.items():
        found = given.ask(
            assay.attribution_patch, method=method, sites=("z",), exact=0, baseline=False, direction="noise"
        )
        yield "heads", name, of_heads(found["attribution_z"])
    receivers = tuple(receiver.name for receiver in graph_of(given.model).receivers)
    paths = given.ask(
        assay.path_patch, senders=("embed", "heads", "mlps"), receivers=receivers, baseline=False
    )
    yield "edges", "edges: path patching", of_edges(paths["effect"])
    for method, name in EDGE_METHODS.items():
        found = given.ask(assay.attribution_patch, method=method, exact=0, baseline=False)
        yield "edges", name, of_edges(found["score"])


def frame() -> pd.DataFrame:
    """One row for each score: by which method, on which model, and whether the part is of the circuit."""
    rows: list[dict[str, object]] = []
    for name, given in material().items():
        for level, method, found in sizes(given):
            true, most = (given.heads if level == "heads" else given.edges), max(found.values())
            rows += [
                {
                    "model": name,
                    "level": level,
                    "method": method,
                    "part": part,
                    "share": max(size / most, FLOOR),
                    "kind": "of the circuit" if part in true else "not",
                }
                for part, size in found.items()
            ]
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """By model and method: how many of the circuit's parts rank first, the least of these, the most of the others."""
    found = []
    for (level, method, model), own in rows.groupby(["level", "method", "model"], sort=False):
        ordered = own.sort_values("share", ascending=False)
        true = ordered["kind"] == "of the circuit"
        found.append(
            {
                "level": level,
                "method": method,
                "model": model,
                "first": f"{int(true.iloc[: int(true.sum())].sum())} of {int(true.sum())}",
                "least of the circuit": float(ordered[true]["share"].min()),
                "most of the others": float(ordered[~true]["share"].max()),
            }
        )
    return pd.DataFrame(found)


def known_circuits(rows: pd.DataFrame | None = None) -> alt.HConcatChart:
    """Every score of every method on both models, as a share of its largest."""
    rows = frame() if rows is None else rows
    methods = list(dict.fromkeys(rows["method"]))
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=["of the circuit", "not"], range=["#c0392b", "#9aa5b1"]),
        legend=alt.Legend(orient="top"),
    )
    panels = []
    for model in dict.fromkeys(rows["model"]):
        first = not panels
        panels.append(
            alt.Chart(rows[rows["model"] == model], width=300, height=alt.Step(20), title=model.capitalize())
            .mark_tick(thickness=2, height=13)
            .encode(
                x=alt.X(
                    "share:Q",
                    title="score, as a share of the largest",
                    scale=alt.Scale(type="log", domain=[FLOOR, 1]),
                    axis=alt.Axis(format="~g", values=[1e-7, 1e-5, 1e-3, 0.1, 1]),
                ),
                y=alt.Y(
                    "method:N",
                    sort=methods,
                    title=None,
                    axis=alt.Axis(labels=first, ticks=first, labelLimit=200),
                ),
                color=colour,
                order=alt.Order("kind:N", sort="ascending"),
            )
        )
    return alt.hconcat(*panels).configure(**config("light"))
