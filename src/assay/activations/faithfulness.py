r"""Faithfulness: how much of what a model does is left when only a circuit carries the prompt.

All edges outside a circuit C carry what was written in the corrupted run. With :math:`m` the metric, N all edges,

.. math:: f(C) = \frac{\overline{m(C)} - \overline{m(\emptyset)}}{\overline{m(N)} - \overline{m(\emptyset)}}

is 1 where the circuit does what the model does and 0 where it does what the corrupted prompt does, means over pairs.
Edges, or nodes with all edges that leave them, are ranked by their scores
(:mod:`assay.activations.circuits.edge_scores`); the best k of them, for ten sizes k, give a curve, of which

.. math:: \mathrm{CPR} = \int f \, dk, \qquad \mathrm{CMD} = \int |1 - f| \, dk

by trapezoids over the share of edges: more is better, and 0 is best. Source: Mueller et al., MIB, 2504.13151.

Intervals are bootstraps over pairs. The baseline are random sets of the same sizes, each with its own areas; ``lead``
is how much smaller the CMD is than that of the best of them, :math:`|1 - f|` where there is one size. A circuit that is
a random set itself leads with probability 1 / (``random_sets`` + 1). Cost: a forward a circuit and pair, in which each
receiver reads a stream of its own, about three forwards' work.

Limits: ranking and measuring on the same pairs flatters a circuit; ``ranked_on`` takes the first pairs for the ranking
alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.faithfulness import faithfulness_checks
from assay.activations.circuits.circuit import run_circuits
from assay.activations.circuits.edge_scores import EdgeMethod, score_edges
from assay.activations.circuits.graph import Graph, find_edges, graph_of
from assay.activations.circuits.node_scores import Contrast
from assay.activations.effects import PARTS
from assay.activations.paired import Paired, paired
from assay.activations.prompt_pairs import Metric, Prompts, best_metric
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.estimates.checks import Check
from assay.estimates.estimate import Floats
from assay.models.model import Model
from assay.models.slopes import last_logits
from assay.runs.measurement import Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Level = Literal["edges", "nodes"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which MIB measures."""
STEPS = 48


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        graph: of the model.
        circuits: all edges, none, then the circuit of each size, then the random sets: (circuit, sender, receiver).
        counts: edges or nodes of each size.
    """

    graph: Graph
    circuits: Tensor
    counts: list[int]


@dataclass(frozen=True, kw_only=True)
class Faithfulness(Paired):
    """How much of a model's behaviour circuits of growing size carry, beside random sets.

    Attributes:
        level: circuits of ``edges``, or of ``nodes`` with all edges that leave them.
        method: by which scores they are ranked.
        parts: a circuit given by name instead: edges or nodes. Empty for a ranking.
        sizes: shares of all edges or nodes, ascending; for a ranking.
        ranked_on: the first pairs, which rank and are not measured; 0 to do both on all.
        metric: what is measured at the last position.
        random_sets: random sets of each size.
        resamples: of the bootstrap.
        seed: of random sets and bootstrap.
    """

    name: ClassVar[str] = "faithfulness"
    revision: ClassVar[int] = 2
    level: Level = "edges"
    method: EdgeMethod = "eap_ig"
    parts: tuple[str, ...] = ()
    sizes: tuple[float, ...] = SIZES
    ranked_on: int = 0
    metric: Metric = "logit_difference"
    random_sets: int = 3
    resamples: int = 2000
    seed: int = 0

    def prepare(self, model: Model) -> Shared:
        """Rank edges or nodes, and make the circuits."""
        graph = graph_of(model)
        everything = torch.ones_like(graph.allowed)
        given = self._given(graph) if self.parts else None
        if given is None:
            ranks = self._ranks(model, graph)
            counts = list(dict.fromkeys(max(1, round(size * len(ranks))) for size in self.sizes))
            chosen = [self._circuit(graph, ranks[:count]) for count in counts]
        else:
            ranks, counts, chosen = self._all(graph), [len(given)], [self._circuit(graph, given)]
        generator = torch.Generator().manual_seed(self.seed)
        random = [
            self._circuit(graph, ranks[torch.randperm(len(ranks), generator=generator)[:count]])
            for _ in range(self.random_sets)
            for count in counts
        ]
        return Shared(graph, torch.stack([everything, ~everything, *chosen, *random]), counts)

    def plan(self, model: Model) -> Sequence[Unit]:
        """One unit a measured pair.

        Raises:
            BadInput: prompts that do not pair, a metric without its answer, sizes or parts that are none, or a model
                whose heads are not to be told apart.
        """
        self._validate(model)
        return [
            Unit(f"pair-{index:05d}", {"pair": index}) for index in range(self.ranked_on, len(self.clean))
        ]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Run every circuit on one pair."""
        pair = self._contrast(model, shared.graph, unit.detail["pair"])
        logits = run_circuits(shared.graph, pair.base, pair.activations, shared.circuits)
        whole, _ = last_logits(model, pair.base, [])
        return {
            "measured": pair.number(logits).double(),
            "model": torch.stack(
                [pair.number(whole)[0].double(), torch.tensor(pair.measured).to(whole).double()]
            ),
            "counts": torch.tensor(shared.counts),
        }

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take faithfulness, its areas and their intervals over pairs."""
        units = list(pieces.values())
        graph, counts = graph_of(model), units[0]["counts"].numpy()
        measured = np.stack([unit["measured"].numpy() for unit in units])
        own = np.stack([unit["model"].numpy() for unit in units])
        total = len(self._all(graph))
        sizes = counts / total
        variables: dict[str, Any] = {
            "metric_full": ((), measured[:, 0].mean()),
            "metric_empty": ((), measured[:, 1].mean()),
            "graph_error": ((), np.abs(measured[:, :2] - own).max()),
            "count": (("size",), counts),
            **described(measured, sizes, np.random.default_rng(self.seed), resamples=self.resamples),
        }
        return xr.Dataset(variables, {"size": sizes}, self._attributes(model, total, len(measured)))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The prompts differ, the whole graph is the model, random sets are less faithful."""
        return faithfulness_checks(dataset)

    def memory(self, model: Model) -> int:
        """What senders write in the circuits that run side by side."""
        return 2**30

    def _all(self, graph: Graph) -> Tensor:
        """Every edge as sender and receiver, (edge, 2); every node as its number, (node,)."""
        return graph.allowed.nonzero() if self.level == "edges" else torch.arange(len(graph.senders))

    def _given(self, graph: Graph) -> Tensor:
        if self.level == "edges":
            return torch.tensor(find_edges(graph, self.parts))
        unknown = [name for name in self.parts if name not in graph.senders]
        if unknown:
            raise BadInput(f"parts={self.parts}: {', '.join(unknown)} is no node; they are {graph.kinds}")
        return torch.tensor([graph.senders.index(name) for name in self.parts])

    def _ranks(self, model: Model, graph: Graph) -> Tensor:
        """Every edge or node, the one with the largest score first."""
        pairs = range(self.ranked_on or len(self.clean))
        scored = [
            score_edges(self._noising(model, graph, i), graph, self.method, STEPS, "adaptive") for i in pairs
        ]
        scores = torch.stack([one.scores for one in scored]).mean(0)
        everything = self._all(graph)
        size = scores[graph.allowed] if self.level == "edges" else scores.sum(1)
        return everything[size.abs().argsort(descending=True, stable=True).cpu()]

    def _circuit(self, graph: Graph, members: Tensor) -> Tensor:
        kept = torch.zeros_like(graph.allowed)
        if self.level == "edges":
            kept[members[:, 0], members[:, 1]] = True
        else:
            kept[members] = True
        return kept

    def _contrast(self, model: Model, graph: Graph, index: int) -> Contrast:
        """The clean prompt as the run that is patched, from the corrupted one."""
        return self.contrast(model, graph.site_names, index, direction="noise", metric=self.metric)

    def _noising(self, model: Model, graph: Graph, index: int) -> Contrast:
        """A pair to be ranked by; from the corrupted run where the metric has no slope at the clean one."""
        pair = self._contrast(model, graph, index)
        if self.metric != "kl_from_clean":
            return pair
        logits, seen = last_logits(model, pair.base, list(pair.activations))
        value = float(pair.number(logits)[0])
        return Contrast(model, pair.source, pair.base, pair.names, seen, pair.gauge, value)

    def _attributes(self, model: Model, total: int, pairs: int) -> dict[str, Any]:
        return {
            **self.described(model),
            "level": self.level,
            "total": total,
            "ranking": ", ".join(self.parts) or self.method,
            "metric": self.metric,
            "pairs": pairs,
            "random_sets": self.random_sets,
        }

    def _validate(self, model: Model) -> None:
        self.check_settings((self.metric,))
        graph = graph_of(model)
        if self.parts:
            self._given(graph)
        if (
            not self.sizes
            or list(self.sizes) != sorted(set(self.sizes))
            or not 0 < self.sizes[0] <= self.sizes[-1] <= 1
        ):
            raise BadInput(f"sizes={self.sizes}: give shares above 0 and up to 1, ascending")
        if not 0 <= self.ranked_on < len(self.clean):
            raise BadInput(
                f"ranked_on={self.ranked_on}: of {len(self.clean)} pairs, some have to be left to measure"
            )
        if self.random_sets < 0 or self.resamples < 2 or self.seed < 0:  # noqa: PLR2004
            raise BadInput("random_sets and seed are 0 or more, resamples 2 or more")


def described(measured: Floats, sizes: Floats, rng: np.random.Generator, *, resamples: int) -> dict[str, Any]:
    """Faithfulness and its areas, of the circuit and of random sets.

    Args:
        measured: (pair, circuit): all edges, none, then the circuit at each size, then each random set at each size.
        sizes: shares of all edges or nodes.
        rng: draws the resamples.
        resamples: of the bootstrap over pairs.

    Returns:
        The variables, with ``_stderr``, ``_low`` and ``_high``, which are NaN for one pair; and those of each random
        set, without. One size has no areas.
    """
    told, few = (
        _told(measured, sizes),
        {"allow_nan": True},
    )  # one pair has no interval, equal prompts no faithfulness
    row = np.hstack(list(told.values()))
    found = (row, *[np.full_like(row, np.nan)] * 3)
    if len(measured) > 1:
        found = bootstrap(
            measured,
            rng,
            lambda pairs: np.hstack(list(_told(pairs, sizes).values())),
            resamples=resamples,
            kind="percentile",
        )
    ends = np.cumsum([value.size for value in told.values()])[:-1]
    variables: dict[str, Any] = {}
    for part, values in zip(PARTS, found, strict=True):
        for (name, like), value in zip(told.items(), np.split(values, ends), strict=True):
            variables[name + part] = (("size",)[: like.ndim], value.reshape(like.shape), few)
    for name, value in _curves(measured, sizes).items():
        if len(value) > 1:
            variables[f"baseline_{name}_by_set"] = (("set", "size")[: value.ndim], value[1:], few)
    return variables


def _curves(measured: Floats, sizes: Floats) -> dict[str, Floats]:
    """Faithfulness (set, size), the circuit first, and where there are several sizes CPR and CMD (set,)."""
    means = measured.mean(0)
    gap = means[0] - means[1]
    f = ((means[2:] - means[1]) / (gap if gap else np.nan)).reshape(-1, len(sizes))
    if len(sizes) == 1:
        return {"faithfulness": f}
    return {"faithfulness": f, "cpr": np.trapezoid(f, sizes), "cmd": np.trapezoid(np.abs(1 - f), sizes)}


def _told(measured: Floats, sizes: Floats) -> dict[str, Floats]:
    """Everything that has an interval: the circuit's curves, the means over random sets, and the lead."""
    curves = _curves(measured, sizes)
    told = {name: value[0] for name, value in curves.items()}
    if len(curves["faithfulness"]) > 1:
        told |= {f"baseline_{name}": value[1:].mean(0) for name, value in curves.items()}
        short = curves.get("cmd", np.abs(1 - curves["faithfulness"][:, 0]))
        told["lead"] = short[1:].min() - short[0]
    return told


def faithfulness(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    *,
    answer: str | int | Sequence[str] | Sequence[int] | None = None,
    foil: str | int | Sequence[str] | Sequence[int] | None = None,
    level: Level = "edges",
    method: EdgeMethod = "eap_ig",
    parts: Sequence[str] = (),
    sizes: Sequence[float] = SIZES,
    ranked_on: int = 0,
    metric: Metric | None = None,
    random_sets: int = 3,
    resamples: int = 2000,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Find how much of what a model does is left when only a circuit carries the prompt.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        clean: a prompt, or several, as text or token ids.
        corrupted: as many prompts of the same number of tokens; what edges outside the circuit carry.
        answer: the clean prompt's answer, a single token with its leading space; one for all pairs or one each.
        foil: what the logit difference is taken against, for example the corrupted prompt's answer.
        level: circuits of ``edges``, or of ``nodes`` with all edges that leave them.
        method: by which scores they are ranked: ``eap``, ``eap_ig``, ``eap_qk_fix`` or ``eap_star``.
        parts: a circuit given by name instead: edges (``head.0.3>k.4.1``) or nodes (``head.0.3``).
        sizes: shares of all edges or nodes, ascending.
        ranked_on: rank on this many pairs, the first ones, and measure on the others; 0 to do both on all.
        metric: by default the logit difference, the log-probability or KL, as the answer and the foil allow.
        random_sets: random sets of each size.
        resamples: of the bootstrap.
        seed: of random sets and bootstrap.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``faithfulness[size]`` and ``baseline_faithfulness[size]`` of random sets, ``cpr``
        and ``cmd`` of both, and ``lead``, each with ``_stderr``, ``_low`` and ``_high`` over pairs; those of each
        random set (``baseline_cmd_by_set[set]``); ``count[size]``; ``metric_full``, ``metric_empty``, and
        ``graph_error``, how far the whole graph is from the model.

    Raises:
        BadInput: prompts of different length, a metric that needs an answer and has none, sizes out of order, or a
            part that is not there.
    """
    given = paired(model, clean, corrupted, answer, foil)
    measurement = Faithfulness(
        **given,
        level=level,
        method=method,
        parts=tuple(parts),
        sizes=tuple(sizes),
        ranked_on=ranked_on,
        metric=metric or best_metric(given["answers"], given["foils"]),
        random_sets=random_sets,
        resamples=resamples,
        seed=seed,
    )
    return perform(measurement, model, **run)
