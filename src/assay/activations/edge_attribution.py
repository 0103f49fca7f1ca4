r"""Edge attribution: the effect of patching every edge between parts at once, to first order, beside exact effects.

An edge carries what one part writes into what another reads. EAP tells by one slope what patching it would do; EAP-IG
averages the slope on the way from one prompt's embeddings to the other's
(:mod:`assay.activations.circuits.edge_scores`).

Slopes along the way must add up to the whole difference of the runs. How far they do not is the error of the
quadrature, and is reported as ``quadrature_error``.

Beside the scores, the edges that rank first and as many drawn at random from the rest are patched exactly, everything
but the one edge staying as it is. Intervals are over pairs; the baseline scores the edges between the first pair's base
prompt and a copy that differs from it where it does not matter (:mod:`assay.activations.indifferent`).

Cost: EAP-IG one forward and backward of ``steps`` rows a pair; the scores of all edges are one matrix product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.attribution_patching import require_slope
from assay.activations.checks.edges import edge_checks
from assay.activations.circuits.agreement import agreement, first_and_random
from assay.activations.circuits.edge_scores import (
    PART,
    EdgeMethod,
    EdgeScores,
    Quadrature,
    patch_edges,
    score_edges,
)
from assay.activations.circuits.graph import Graph, graph_of
from assay.activations.circuits.node_scores import Contrast
from assay.activations.effects import PARTS
from assay.activations.engine import engine_named, reason_kept
from assay.activations.paired import Paired
from assay.activations.prompt_pairs import Direction, Metric
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.model import Model
from assay.models.partial import Recording, record
from assay.runs.measurement import Pieces, Unit

AT_ONCE = 64
"""Edges patched exactly by one unit."""
SPARED = 4
"""Fewer edges have no rank correlation."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        graph: of the model.
        pairs: both prompts of each pair, with the source run's activations.
        scored: the scores of each.
        null: scores between the first base prompt and an indifferent copy, (sender, receiver); empty for none.
        apart: by how much the copy moves the metric.
        replaced: in how many tokens the copy differs.
        chosen: sender and receiver of the edges patched exactly, (edge, 2).
        recordings: of the base runs, for exact patching; empty where nothing is patched.
    """

    graph: Graph
    pairs: list[Contrast]
    scored: list[EdgeScores]
    null: Tensor
    apart: float
    replaced: int
    chosen: Tensor
    recordings: list[Recording]


@dataclass(frozen=True, kw_only=True)
class EdgeAttribution(Paired):
    """First-order effects of patching every edge between two prompts' runs, and exact effects of some.

    Attributes:
        method: ``eap``, ``eap_ig``, ``eap_qk_fix`` or ``eap_star``.
        steps: slopes on the way from base to source, for ``eap_ig``; the most of them, where ``adaptive``.
        quadrature: where these are taken: ``adaptive``, ``gauss`` or ``endpoint``.
        direction: ``denoise`` or ``noise``.
        metric: what is measured at the last position.
        exact: edges that are patched exactly, half of them those ranked first; 0 for none.
        baseline: also score the first base prompt against a copy where nothing is to be found.
        max_rows: most rows in one exact pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "edge_attribution"
    revision: ClassVar[int] = 3
    method: EdgeMethod = "eap_ig"
    steps: int = 48
    quadrature: Quadrature = "adaptive"
    direction: Direction = "denoise"
    metric: Metric = "logit_difference"
    exact: int = 64
    baseline: bool = True
    max_rows: int | None = None

    def prepare(self, model: Model) -> Shared:
        """Score every edge of every pair, and choose those that are patched exactly."""
        graph = graph_of(model)
        pairs = [self._contrast(model, graph, index) for index in range(len(self.clean))]
        scored = [score_edges(pair, graph, self.method, self.steps, self.quadrature) for pair in pairs]
        chosen = first_and_random(
            torch.stack([one.scores for one in scored]).mean(0), graph.allowed, self.exact, self.seed
        )
        recordings = [record(model, pair.base) for pair in pairs] if len(chosen) else []
        null, apart, replaced = torch.zeros(0), 0.0, 0
        if self.baseline:
            copied = pairs[0].indifferent(self.seed)
            null = score_edges(copied, graph, self.method, self.steps, self.quadrature).scores
            apart = copied.measured - scored[0].value
            replaced = int((copied.source != copied.base).sum())
        return Shared(graph, pairs, scored, null, apart, replaced, chosen, recordings)

    def plan(self, model: Model) -> Sequence[Unit]:
        """The scores, and the exact edges some at a time.

        Raises:
            BadInput: prompts that do not pair, a metric without its answer or without a slope, a number of steps that
                is none, or a model whose heads are not to be told apart.
        """
        self._validate(model)
        passes = 3 * len(self.clean) * (self.steps if self.method == "eap_ig" else 1)
        cost = len(self.clean) * AT_ONCE / 4
        exact = [
            Unit(f"exact-{start:05d}", {"start": start}, cost=cost) for start in range(0, self.exact, AT_ONCE)
        ]
        return [Unit("scores", {}, cost=passes), *exact]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Hand over the scores, or patch some of the chosen edges exactly in every pair."""
        if unit.name == "scores":
            return {
                "scores": torch.stack([one.scores for one in shared.scored]),
                "base": torch.tensor([one.value for one in shared.scored]),
                "whole": torch.tensor([one.whole for one in shared.scored]),
                "source": torch.tensor([pair.measured for pair in shared.pairs]),
                "null": shared.null,
                "apart": torch.tensor(shared.apart),
                "replaced": torch.tensor(shared.replaced),
                "chosen": shared.chosen,
                "fallback": reason_kept(shared.recordings[0].fallback if shared.recordings else ""),
            }
        start = unit.detail["start"]
        edges = [(int(s), int(r)) for s, r in shared.chosen[start : start + AT_ONCE]]
        everything = zip(shared.pairs, shared.recordings, shared.scored, strict=True)
        effects = [
            patch_edges(pair, shared.graph, recording, scored, edges, self.max_rows)
            for pair, recording, scored in everything
        ]
        return {"effect": torch.stack(effects)}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means and intervals over pairs, and hold the scores against exact effects."""
        one, graph = pieces["scores"], graph_of(model)
        base, source, whole = (one[name].double().numpy() for name in ("base", "source", "whole"))
        none, edge = {"allow_nan": True}, ("sender", "receiver")
        apart = np.where(graph.allowed.numpy(), 0.0, np.nan)  # an edge against the order is none
        total, missing = (source - base).mean(), np.abs(whole - (source - base)).mean()
        variables: dict[str, Any] = {
            "metric_base": ((), base.mean()),
            "metric_source": ((), source.mean()),
            "predicted_total": ((), whole.mean()),
            "quadrature_error": ((), missing / abs(total) if total else np.nan, none),
        }
        named: dict[str, Any] = {"total_effect": ((), source - base, {})}
        named["score"] = (edge, one["scores"].numpy() + apart, none)
        if self.baseline:
            variables["baseline_score"] = (edge, one["null"].numpy() + apart, none)
            variables["baseline_total_effect"] = ((), float(one["apart"]))
            variables["baseline_replaced"] = ((), int(one["replaced"]))
        if self.exact:
            chosen = one["chosen"].numpy()
            exact = np.concatenate([p["effect"].numpy() for name, p in pieces.items() if name != "scores"], 1)
            predicted = one["scores"].mean(0).numpy()[chosen[:, 0], chosen[:, 1]]
            named["edge_effect"] = (("edge",), exact, {})
            variables["edge_score"] = (("edge",), predicted)
            variables |= agreement(predicted, exact.mean(0), "edge", self.seed)
        for name, (dims, samples, undefined) in named.items():
            for part, values in zip(PARTS, mean_interval(samples), strict=True):
                variables[name + part] = (dims, values, undefined or (self.few if part else {}))
        return xr.Dataset(variables, self._coordinates(graph, one), self._attributes(model, one))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The prompts differ, scores agree with patching, slopes add up, little is found where nothing is."""
        return edge_checks(dataset)

    def memory(self, model: Model) -> int:
        """The graph of the backward pass, and what every sender writes and every receiver's slope."""
        tokens, heads = len(self.clean[0]), model.parts.blocks[0].n_heads
        per_token = model.n_layers * model.d_model
        return 4 * tokens * per_token * (32 + (4 * heads + 2) * (1 + len(self.clean)))

    def _contrast(self, model: Model, graph: Graph, index: int) -> Contrast:
        return self.contrast(model, graph.site_names, index, direction=self.direction, metric=self.metric)

    def _coordinates(self, graph: Graph, one: Pieces) -> dict[str, Any]:
        coords: dict[str, Any] = {
            "sender": list(graph.senders),
            "receiver": [receiver.name for receiver in graph.receivers],
        }
        if self.exact:
            chosen = one["chosen"].tolist()
            top = len(chosen) // 2
            coords["edge"] = [f"{graph.senders[s]}>{graph.receivers[r].name}" for s, r in chosen]
            coords["edge_group"] = ("edge", np.repeat(["first", "random"], [top, len(chosen) - top]))
        return coords

    def _attributes(self, model: Model, one: Pieces) -> dict[str, Any]:
        return {
            **self.described(model),
            "method": self.method,
            "steps": self.steps if self.method == "eap_ig" else 1,
            "quadrature": self.quadrature if self.method == "eap_ig" else "one slope",
            "direction": self.direction,
            "metric": self.metric,
            "engine": engine_named([one["fallback"]]),
        }

    def _validate(self, model: Model) -> None:
        self.check_settings((self.metric,))
        require_slope(self.metric, self.direction)
        graph_of(model)
        if self.steps < 1:
            raise BadInput(f"steps={self.steps}: an integral needs one slope or more")
        if self.method == "eap_ig" and self.quadrature == "adaptive" and self.steps < PART:
            raise BadInput(
                f"steps={self.steps}: the adaptive rule takes {PART} slopes on each part of the way; allow {PART} or "
                "more, or take quadrature='gauss'"
            )
        if self.exact and self.exact < SPARED:
            raise BadInput(
                f"exact={self.exact}: a rank correlation needs at least {SPARED} edges; 0 for none"
            )
