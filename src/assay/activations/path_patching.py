r"""Path patching: what one part tells another, apart from everything else that either does.

Four passes for a sender s and a receiver r: the source prompt; the base prompt; the base prompt with what s writes
taken from the source run, and what stands between s and r held as in the base run, read at r; the base prompt with r
reading that. The effect is the change of the metric in the last,

.. math:: e(s \to r) = M_\mathrm{fourth} - M_\mathrm{base}

What is held in the third pass is the ``middle``: ``frozen`` holds all heads and MLPs, so that only the direct path is
left; ``mlps`` lets MLPs recompute, as Wang et al. did; ``recomputed`` holds nothing, and patches every path from s to
r. After r, everything recomputes. Sources: Goldowsky-Dill et al., 2304.05969; Wang et al., 2211.00593.

Intervals are over pairs; the baseline takes what senders write from a copy of the first base prompt that differs
where it does not matter (:mod:`assay.activations.indifferent`). Cost: one forward of a row for each sender, and one
exact partial forward for each sender and receiver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.path_patching import path_checks
from assay.activations.circuits.graph import Graph, graph_of
from assay.activations.circuits.path_ends import Sender, Target, find_senders, find_targets
from assay.activations.effects import PARTS
from assay.activations.engine import engine_named, reason_kept
from assay.activations.paired import Paired, paired
from assay.activations.prompt_pairs import (
    Direction,
    Metric,
    PairRuns,
    Prompts,
    best_metric,
    pair_runs,
    words_of,
)
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.estimates.ratio import ratio_interval
from assay.models.edits import Edit, at
from assay.models.intervention import intervene
from assay.models.model import Model
from assay.models.partial import Recording, partial_forward, record
from assay.runs.measurement import Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Middle = Literal["frozen", "mlps", "recomputed"]
AT_ONCE = 8
"""Senders of one unit, which share the third pass."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        graph: of the model.
        pairs: the two runs of each pair.
        copied: a run of an indifferent copy of the first base prompt; ``None`` for none.
    """

    graph: Graph
    pairs: list[PairRuns]
    copied: Recording | None

    @property
    def replaced(self) -> int:
        """In how many tokens the copy differs."""
        return 0 if self.copied is None else int((self.copied.ids != self.pairs[0].base.ids).sum())


@dataclass(frozen=True, kw_only=True)
class PathPatching(Paired):
    """What senders tell receivers of what makes two prompts differ.

    Attributes:
        senders: names of what writes.
        receivers: names of what reads.
        middle: what recomputes between them.
        positions: where senders are patched; ``None`` for every position.
        direction: ``denoise`` or ``noise``.
        metric: what is measured at the last position.
        baseline: also take what senders write from a copy of the first base prompt where nothing is to be found.
        max_rows: most rows in one exact pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "path_patching"
    revision: ClassVar[int] = 3
    senders: tuple[str, ...]
    receivers: tuple[str, ...] = ("logits",)
    middle: Middle = "frozen"
    positions: tuple[int, ...] | None = None
    direction: Direction = "denoise"
    metric: Metric = "logit_difference"
    baseline: bool = True
    max_rows: int | None = None

    def prepare(self, model: Model) -> Shared:
        """Run both prompts of every pair once, and the copy of the baseline."""
        graph = graph_of(model)
        pairs = [self._runs(model, index) for index in range(len(self.clean))]
        return Shared(graph, pairs, self._copied(model, pairs[0]) if self.baseline else None)

    def plan(self, model: Model) -> Sequence[Unit]:
        """The runs themselves, and some senders at a time.

        Raises:
            BadInput: prompts that do not pair, a metric without its answer, or a sender, receiver or position that is
                not there.
        """
        self._validate(model)
        count = len(find_senders(graph_of(model), self.senders))
        starts = range(0, count, AT_ONCE)
        cost = AT_ONCE * (1 + len(self.receivers)) * len(self.clean)
        senders = [Unit(f"senders-{start:05d}", {"start": start}, cost=cost) for start in starts]
        return [Unit("runs", {}), *senders]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Measure the runs themselves, or patch the paths from some senders to every receiver."""
        if unit.name == "runs":
            return {
                "base": torch.stack([runs.of_run(runs.base)[0] for runs in shared.pairs]),
                "source": torch.stack([runs.of_run(runs.source)[0] for runs in shared.pairs]),
                "replaced": torch.tensor(shared.replaced),
                "fallback": reason_kept(shared.pairs[0].base.fallback),
            }
        start = unit.detail["start"]
        senders = find_senders(shared.graph, self.senders)[start : start + AT_ONCE]
        targets = find_targets(shared.graph, self.receivers)
        patched = [self._paths(shared.graph, runs, runs.source, senders, targets) for runs in shared.pairs]
        pieces = {"patched": torch.stack(patched)}
        if shared.copied is not None:
            first = shared.pairs[0]
            null = self._paths(shared.graph, first, shared.copied, senders, targets)
            pieces["null"] = null - first.of_run(first.base)[0].double()
            pieces["apart"] = (first.of_run(shared.copied) - first.of_run(first.base))[0].double()
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take effects and their intervals over pairs."""
        graph = graph_of(model)
        units = [piece for name, piece in pieces.items() if name != "runs"]
        base, source = (pieces["runs"][name].double().numpy() for name in ("base", "source"))
        patched = torch.cat([piece["patched"] for piece in units], 1).numpy()
        total, effect = source - base, patched - base[:, None, None]
        none = {"allow_nan": True}
        path = ("sender", "receiver")
        variables: dict[str, Any] = {"metric_base": ((), base.mean()), "metric_source": ((), source.mean())}
        named: dict[str, Any] = {
            "effect": (path, mean_interval(effect), none),
            "total_effect": ((), mean_interval(total), {}),
            "normalised_effect": (path, ratio_interval(effect, total[:, None, None]), none),
        }
        for name, (dims, parts, undefined) in named.items():
            for part, values in zip(PARTS, parts, strict=True):
                variables[name + part] = (dims, values, undefined or (self.few if part else {}))
        if self.baseline:
            variables["baseline_effect"] = (path, torch.cat([p["null"] for p in units]).numpy(), none)
            variables["baseline_total_effect"] = ((), float(units[0]["apart"]))
            variables["baseline_replaced"] = ((), int(pieces["runs"]["replaced"]))
        coords = {
            "sender": [sender.name for sender in find_senders(graph, self.senders)],
            "receiver": [target.name for target in find_targets(graph, self.receivers)],
        }
        return xr.Dataset(variables, coords, self._attributes(model, pieces["runs"]))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The prompts differ, little is found where nothing is."""
        return path_checks(dataset)

    def memory(self, model: Model) -> int:
        """The recorded runs, and the streams of one unit's third pass."""
        rows = 2 * len(self.clean) + AT_ONCE
        return 4 * model.d_model * len(self.clean[0]) * model.n_layers * 8 * rows

    def _paths(
        self,
        graph: Graph,
        runs: PairRuns,
        source: Recording,
        senders: Sequence[Sender],
        targets: Sequence[Target],
    ) -> Tensor:
        """The metric at the end of each path, (sender, receiver); NaN where the receiver reads before."""
        base = runs.base
        where = self._changed(base.ids, source.ids)
        found = torch.full((len(senders), len(targets)), torch.nan, dtype=torch.float64)
        streams = self._third(graph, base, source, senders, targets)
        variants, places = [], []
        for row, sender in enumerate(senders):
            for column, target in enumerate(targets):
                if sender.stage < target.stage:
                    edits = [
                        graph.edit(reader, graph.stream(reader, streams)[[row]], where)
                        for reader in target.readers
                    ]
                    variants.append(tuple(edits))
                    places.append((row, column))
        if variants:
            measured = partial_forward(base, variants, runs.gauge, max_rows=self.max_rows)[:, 0, 0, 0]
            for place, value in zip(places, measured.double().cpu(), strict=True):
                found[place] = value
        return found

    def _changed(self, base: Tensor, source: Tensor) -> tuple[int, ...]:
        """The positions at which streams may differ from the base run's."""
        length = base.shape[1]
        differing = (base != source)[0].nonzero()[:, 0].tolist() or [length - 1]
        patched = [p % length for p in self.positions or range(length)]
        return tuple(range(max(differing[0], min(patched)), length))

    def _third(
        self,
        graph: Graph,
        base: Recording,
        source: Recording,
        senders: Sequence[Sender],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """The streams that receivers read when each sender, in a row of its own, writes as in the source run."""
        layers = range(graph.model.n_layers)
        steps: dict[str, list[Edit]] = {}
        held = {"frozen": ("z", "mlp_out"), "mlps": ("z",), "recomputed": ()}[self.middle]
        for name in held:
            for layer in layers:
                steps[f"{name}.{layer}"] = [base.sites[f"{name}.{layer}"]]
        where = None if self.positions is None else list(self.positions)
        for row, sender in enumerate(senders):
            value = source.sites[sender.site]
            value = value if where is None else value[:, where]
            heads = None if sender.head is None else [sender.head]
            value = value if sender.head is None else value[:, :, heads]
            steps.setdefault(sender.site, []).append(at(value, rows=[row], positions=where, heads=heads))
        readers = [reader for target in targets for reader in target.readers]
        wanted = sorted({site for reader in readers for site in [graph.stream_site(reader)]})
        return intervene(graph.model, base.ids.expand(len(senders), -1), dict(steps), capture=wanted)

    def _runs(self, model: Model, index: int) -> PairRuns:
        answer, foil = self.told_apart(index)
        return pair_runs(
            model,
            self.pair(index),
            self._kept(model),
            direction=self.direction,
            metrics=(self.metric,),
            answer=answer,
            foil=foil,
            both=True,
        )

    def _kept(self, model: Model) -> list[str]:
        """What senders write, and what is held between."""
        sites = [site for name in ("z", "mlp_out") for site in model.sites(name)]
        return list(dict.fromkeys([*sites, *(s.site for s in find_senders(graph_of(model), self.senders))]))

    def _copied(self, model: Model, first: PairRuns) -> Recording:
        return record(model, first.indifferent(model, self.seed), sites=self._kept(model))

    def _attributes(self, model: Model, runs: Pieces) -> dict[str, Any]:
        return {
            **self.described(model),
            "middle": self.middle,
            "direction": self.direction,
            "metric": self.metric,
            "engine": engine_named([runs["fallback"]]),
        }

    def _validate(self, model: Model) -> None:
        self.check_settings((self.metric,))
        graph, length = graph_of(model), len(self.clean[0])
        senders, targets = find_senders(graph, self.senders), find_targets(graph, self.receivers)
        if any(not -length <= p < length for p in self.positions or ()) or self.positions == ():
            raise BadInput(f"positions={self.positions}: the prompts have {length}, from 0 to {length - 1}")
        if min(sender.stage for sender in senders) >= max(target.stage for target in targets):
            raise BadInput(
                f"senders={self.senders}, receivers={self.receivers}: every receiver reads before any sender writes"
            )


def path_patch(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    *,
    senders: Sequence[str],
    receivers: Sequence[str] = ("logits",),
    answer: str | int | Sequence[str] | Sequence[int] | None = None,
    foil: str | int | Sequence[str] | Sequence[int] | None = None,
    middle: Middle = "frozen",
    positions: Sequence[int] | None = None,
    direction: Direction = "denoise",
    metric: Metric | None = None,
    baseline: bool = True,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what some parts tell others of what makes two prompts differ.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        clean: a prompt, or several, as text or token ids.
        corrupted: as many prompts of the same number of tokens.
        senders: what writes: ``head.3.5``, ``mlp.3``, ``attention.3``, ``resid.3`` (the stream entering block 3),
            ``embed``, or ``heads`` and ``mlps`` for all.
        receivers: what reads: ``q.5.1``, ``k.5.0``, ``v.5.0``, ``mlp.5``, ``resid.5``, ``logits``; ``head.5.1`` (its
            three inputs) where heads share no keys and values.
        answer: the clean prompt's answer, a single token with its leading space; one for all pairs or one each.
        foil: what the logit difference is taken against, for example the corrupted prompt's answer.
        middle: what recomputes between sender and receiver: nothing (``frozen``), ``mlps``, or everything
            (``recomputed``).
        positions: where senders are patched; every position by default.
        direction: ``denoise`` puts clean values into the corrupted run, ``noise`` corrupted ones into the clean run.
        metric: by default the logit difference, the log-probability or KL, as the answer and the foil allow.
        baseline: also take what senders write from a copy of the first base prompt where nothing is to be found.
        seed: of the copy's tokens.
        max_rows: most rows in one exact pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[sender, receiver]`` and ``normalised_effect`` with ``_stderr``, ``_low``
        and ``_high`` over pairs, NaN where the receiver reads before the sender writes; ``baseline_effect``;
        ``metric_base``, ``metric_source`` and ``total_effect``.

    Raises:
        BadInput: prompts of different length, a metric that needs an answer and has none, or a sender, receiver or
            position that is not there.
    """
    given = paired(model, clean, corrupted, answer, foil)
    measurement = PathPatching(
        **given,
        senders=words_of(senders),
        receivers=words_of(receivers),
        middle=middle,
        positions=None if positions is None else tuple(map(int, positions)),
        direction=direction,
        metric=metric or best_metric(given["answers"], given["foils"]),
        baseline=baseline,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)
