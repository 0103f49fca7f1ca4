"""Two circuits that are known, one written down and one trained: every method finds them and nothing else.

What is true is told by the weights, or by taking parts out one at a time in a pass written head by head
(:mod:`reference.known_slow`); no method of ours has a say in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import assay
from assay.activations.circuits.graph import find_edges, graph_of
from assay.errors import BadInput
from assay.models.model import Model
from assay.zoo import copier, induction
from assay.zoo.decoder import Decoder, Pairs
from reference.known_slow import answered, run

PART = 0.1
"""Parts move the metric by more than this share of the whole difference, all others by less: 95% intervals say so."""
IDLE = 1e-4
"""Idle parts move it by less than this share: float32 rounding, and what a price on heads leaves of them."""
PAIRS, ASKED = 24, 4
"""Pairs that truth is told by, and the first of them, which methods are asked about."""


@dataclass(frozen=True, eq=False)
class Known:
    """A model, pairs of prompts, and what is true of them.

    Attributes:
        model: with its tokenizer.
        pairs: of prompts.
        heads: the heads that make the prompts' difference.
        edges: the edges that carry it.
    """

    model: Model
    pairs: Pairs
    heads: frozenset[str]
    edges: frozenset[str]

    @property
    def decoder(self) -> Decoder:
        assert isinstance(self.model.module, Decoder)
        return self.model.module

    @property
    def asked(self) -> Pairs:
        pairs = self.pairs
        return Pairs(*(part[:ASKED] for part in (pairs.clean, pairs.corrupted, pairs.answers, pairs.foils)))

    def ask(self, verb: Any, **settings: Any) -> assay.Result:
        pairs = self.asked
        return verb(
            self.model, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, **settings
        )

    def ids(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.pairs.clean), torch.tensor(self.pairs.corrupted)

    def measured(self, logits: torch.Tensor) -> torch.Tensor:
        return answered(logits, self.pairs.answers, self.pairs.foils).double()


def interval(samples: torch.Tensor) -> tuple[float, float]:
    """Student's 95% interval of a mean."""
    half = 2.069 * float(samples.std()) / len(samples) ** 0.5  # 23 degrees of freedom
    return float(samples.mean()) - half, float(samples.mean()) + half


def clear(effects: dict[str, torch.Tensor], total: float) -> frozenset[str]:
    """The parts whose effect is large; every other has one that is small, or the truth would not be clear."""
    found = set()
    for name, samples in effects.items():
        low, high = interval(samples / total)
        assert not low <= PART <= high, name
        assert not low <= -PART <= high, name
        if low > PART:
            found.add(name)
    return frozenset(found)


@pytest.fixture(scope="module", params=["copier", "induction"])
def known(request: pytest.FixtureRequest) -> Known:
    model = assay.load(f"zoo:{request.param}")
    generator = torch.Generator().manual_seed(7)
    if isinstance(model.module, copier.Copier):
        pairs = copier.swapped(model.module.config, PAIRS, generator=generator)
        return Known(model, pairs, frozenset(copier.CIRCUIT), frozenset(copier.EDGES))
    pairs = induction.swapped(PAIRS, generator=generator)
    bare = Known(model, pairs, frozenset(), frozenset())
    return Known(model, pairs, parts_by_brute_force(bare), edges_by_brute_force(bare))


def parts_by_brute_force(known: Known) -> frozenset[str]:
    """Heads without which the answer is not told from the foil: one is left out at a time, in the clean run."""
    clean, _ = known.ids()
    whole = run(known.decoder, clean)
    total = float(known.measured(whole.logits).mean())
    heads = [name for name in whole.written if name.startswith("head")]
    without = {
        name: known.measured(
            run(known.decoder, clean, writes={name: torch.zeros_like(whole.written[name])}).logits
        )
        for name in heads
    }
    return clear({name: known.measured(whole.logits) - value for name, value in without.items()}, total)


def edge_effects(known: Known) -> dict[str, torch.Tensor]:
    """Exact effects of clean values on every edge of the corrupted run, one pass each: (pair,)."""
    clean, corrupted = known.ids()
    source, base = run(known.decoder, clean), run(known.decoder, corrupted)
    graph, start = graph_of(known.model), known.measured(base.logits)
    effects = {}
    for sender, stage in zip(graph.senders, graph.stages, strict=True):
        change = source.written[sender] - base.written[sender]
        for receiver in graph.receivers:
            if stage < receiver.stage:
                patched = run(known.decoder, corrupted, reads={receiver.name: change})
                effects[f"{sender}>{receiver.name}"] = known.measured(patched.logits) - start
    return effects


def edges_by_brute_force(known: Known) -> frozenset[str]:
    clean, corrupted = known.ids()
    ends = [known.measured(run(known.decoder, ids).logits) for ids in (clean, corrupted)]
    return clear(edge_effects(known), float((ends[0] - ends[1]).mean()))


def by_head(values: Any, heads: Sequence[str]) -> pd.Series:
    return pd.Series(np.abs(np.asarray(values)).ravel(), index=list(heads))


def names(model: Model) -> list[str]:
    return [f"head.{layer}.{head}" for layer in range(2) for head in range(model.parts.blocks[0].n_heads)]


def assert_found(sizes: pd.Series, true: frozenset[str], known: Known, *, scale: float | None = None) -> None:
    """The true ones rank first; what begins or ends at an idle head is nothing."""
    ranked = sizes.abs().sort_values(ascending=False)
    assert set(ranked.index[: len(true)]) == true
    idle = [name for name in ranked.index if touches_idle(str(name), known)]
    assert idle
    assert float(ranked[idle].max()) <= IDLE * (scale or float(ranked.max()))


def touches_idle(name: str, known: Known) -> bool:
    ends = [end for end in name.split(">") if end[0] in "hqkv"]
    return any("head." + end.partition(".")[2] not in known.heads for end in ends)


def test_the_pass_by_hand_is_the_model_s(known: Known) -> None:
    for ids in known.ids():
        logits = assay.capture(known.model, ids, "logits")["logits"][:, -1]
        torch.testing.assert_close(run(known.decoder, ids).logits, logits, rtol=0, atol=1e-4)
    assert len(known.heads) < len(names(known.model))


def test_it_copies(known: Known) -> None:
    clean, corrupted = known.ids()
    for ids, answers in ((clean, known.pairs.answers), (corrupted, known.pairs.foils)):
        assert run(known.decoder, ids).logits.argmax(-1).tolist() == answers


def test_patterns_show_what_the_heads_do(known: Known) -> None:
    """One head of the first block looks one token back, those of the second to what followed the present one."""
    if isinstance(known.decoder, copier.Copier):
        return  # known by its weights
    texts = induction.examples(100, generator=torch.Generator().manual_seed(1))
    seen = assay.capture(known.model, texts, ["pattern.0", "pattern.1"])
    back, forward = induction.looks_back(seen["pattern.0"]), induction.inducts(seen["pattern.1"], texts)
    first = {head for head in known.heads if head.startswith("head.0")}
    assert first == {f"head.0.{int(back.argmax())}"}
    second = {f"head.1.{head}" for head in forward.topk(len(known.heads) - 1).indices.tolist()}
    assert second == known.heads - first
    assert float(back.max()) > 0.5
    assert float(forward.topk(len(second)).values.min()) > 0.5


def test_previous_tokens_reach_keys(known: Known) -> None:
    """The circuit as it is told of induction heads: previous token to key, and value to logits."""
    (first,) = (head for head in known.heads if head.startswith("head.0"))
    second = sorted(known.heads - {first})
    place = first.removeprefix("head.")
    said = {f"embed>v.{place}", *(f"{head}>logits" for head in second)}
    said |= {f"{first}>k.{head.removeprefix('head.')}" for head in second}
    assert known.edges == said


@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
def test_ablation(known: Known, value: Any) -> None:
    texts = [[*row, answer] for row, answer in zip(known.pairs.clean, known.pairs.answers, strict=True)]
    dataset = assay.ablate(known.model, texts, value=value, components=("heads", "mlp")).dataset
    effect = dataset["effect"].sel(metric="loss_difference").to_series()
    assert_found(effect, known.heads, known)
    low = dataset["effect_low"].sel(metric="loss_difference").to_series()
    assert (low[sorted(known.heads)] > 0).all()
    assert float(effect[["mlp.0", "mlp.1"]].abs().max()) < IDLE * float(effect.max())


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching(known: Known, direction: Any) -> None:
    dataset = known.ask(
        assay.patch,
        site="z",
        by_head=True,
        direction=direction,
        metrics=("logit_difference",),
        baseline_pairs=0,
    ).dataset
    effect = np.abs(dataset["effect"][0])
    assert_found(by_head(effect.max("position"), names(known.model)), known.heads, known)
    second = frozenset(head for head in known.heads if head.startswith("head.1"))
    assert_found(by_head(effect.isel(position=-1), names(known.model)), second, known)


@pytest.mark.parametrize("method", ["atp", "qk_fix", "grad_drop", "atp_star"])
def test_attribution_patching(known: Known, method: Any) -> None:
    result = known.ask(
        assay.attribution_patch, method=method, sites=("z", "k"), exact=0, baseline=False, direction="noise"
    )
    sizes = by_head(np.abs(result.dataset["attribution_z"]).max("position"), names(known.model))
    assert_found(sizes, known.heads, known)


@pytest.mark.parametrize(
    ("method", "quadrature"),
    [("eap", "gauss"), ("eap_ig", "adaptive"), ("eap_qk_fix", "gauss"), ("eap_star", "gauss")],
)
def test_edge_attribution(known: Known, method: Any, quadrature: Any) -> None:
    dataset = known.ask(
        assay.attribution_patch, method=method, quadrature=quadrature, exact=0, baseline=False
    ).dataset
    scores = dataset["score"].stack(edge_=("sender", "receiver")).to_series().dropna()
    scores.index = [f"{sender}>{receiver}" for sender, receiver in scores.index]
    assert_found(scores, known.edges, known)


def test_path_patching_is_brute_force(known: Known) -> None:
    graph = graph_of(known.model)
    dataset = known.ask(
        assay.path_patch,
        senders=("embed", "heads", "mlps"),
        receivers=tuple(receiver.name for receiver in graph.receivers),
        baseline=False,
    ).dataset
    effects = dataset["effect"].stack(edge_=("sender", "receiver")).to_series().dropna()
    effects.index = [f"{sender}>{receiver}" for sender, receiver in effects.index]
    assert_found(effects, known.edges, known)
    exact = edge_effects(known)
    assert set(effects.index) == set(exact)
    for name, value in exact.items():
        assert float(effects[name]) == pytest.approx(float(value[:ASKED].mean()), abs=1e-3)


def test_direct_logit_attribution(known: Known) -> None:
    pairs = known.asked
    dataset = assay.direct_logit_attribution(
        known.model, pairs.clean, answer=pairs.answers, foil=pairs.foils
    ).dataset
    found = dataset["attribution"].to_series()
    heads = found[[name for name in found.index if name.startswith("head")]]
    assert_found(heads, frozenset(head for head in known.heads if head.startswith("head.1")), known)


def test_faithfulness(known: Known) -> None:
    whole = known.ask(assay.faithfulness, parts=sorted(known.edges), resamples=100, random_sets=2).dataset
    assert whole["faithfulness"].item() == pytest.approx(1, abs=PART)
    assert float(whole["baseline_faithfulness_high"][0]) < PART
    for left in sorted(known.edges):
        rest = sorted(known.edges - {left})
        broken = known.ask(assay.faithfulness, parts=rest, resamples=100, random_sets=0).dataset
        assert broken["faithfulness_high"].item() < 1 - PART
    ranked = known.ask(assay.faithfulness, sizes=(len(known.edges) / edge_count(known), 1.0), resamples=20)
    assert ranked.dataset["count"].values[0] == len(known.edges)
    assert float(ranked.dataset["faithfulness"][-1, 0]) == pytest.approx(1, abs=PART)


def test_nodes_are_faithful(known: Known) -> None:
    parts = ("embed", *sorted(known.heads))
    nodes = known.ask(assay.faithfulness, level="nodes", parts=parts, resamples=20).dataset
    assert nodes["faithfulness"].item() == pytest.approx(1, abs=IDLE)


def edge_count(known: Known) -> int:
    graph = graph_of(known.model)
    found = find_edges(graph, sorted(known.edges))
    assert len(set(found)) == len(known.edges)
    return int(graph.allowed.sum())


def test_names_of_the_zoo() -> None:
    with pytest.raises(BadInput, match="zoo:copier, zoo:induction"):
        assay.load("zoo:giraffe")
    model = assay.load("zoo:copier")
    assert model.tokens("^ a c a") == (0, 1, 3, 1)
    assert model.token_texts((0, 1)) == ["^", "a"]
    with pytest.raises(BadInput, match="the vocabulary from 0 to 11"):
        model.tokens("^ a zebra")
