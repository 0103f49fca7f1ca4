r"""Faithfulness: how much of what a model does is left when only a circuit carries the prompt.

All edges outside a circuit C carry what was written in the corrupted run. With :math:`m` the metric, N all edges,

.. math:: f(C) = \frac{\overline{m(C)} - \overline{m(\emptyset)}}{\overline{m(N)} - \overline{m(\emptyset)}}

is 1 where the circuit does what the model does and 0 where it does what the corrupted prompt does, means over pairs.
Edges, or nodes with all edges that leave them, are ranked by their scores
(:mod:`assay.activations.circuits.edge_scores`) twice: signed, so that what works against the prompts' difference is
last, and by size. The first :math:`\lfloor k n \rfloor` of n, for ten shares k, give a curve each. As in MIB, one says
what a circuit can do and the other how like the model it is,

.. math:: \mathrm{CPR} = \int f_\mathrm{signed} \, dk, \qquad \mathrm{CMD} = \int |1 - f_\mathrm{absolute}| \, dk

by trapezoids over the shares k: more is better, and 0 is best. Source: Mueller et al., MIB, 2504.13151.

Intervals are bootstraps over pairs. The baseline are random rankings, each with its own curve and areas; ``lead`` is
how much smaller the CMD is than that of the best of them, :math:`|1 - f|` where there is one size. A ranking that is
random itself leads with probability 1 / (``random_sets`` + 1). Cost: a forward a circuit and pair, in which each
receiver reads a stream of its own, about three forwards' work.

Limits: ranking and measuring on the same pairs flatters a circuit; ``ranked_on`` takes the first pairs for the ranking
alone.
"""

import math
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
from assay.activations.prompt_pairs import Metric, Prompts, best_metric, words_of
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.estimates.checks import Check
from assay.estimates.estimate import Floats, mean_interval
from assay.models.model import Model
from assay.models.slopes import last_logits
from assay.runs.measurement import Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Level = Literal["edges", "nodes"]
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which MIB measures."""
STEPS = 48
UNSIGNED = ("eap_star",)
"""Methods whose scores are magnitudes."""
ROUNDING = 1e-9
"""A share of all parts that is this near to a whole number is that number."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        graph: of the model.
        circuits: all edges, none, and every other set that is measured: (circuit, sender, receiver).
        places: which of them each curve has at each size, first those of the rankings, then random ones: (curve, size).
        counts: edges or nodes of each size.
    """

    graph: Graph
    circuits: Tensor
    places: Tensor
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
        random_sets: random rankings; where a circuit is given, random sets of its size.
        resamples: of the bootstrap.
        seed: of random sets and bootstrap.
    """

    name: ClassVar[str] = "faithfulness"
    revision: ClassVar[int] = 3
    level: Level = "edges"
    method: EdgeMethod = "eap_ig"
    parts: tuple[str, ...] = ()
    sizes: tuple[float, ...] = SIZES
    ranked_on: int = 0
    metric: Metric = "logit_difference"
    random_sets: int = 3
    resamples: int = 2000
    seed: int = 0

    @property
    def rankings(self) -> tuple[str, ...]:
        """The circuit's curves: where scores have no sign, or a circuit is given, there is one."""
        if self.parts:
            return ("given",)
        return ("absolute",) if self.method in UNSIGNED else ("signed", "absolute")

    def prepare(self, model: Model) -> Shared:
        """Rank edges or nodes, and make the circuits."""
        graph = graph_of(model)
        everything = torch.ones_like(graph.allowed)
        members = self._all(graph)
        if self.parts:
            given = self._given(graph)
            orders, counts = [given], [len(given)]
        else:
            orders = self._orders(model, graph)
            counts = [math.floor(size * len(members) + ROUNDING) for size in self.sizes]
        generator = torch.Generator().manual_seed(self.seed)
        orders += [
            members[torch.randperm(len(members), generator=generator)] for _ in range(self.random_sets)
        ]
        circuits, places = [everything, ~everything], []
        for order in orders:
            known = {0: 1, len(members): 0}
            for count in counts:
                if count not in known:
                    known[count] = len(circuits)
                    circuits.append(self._circuit(graph, order[:count]))
            places.append([known[count] for count in counts])
        return Shared(graph, torch.stack(circuits), torch.tensor(places), counts)

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
        measured = pair.number(logits).double()
        return {
            "ends": measured[:2],
            "curves": measured[shared.places.to(measured.device)],
            "model": torch.stack(
                [pair.number(whole)[0].double(), torch.tensor(pair.measured).to(whole).double()]
            ),
            "counts": torch.tensor(shared.counts),
        }

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take faithfulness, its areas and their intervals over pairs."""
        units = list(pieces.values())
        graph, counts = graph_of(model), units[0]["counts"].numpy()
        ends, curves, own = (
            np.stack([unit[name].numpy() for unit in units]) for name in ("ends", "curves", "model")
        )
        total = len(self._all(graph))
        sizes = counts / total if self.parts else np.array(self.sizes)
        variables: dict[str, Any] = {
            "metric_full": ((), ends[:, 0].mean()),
            "metric_empty": ((), ends[:, 1].mean()),
            "graph_error": ((), np.abs(ends - own).max()),
            "count": (("size",), counts),
        }
        few = {"allow_nan": True} if len(units) == 1 else {}
        for part, value in zip(PARTS, mean_interval(ends[:, 0] - ends[:, 1]), strict=True):
            variables[f"total_effect{part}"] = ((), value, few if part else {})
        measured, rng = np.hstack([ends, curves.reshape(len(units), -1)]), np.random.default_rng(self.seed)
        variables |= described(measured, len(self.rankings), sizes, rng, resamples=self.resamples)
        coordinates = {"size": sizes, "ranking": list(self.rankings)}
        return xr.Dataset(variables, coordinates, self._attributes(model, total, len(units)))

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

    def _orders(self, model: Model, graph: Graph) -> list[Tensor]:
        """Every edge or node, the one that counts most first, as often as there are rankings."""
        scores, whole = torch.zeros(graph.allowed.shape, dtype=torch.float64, device=model.device), 0.0
        for index in range(self.ranked_on or len(self.clean)):
            pair = self._noising(model, graph, index)
            one = score_edges(pair, graph, self.method, STEPS, "adaptive")
            scores, whole = scores + one.scores, whole + pair.measured - one.value
        size = scores[graph.allowed] if self.level == "edges" else scores.sum(1)
        by = {"signed": size * np.sign(whole), "absolute": size.abs()}
        members = self._all(graph)
        return [members[by[name].argsort(descending=True, stable=True).cpu()] for name in self.rankings]

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
        if self.random_sets < 0 or self.resamples < 2 or self.seed < 0:
            raise BadInput("random_sets and seed are 0 or more, resamples 2 or more")


def described(
    measured: Floats, rankings: int, sizes: Floats, rng: np.random.Generator, *, resamples: int
) -> dict[str, Any]:
    """Faithfulness and its areas, of the circuit and of random sets.

    Args:
        measured: (pair, circuit): all edges, none, then each size of each curve; first the rankings' curves, the
            signed before the absolute one, then random ones.
        rankings: number of curves that are no random ones.
        sizes: shares of all edges or nodes.
        rng: draws the resamples.
        resamples: of the bootstrap over pairs.

    Returns:
        The variables, with ``_stderr``, ``_low`` and ``_high``, which are NaN for one pair; and those of each random
        curve, without. One size has no areas.
    """
    told = _told(measured, rankings, sizes)
    few = {"allow_nan": True}  # one pair has no interval, equal prompts no faithfulness

    def row(pairs: Floats) -> Floats:
        return np.hstack([value.ravel() for value in _told(pairs, rankings, sizes).values()])

    found = (row(measured), *[np.full_like(row(measured), np.nan)] * 3)
    if len(measured) > 1:
        found = bootstrap(measured, rng, row, resamples=resamples, kind="percentile")
    ends = np.cumsum([value.size for value in told.values()])[:-1]
    variables: dict[str, Any] = {}
    for part, values in zip(PARTS, found, strict=True):
        for (name, like), value in zip(told.items(), np.split(values, ends), strict=True):
            variables[name + part] = (("ranking", "size")[2 - like.ndim :], value.reshape(like.shape), few)
    for name, value in _curves(measured, sizes).items():
        if len(value) > rankings:
            variables[f"baseline_{name}_by_set"] = (("set", "size")[: value.ndim], value[rankings:], few)
    return variables


def _curves(measured: Floats, sizes: Floats) -> dict[str, Floats]:
    """Faithfulness (curve, size), and where there are several sizes CPR and CMD (curve,)."""
    means = measured.mean(0)
    gap = means[0] - means[1]
    f = ((means[2:] - means[1]) / (gap if gap else np.nan)).reshape(-1, len(sizes))
    if len(sizes) == 1:
        return {"faithfulness": f}
    return {"faithfulness": f, "cpr": np.trapezoid(f, sizes), "cmd": np.trapezoid(np.abs(1 - f), sizes)}


def _told(measured: Floats, rankings: int, sizes: Floats) -> dict[str, Floats]:
    """Everything that has an interval: the circuit's curves, the means over random ones, and the lead."""
    curves = _curves(measured, sizes)
    owner = {
        "faithfulness": slice(rankings),
        "cpr": 0,
        "cmd": rankings - 1,
    }  # the signed, and the absolute ranking
    told = {name: value[owner[name]] for name, value in curves.items()}
    if len(curves["faithfulness"]) > rankings:
        told |= {f"baseline_{name}": value[rankings:].mean(0) for name, value in curves.items()}
        short = curves.get("cmd", np.abs(1 - curves["faithfulness"][:, 0]))
        told["lead"] = short[rankings:].min() - short[rankings - 1]
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
        sizes: shares of all edges or nodes, ascending, each rounded down to whole ones.
        ranked_on: rank on this many pairs, the first ones, and measure on the others; 0 to do both on all.
        metric: by default the logit difference, the log-probability or KL, as the answer and the foil allow.
        random_sets: random rankings; where a circuit is given, random sets of its size.
        resamples: of the bootstrap.
        seed: of random sets and bootstrap.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``faithfulness[ranking, size]`` by ``signed`` and by ``absolute`` scores (of
        ``eap_star``, which have no sign, by ``absolute`` ones; of a circuit by name, ``given``), ``cpr`` of the first
        and ``cmd`` of the last of these, ``baseline_faithfulness[size]``, ``baseline_cpr`` and ``baseline_cmd``, means
        over random sets, and ``lead``, each with ``_stderr``, ``_low`` and ``_high`` over pairs; those of each random
        set (``baseline_cmd_by_set[set]``); ``count[size]``; ``metric_full``, ``metric_empty``, their difference
        ``total_effect`` with its interval, and ``graph_error``, how far the whole graph is from the model.

    Raises:
        BadInput: prompts of different length, a metric that needs an answer and has none, sizes out of order, or a
            part that is not there.
    """
    given = paired(model, clean, corrupted, answer, foil)
    measurement = Faithfulness(
        **given,
        level=level,
        method=method,
        parts=words_of(parts),
        sizes=tuple(sizes),
        ranked_on=ranked_on,
        metric=metric or best_metric(given["answers"], given["foils"]),
        random_sets=random_sets,
        resamples=resamples,
        seed=seed,
    )
    return perform(measurement, model, **run)
