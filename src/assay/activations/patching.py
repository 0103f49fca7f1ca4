r"""Patching: which places, taken from one prompt's run and put into another's, carry what makes the two differ.

A clean and a corrupted prompt of one length give two runs. Denoising puts one activation of the clean run into the
corrupted run (is it sufficient?), noising one of the corrupted run into the clean one (is it necessary?). With
:math:`M` a metric at the last position,

.. math:: e = M_\mathrm{patched} - M_\mathrm{base}, \qquad
          \hat e = \frac{\overline{e}}{\overline{M_\mathrm{source} - M_\mathrm{base}}}

where the base is the run that is patched and the source the run that values come from; the means are over pairs, so
:math:`\hat e` is 0 where patching does nothing and 1 where it turns one run into the other. Sources: Vig et al.,
2004.12265; Zhang and Nanda, 2309.16042 (prefer symmetric token replacement, and the logit difference).

Intervals are over pairs. The baseline patches the same places from a copy of the base prompt that differs from it in
tokens that do not matter (:mod:`assay.activations.indifferent`), so that there is nothing to find.

Cost: exact partial forwards (:mod:`assay.models.partial`), about (T-b)^2 L^2 H / 4 block-tokens a pair, for T tokens
that first differ at b, L layers, and H heads where heads are patched one by one; the baseline as much again.

Limits: an effect says that a place carries the difference between these prompts, not what it computes; denoising and
noising answer different questions, and parts that back each other up are seen by one of them only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.patching import patching_checks
from assay.activations.effects import PARTS
from assay.activations.engine import engine_named, reason_kept
from assay.activations.paired import Paired, paired
from assay.activations.prompt_pairs import (
    Direction,
    Metric,
    PairRuns,
    Prompts,
    measurable,
    pair_runs,
    words_of,
)
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.estimates.ratio import ratio_interval
from assay.models.model import Model
from assay.models.partial import Recording, record
from assay.models.sites import HEADED, PER_LAYER, canonical, split
from assay.runs.measurement import Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

SITES = tuple(name for name in PER_LAYER if name != "pattern" and not name.endswith("_scale"))


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        pairs: the two runs of each pair.
        copied: runs of indifferent copies of the first base prompts.
    """

    pairs: list[PairRuns]
    copied: list[Recording]


@dataclass(frozen=True, kw_only=True)
class Patching(Paired):
    """Which places carry what makes two prompts differ.

    Attributes:
        site: what is patched, at each layer.
        direction: ``denoise`` or ``noise``.
        metrics: what is measured at the last position.
        by_head: patch the heads of q, k, v or z one by one.
        heads: which heads; ``None`` for all.
        positions: where; ``None`` for every position.
        baseline_pairs: pairs that are also patched from a copy where nothing is to be found; 0 for none.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "patching"
    revision: ClassVar[int] = 3
    site: str = "resid_pre"
    direction: Direction = "denoise"
    metrics: tuple[Metric, ...] = ("kl_from_clean",)
    by_head: bool = False
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    baseline_pairs: int = 1
    max_rows: int | None = None

    @property
    def where(self) -> list[int]:
        """The positions that are patched, ascending."""
        return sorted({p % self.length for p in self.positions or range(self.length)})

    def prepare(self, model: Model) -> Shared:
        """Run both prompts of every pair once, and the copies of the baseline."""
        pairs = [self._runs(model, index) for index in range(len(self.clean))]
        copied = [
            record(model, runs.indifferent(model, self.seed + index), sites=model.sites(self.site))
            for index, runs in enumerate(pairs[: self.baseline_pairs])
        ]
        return Shared(pairs, copied)

    def plan(self, model: Model) -> Sequence[Unit]:
        """The runs themselves, and every position.

        Raises:
            BadInput: prompts that do not pair, a metric without its answer, or a site, head or position this model
                does not have.
        """
        self._validate(model)
        work = len(self.clean) + min(self.baseline_pairs, len(self.clean))
        return [
            Unit("runs", {}),
            *(
                Unit(f"position-{p:05d}", {"position": p}, cost=10 * (self.length - p) * work)
                for p in self.where
            ),
        ]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Measure the runs themselves, or patch every layer and head at one position of every pair."""
        copies = list(zip(shared.pairs, shared.copied, strict=False))
        if unit.name == "runs":
            return {
                "base": torch.stack([runs.of_run(runs.base) for runs in shared.pairs]),
                "source": torch.stack([runs.of_run(runs.source) for runs in shared.pairs]),
                "copied": torch.stack([self._apart(*both) for both in copies]) if copies else torch.zeros(0),
                "replaced": torch.tensor([int((other.ids != runs.base.ids).sum()) for runs, other in copies]),
                "fallback": reason_kept(shared.pairs[0].base.fallback),
            }
        position, places = unit.detail["position"], self._places(model)
        columns = [self._column(runs, runs.source, places, position) for runs in shared.pairs]
        pieces = {"patched": torch.stack(columns)}
        if copies:
            effects = [
                self._column(runs, other, places, position) - runs.of_run(runs.base) for runs, other in copies
            ]
            pieces["null"] = torch.stack(effects).mean(0, keepdim=True)
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take effects and their intervals over pairs."""
        columns = [pieces[f"position-{p:05d}"] for p in self.where]
        patched = self._grid(model, [column["patched"] for column in columns])
        base, source = (pieces["runs"][name].double().numpy() for name in ("base", "source"))
        total = source - base  # pair, metric
        across = (slice(None), slice(None), *[None] * (patched.ndim - 2))
        effect = patched - base[across]
        cells = ("metric", "layer", "position", *(("head",) if self.by_head else ()))
        named = {
            "effect": (cells, mean_interval(effect)),
            "total_effect": (("metric",), mean_interval(total)),
            "normalised_effect": (cells, ratio_interval(effect, total[across])),
        }
        variables: dict[str, Any] = {
            "metric_base": (("metric",), base.mean(0)),
            "metric_source": (("metric",), source.mean(0)),
            "metric_patched": (cells, patched.mean(0)),
        }
        for name, (dims, parts) in named.items():
            for part, values in zip(PARTS, parts, strict=True):
                undefined = {"allow_nan": True} if name == "normalised_effect" else {}
                variables[name + part] = (dims, values, undefined or (self.few if part else {}))
        if self.baseline_pairs:
            variables["baseline_effect"] = (cells, self._grid(model, [c["null"] for c in columns])[0])
            apart = pieces["runs"]["copied"].double().numpy().mean(0)
            variables["baseline_total_effect"] = (("metric",), apart)
            variables["baseline_replaced"] = ((), float(pieces["runs"]["replaced"].double().mean()))
        return xr.Dataset(variables, self._coordinates(model), self._attributes(model, pieces["runs"]))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The prompts differ in the metric, little is found where nothing is, the last state is the source run."""
        return patching_checks(dataset)

    def memory(self, model: Model) -> int:
        """The recorded runs of every pair, and the rows of one pass."""
        runs = 2 * len(self.clean) + min(self.baseline_pairs, len(self.clean))
        rows = self.max_rows or len(self._places(model))
        return 4 * model.d_model * self.length * (6 * model.n_layers * runs + 16 * rows)

    def _layers(self, model: Model) -> list[int]:
        return [int(site.rpartition(".")[2]) for site in model.sites(self.site)]

    def _heads(self, model: Model) -> list[int | None]:
        if not self.by_head:
            return [None]
        block = model.parts.blocks[0]
        count = block.n_kv_heads if self.site in ("k", "v") else block.n_heads
        return [head % count for head in self.heads] if self.heads is not None else list(range(count))

    def _places(self, model: Model) -> list[tuple[str, int | None]]:
        heads = self._heads(model)
        return [(f"{self.site}.{layer}", head) for layer in self._layers(model) for head in heads]

    def _runs(self, model: Model, index: int) -> PairRuns:
        answer, foil = self.told_apart(index)
        return pair_runs(
            model,
            self.pair(index),
            model.sites(self.site),
            direction=self.direction,
            metrics=self.metrics,
            answer=answer,
            foil=foil,
        )

    def _apart(self, runs: PairRuns, copied: Recording) -> Tensor:
        return runs.of_run(copied) - runs.of_run(runs.base)

    def _column(
        self, runs: PairRuns, source: Recording, places: list[tuple[str, int | None]], position: int
    ) -> Tensor:
        """(place, metric) at one position; before the prompts first differ both runs are the same."""
        if torch.equal(source.ids[:, : position + 1], runs.base.ids[:, : position + 1]):
            return runs.of_run(runs.base).expand(len(places), -1)
        return runs.patched(source, places, position, self.max_rows)

    def _grid(self, model: Model, columns: Sequence[Tensor]) -> np.ndarray:
        """(pair, metric, layer, position) and head where heads are apart, from a (pair, place, metric) a position."""
        stacked = torch.stack(list(columns), 1).double()  # pair, position, place, metric
        shape = (len(self._layers(model)), len(self._heads(model)))
        grid = stacked.unflatten(2, shape).permute(0, 4, 2, 1, 3).numpy()
        return grid if self.by_head else grid[..., 0]

    def _coordinates(self, model: Model) -> dict[str, Any]:
        where = self.where
        texts = {
            name: np.array([[model.token_texts(row)[p] for p in where] for row in rows])
            for name, rows in (("clean_token", self.clean), ("corrupted_token", self.corrupted))
        }
        differs = np.array(self.clean)[:, where] != np.array(self.corrupted)[:, where]
        return {
            "metric": list(self.metrics),
            "layer": self._layers(model),
            "position": where,
            "pair": np.arange(len(self.clean)),
            **{name: (("pair", "position"), values) for name, values in texts.items()},
            "token": (
                "position",
                texts["clean_token" if self.direction == "noise" else "corrupted_token"][0],
            ),
            "differs": ("position", differs.any(0)),
            **({"head": self._heads(model)} if self.by_head else {}),
        }

    def _attributes(self, model: Model, runs: Pieces) -> dict[str, Any]:
        return {
            **self.described(model),
            "site": self.site,
            "direction": self.direction,
            "last_position": self.length - 1,
            "n_layers": model.n_layers,
            "engine": engine_named([runs["fallback"]]),
        }

    def _validate(self, model: Model) -> None:
        self.check_settings(self.metrics)
        self._validate_places(model)
        if self.baseline_pairs < 0:
            raise BadInput(f"baseline_pairs={self.baseline_pairs}: give 0 for no baseline, or more")

    def _validate_places(self, model: Model) -> None:
        name, layer = split(canonical(self.site))
        if layer is not None and name in SITES:
            raise BadInput(
                f"site={self.site!r} is of one layer; give site={name!r}, which is patched at each"
            )
        if self.site not in SITES:
            raise BadInput(
                f"site={self.site!r} cannot be patched by layer and position; sites are {', '.join(SITES)}"
            )
        if not model.sites(self.site):
            raise BadInput(f"site={self.site!r}: {model.source} computes no such tensor; see model.sites()")
        if any(not -self.length <= p < self.length for p in self.positions or ()) or self.positions == ():
            raise BadInput(
                f"positions={self.positions}: the prompts have {self.length}, from 0 to {self.length - 1}"
            )
        if not self.by_head:
            if self.heads is not None:
                raise BadInput(f"heads={self.heads} are patched one by one only with by_head=True")
            return
        if self.site not in HEADED:
            raise BadInput(f"by_head=True: {self.site!r} has no heads; q, k, v and z have")
        block = model.parts.blocks[0]
        count = block.n_kv_heads if self.site in ("k", "v") else block.n_heads
        heads = range(count) if self.heads is None else self.heads
        if not heads or any(not -count <= head < count for head in heads) or len(set(heads)) < len(heads):
            raise BadInput(
                f"heads={self.heads}: {self.site!r} has {count}, numbered 0 to {count - 1}; each once"
            )


def patch(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    clean: Prompts,
    corrupted: Prompts,
    *,
    answer: str | int | Sequence[str] | Sequence[int] | None = None,
    foil: str | int | Sequence[str] | Sequence[int] | None = None,
    site: str = "resid_pre",
    direction: Direction = "denoise",
    metrics: Sequence[Metric] | None = None,
    by_head: bool = False,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    baseline_pairs: int = 1,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find which places, taken from one prompt's run and put into another's, carry their difference.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        clean: a prompt, or several, as text or token ids.
        corrupted: as many prompts of the same number of tokens.
        answer: the clean prompt's answer, a single token with its leading space; one for all pairs or one each.
        foil: what the logit difference is taken against, for example the corrupted prompt's answer.
        site: what is patched at each layer: ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out``, ``mlp_out``,
            ``z``, ``q``, ``k``, ``v``, ``mlp_act`` and others.
        direction: ``denoise`` puts clean values into the corrupted run, ``noise`` corrupted ones into the clean run.
        metrics: ``log_probability``, ``probability``, ``logit_difference``, ``kl_from_clean`` (nats); by default all
            that the answer and the foil allow.
        by_head: patch the heads of q, k, v or z one by one.
        heads: which heads; all by default.
        positions: where; every position by default, negative ones from the end.
        baseline_pairs: pairs that are also patched from a copy of the patched prompt with other tokens where they do
            not matter, so that nothing is to be found; 0 for none.
        seed: of the copies' tokens.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[metric, layer, position]`` (and ``head``), its ``_stderr``, ``_low`` and
        ``_high`` over pairs; ``normalised_effect`` likewise, 1 where patching turns one run into the other;
        ``total_effect[metric]``; ``metric_base``, ``metric_source``, ``metric_patched``; and ``baseline_effect`` and
        ``baseline_total_effect`` where nothing is to be found.

    Raises:
        BadInput: prompts of different length, a metric that needs an answer and has none, a head or position out of
            range, or a site that cannot be patched.
    """
    given = paired(model, clean, corrupted, answer, foil)
    there = {name for name, ids in (("answer", given["answers"]), ("foil", given["foils"])) if ids}
    chosen = words_of(metrics) if metrics is not None else measurable(there)
    measurement = Patching(
        **given,
        site=canonical_site(site),
        direction=direction,
        metrics=chosen,
        by_head=by_head,
        heads=None if heads is None else tuple(map(int, heads)),
        positions=None if positions is None else tuple(map(int, positions)),
        baseline_pairs=baseline_pairs,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)


def canonical_site(site: str) -> str:
    """The name of a site without its layer: given as such, or by a TransformerLens name (``hook_z``).

    Args:
        site: the name.

    Returns:
        The project's name; what was given, where it is none.
    """
    for path in (f"blocks.0.{site}", f"blocks.0.attn.{site}", f"blocks.0.mlp.{site}"):
        name, layer = split(canonical(path))
        if layer is not None:
            return name
    return site
