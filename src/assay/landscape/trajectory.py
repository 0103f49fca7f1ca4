r"""The learning coefficient over training: loss and LLC at every checkpoint, where they change, and whether together.

At each checkpoint :math:`w_t` the estimate of `assay.learning_coefficient` is made with common random numbers: chain c
sees the same noise and the same batches at every checkpoint, so that what changes from one to the next is the landscape
and not the luck. As there, the first-order bias of the step size is taken off, and told as ``llc_bias``. Several
checkpoints are walked as one batched run.

Change points of both curves come from moving sums (`assay.estimates.change_points`). Alignment is the share of drops in
loss that come with a rise in LLC; chance is the same share with the LLC of another run, or, for a single run, with its
own shifted in time (`assay.estimates.alignment`).

Cost: checkpoints x chains x (burn_in + draws) gradients of one batch. Limits: a checkpoint in the middle of training is
seldom a minimum, and there the number describes what a localized sampler finds, and is no learning coefficient;
``at_minimum`` tells which are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.landscape.anchored import Group
from assay.landscape.chains import Chains, walk
from assay.landscape.chance import chain_seeds
from assay.landscape.checkpoints import Course, Source, course
from assay.landscape.estimators import NUMBERS, summary
from assay.landscape.learning_coefficient import LearningCoefficient
from assay.landscape.learning_coefficient_settings import require
from assay.landscape.losses import Loss, loss_name
from assay.landscape.minimum import steepest
from assay.landscape.probe import Probe
from assay.landscape.samplers.settings import Setting, sampler_settings_of
from assay.landscape.target import Data
from assay.landscape.trajectory_checks import judge
from assay.landscape.transitions import transitions
from assay.landscape.walks import bias_of_loss
from assay.models.model import Model
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

STIFF = 0.2
"""Step size times the largest curvature. A mode of curvature h has a variance 1 / (1 - epsilon h / 4) too wide."""
ROUNDS = 12
"""Products with the Hessian in which the largest curvature is found."""


@dataclass(frozen=True, kw_only=True)
class Trajectory(Measurement):
    """Loss and local learning coefficient at every checkpoint of training.

    Attributes:
        data: hash of the data, as `Target.data_hash` gives it.
        loss: name of the loss whose curve is drawn, as `loss_name` gives it.
        sampled: name of the loss that is sampled.
        step_size: epsilon of the sampler, the same at every checkpoint; ``"auto"`` takes `STIFF` over the largest
            curvature of the potential at any of them (at least 1), so that in a quadratic potential, on all of the
            data, no variance is more than about a twentieth too wide.
        n_beta: number of samples times inverse temperature; n / ln n when None.
        localization: gamma, the precision of the Gaussian that keeps chains near each checkpoint.
        chains: independent chains at each checkpoint, at least 2.
        draws: steps of each chain that are averaged, at least 8.
        burn_in: steps before them, never averaged.
        batch_size: examples in a batch; None takes all of the data at each step.
        sampler: by which steps; a name of `assay.landscape.samplers`. "sgld" is without momentum, unless that is set.
        sampler_settings: of the sampler, by name, as `sampler_settings_of` reads them.
        window: checkpoints in a level before or after a change, and how far apart a drop and a rise may be to count
            as one; a twentieth of the checkpoints, at least 2, when None.
        share: smallest change that counts, as a share of a curve's range.
        known: learning coefficients known in advance, to compare with; they change no estimate.
        checkpoints_at_once: walk this many together, which is one unit; fewer need less memory.
        seed: of noise, batches and shuffles.
    """

    name: ClassVar[str] = "trajectory"
    made_by: ClassVar[str | None] = "assay.landscape.checkpoints.course(module, loss, data, checkpoints, ...)"
    revision: ClassVar[int] = 4
    data: str
    loss: str
    sampled: str
    step_size: float | Literal["auto"] = "auto"
    n_beta: float | None = None
    localization: float = 1.0
    chains: int = 8
    draws: int = 500
    burn_in: int = 500
    batch_size: int | None = None
    sampler: str = "sgld"
    sampler_settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    window: int | None = None
    share: float = 0.05
    known: tuple[float, ...] = ()
    checkpoints_at_once: int = 8
    seed: int = 0

    def data_hash(self) -> str:
        """Give the hash of the data the settings name."""
        return self.data

    def at(self) -> LearningCoefficient:
        """Give the estimate at one checkpoint, with what is set of it."""
        plain = {"momentum": 0.0} if self.sampler == "sgld" else {}
        return LearningCoefficient(
            data=self.data,
            loss=self.sampled,
            step_size=1.0 if self.step_size == "auto" else self.step_size,  # it is not found in burn-in
            n_beta=self.n_beta,
            localization=self.localization,
            chains=self.chains,
            draws=self.draws,
            burn_in=self.burn_in,
            batch_size=self.batch_size,
            sampler=self.sampler,
            sampler_settings={**plain, **self.sampler_settings},
            seed=self.seed,
        )

    def temperature(self, model: Course) -> float:
        """Give n beta: as set, or n / ln n."""
        return self.at().temperature(model.plain)

    def width(self, model: Course) -> int:
        """Give the window: as set, or a twentieth of the checkpoints."""
        return self.window if self.window is not None else max(2, len(model.steps) // 20)

    def plan(self, model: Course) -> Sequence[Unit]:
        """Groups of checkpoints; one at a time where they differ in more than sampled weights.

        Raises:
            BadInput: a setting out of range, or other data than those the settings name.
        """
        self._require(model)
        together = self.checkpoints_at_once if model.together else 1
        count = len(model.steps)
        return [
            Unit(
                f"run-{run:03d}-step-{model.steps[start]:09d}",
                {"run": run, "start": start, "stop": stop},
                stop - start,
            )
            for run in range(len(model.runs))
            for start in range(0, count, together)
            for stop in [min(start + together, count)]
        ]

    def _require(self, model: Course) -> None:
        require(self.at(), model.plain)
        needs = {
            f"checkpoints_at_once={self.checkpoints_at_once}: walk at least 1": self.checkpoints_at_once >= 1,
            f"share={self.share}: from 0 to below 1": 0 <= self.share < 1,
            f"{len(model.steps)} checkpoints with window={self.width(model)}: changes need twice the window": (
                1 <= self.width(model) <= len(model.steps) / 2
            ),
        }
        for message, holds in needs.items():
            if not holds:
                raise BadInput(f"{message}.")

    def prepare(self, model: Course) -> float:
        """Give the step size: as set, or from the largest curvature at any checkpoint."""
        if self.step_size != "auto":
            return self.step_size
        stiffest = [float(self._curvature(model, unit)) for unit in self.plan(model)]
        return STIFF / max(1.0, *stiffest)  # of a landscape that is flat everywhere nothing is to be had

    def _curvature(self, model: Course, unit: Unit) -> Tensor:
        """Give the largest curvature of the potential at a group of checkpoints."""
        group, places = self._group(model, unit)
        chains = self._chains(model, group, places, 0.0, 1)
        found = Probe(group.target, chains, group.gradient(1)).curvature(rounds=ROUNDS)
        _require_finite(model, unit, "gradient", found)
        return found.max()

    def _group(self, model: Course, unit: Unit) -> tuple[Group, int]:
        places = range(unit.detail["start"], unit.detail["stop"])
        group = model.group(unit.detail["run"], places)
        if self.batch_size is None:  # chains see all of the data at each step, and so do looks
            group = replace(group, target=replace(group.target, thorough=True))
        return group, len(places)

    def _chains(self, model: Course, group: Group, places: int, step_size: float, each: int) -> Chains:
        """Give so many chains for each anchor; a chain has the same seed at every one."""
        count, here = places * each, group.target
        seeds = chain_seeds(self.seed, range(each))
        epsilon, beta, gamma = (
            torch.full((count,), value, dtype=torch.float64)
            for value in (step_size, self.temperature(model), self.localization)
        )
        masks = None if here.mask is None else here.mask[None]
        anchors = None if group.anchors is None else group.anchors.repeat_interleave(each, 0)
        return Chains(seeds * places, epsilon, beta, gamma, masks, self.batch_size, anchors)

    def measure(self, model: Course, unit: Unit, shared: float) -> Pieces:
        """Walk all chains of a group of checkpoints.

        Raises:
            BadInput: a loss that is not finite at a checkpoint.
        """
        group, places = self._group(model, unit)
        n_beta, sampler = self.temperature(model), self.at().stepping(model.plain)
        curve, baseline = group.curve(), group.baseline()
        _require_finite(model, unit, "loss", curve + baseline.to(curve))
        chains = self._chains(model, group, places, shared, self.chains)
        traces = walk(group.target, chains, self.burn_in + self.draws, sampler, group.gradient(self.chains))
        parts = (traces.loss, bias_of_loss(traces, chains, sampler), traces.virial - traces.bias)
        loss, bias, half = (part.cpu().view(places, self.chains, -1).numpy() for part in parts)
        excess = n_beta * (loss - baseline.cpu().numpy()[:, None, None])
        directions = self.at().parameters(model.plain)
        estimates = [self._estimate(*rows, directions) for rows in zip(excess, bias, half, strict=True)]
        gains = group.downhill(n_beta, self.localization)
        limits = torch.tensor([steepest(float(each["llc_raw"])) for each in estimates])
        return {
            "loss": curve,
            "step_size": torch.full((places,), shared, dtype=torch.float64),
            "downhill": gains,
            "at_minimum": gains.cpu() <= limits,
            "distance": traces.distance.cpu().view(places, self.chains, -1)[..., -1],
            **{name: torch.stack([each[name] for each in estimates]) for name in estimates[0]},
        }

    def _estimate(self, excess: np.ndarray, bias: np.ndarray, half: np.ndarray, directions: int) -> Pieces:
        """Estimate at one checkpoint from traces (chain, step).

        Args:
            excess: n beta (L - L*).
            bias: what each draw adds to it by its step size.
            half: the virial less the bias of the potential; of a chain at rest half the number of directions.
            directions: in which chains move.
        """
        kept = np.isfinite(excess * bias * half).all(1)
        raw, bias, half = (rows[:, self.burn_in :] for rows in (excess, bias, half))
        after = raw - bias.mean(1, keepdims=True)
        numbers = {
            **{name: value for name, value in summary(after[kept]).items() if name in NUMBERS},
            "llc_raw": raw[kept].mean() if kept.any() else math.nan,
            "llc_bias": bias[kept].mean() if kept.any() else math.nan,
            "unexplored": 1 - 2 * half[kept].mean() / directions if kept.any() else math.nan,
        }
        return {
            **{name: torch.tensor(float(value), dtype=torch.float64) for name, value in numbers.items()},
            "llc_per_chain": torch.from_numpy(np.where(kept, after.mean(1), np.nan)),
        }

    def combine(self, model: Course, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Lay out both curves, and find what changes."""
        parts, runs, count = list(pieces.values()), len(model.runs), len(model.steps)
        joined = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        arrays = {name: values.reshape(runs, count, *values.shape[1:]) for name, values in joined.items()}
        curve = ("run", "step")
        dims = {2: curve, 3: (*curve, "chain")}
        dataset = xr.Dataset(
            {name: (dims[values.ndim], values, {"allow_nan": True}) for name, values in arrays.items()},
            {"run": np.arange(runs), "step": np.array(model.steps), "chain": np.arange(self.chains)},
            {
                "model": model.source,
                "loss": self.loss,
                "sampled": self.sampled,
                "parameters": self.at().parameters(model.plain),
                "examples": model.plain.n,
            },
        )
        dataset["step_size"] = float(dataset["step_size"].max())  # the same everywhere
        dataset["n_beta"] = self.temperature(model)
        if self.known:
            dataset["known"] = ("level", np.array(self.known))
        rng = np.random.default_rng(self.seed)
        dataset = dataset.merge(transitions(dataset, window=self.width(model), share=self.share, rng=rng))
        return dataset.isel(run=0, drop=True) if runs == 1 else dataset

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge chains and anchors over all checkpoints, and the alignment against chance."""
        return judge(dataset)

    def memory(self, model: Course) -> int:
        """Positions, gradients and noise of the chains of one unit, and their traces."""
        together = self.chains * (self.checkpoints_at_once if model.together else 1)
        return together * (6 * model.target.d * model.dtype.itemsize + 5 * 8 * (self.burn_in + self.draws))


def trajectory(  # noqa: PLR0913 (each is one documented setting of the sampler)
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    checkpoints: Source | Sequence[Source],
    *,
    sampled: Loss | str | None = None,
    step_size: float | Literal["auto"] = "auto",
    n_beta: float | None = None,
    localization: float = 1.0,
    chains: int = 8,
    draws: int = 500,
    burn_in: int = 500,
    batch_size: int | None = None,
    sampler: str = "sgld",
    momentum: float | None = None,
    sampler_settings: Mapping[str, float] | Sequence[str] | None = None,
    mask: Mapping[str, Tensor] | Tensor | str | None = None,
    window: int | None = None,
    share: float = 0.05,
    known: Sequence[float] = (),
    checkpoints_at_once: int = 8,
    seed: int = 0,
    source: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Estimate the learning coefficient at every checkpoint of training, with common random numbers.

    Args:
        module: the architecture, or a model as `assay.load` gives it; its own weights play no part.
        loss: whose curve is drawn, as `assay.learning_coefficient` takes it, and so ``data`` and ``mask``.
        data: see there.
        checkpoints: a folder of safetensors named by step, or step -> weights by name; several of these for several
            runs of the same steps.
        sampled: the loss that is sampled, where it is another one: ``"squared_distance_to_anchor"`` and
            ``"kl_to_anchor"`` compare with each checkpoint's own outputs, and make every checkpoint a minimum.
        step_size: epsilon, the same at every checkpoint; chosen for the stiffest of them when ``"auto"``. Look at
            ``llc_bias`` and check L304.
        n_beta: number of samples times inverse temperature; n / ln n when not given.
        localization: gamma.
        chains: independent chains at each checkpoint.
        draws: steps of each chain that are averaged.
        burn_in: steps before them.
        batch_size: examples in a batch; all of the data when not given.
        sampler: by which steps: "sgld" (without momentum, unless that is set), "psgld", "sghmc", "sgnht", "baoab", or
            on all of the data "mala" or "hmc".
        momentum: of "sgld", from 0 to below 1; 0 when not given.
        sampler_settings: what the sampler is told, as `assay.learning_coefficient` takes it.
        mask: see there.
        window: checkpoints in a level before or after a change; a twentieth of them when not given.
        share: smallest change that counts, as a share of a curve's range.
        known: learning coefficients known in advance, drawn as lines.
        checkpoints_at_once: walk this many together; fewer need less memory.
        seed: of noise, batches and shuffles.
        source: what run folders call the module; its class when not given.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds for each step ``loss`` (over all of the data), ``llc`` with ``llc_stderr``,
        ``llc_low`` and ``llc_high``, ``llc_per_chain``, ``llc_raw``, ``llc_bias``, ``at_minimum`` and the diagnostics
        (``r_hat``, ``ess``, ``drift``, ``unexplored``, ``distance``); the change points ``loss_change`` and
        ``llc_change`` (zero where there is none); and ``alignment``, ``correlation`` and
        ``llc_around_drop`` (lag) beside their baselines. With several runs all curves have an axis ``run``.

    Checkpoints that cannot be read, and a setting out of range, are `BadInput`.
    """
    model = course(module, loss, data, checkpoints, sampled=sampled, mask=mask, source=source)
    measurement = Trajectory(
        data=model.plain.data_hash(),
        loss=loss_name(model.plain.loss),
        sampled=loss_name(model.sampled or model.plain.loss),
        step_size=step_size,
        n_beta=n_beta,
        localization=localization,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        batch_size=batch_size,
        sampler=sampler,
        sampler_settings=sampler_settings_of(sampler, sampler_settings, momentum),
        window=window,
        share=share,
        known=_numbers(known),
        checkpoints_at_once=checkpoints_at_once,
        seed=seed,
    )
    return perform(measurement, model, **run)


def _numbers(known: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(each) for each in known)
    except (TypeError, ValueError) as error:
        raise BadInput(f"known={known!r}: expected numbers, such as known=[8.0, 14.0].") from error


def _require_finite(model: Course, unit: Unit, what: str, values: Tensor) -> None:
    """Refuse a checkpoint at which something is not finite, by its step."""
    if bool(values.isfinite().all()):
        return
    step = model.steps[unit.detail["start"] + int(values.isfinite().logical_not().nonzero()[0])]
    raise BadInput(
        f"the {what} is NaN or infinite at step {step} of run {unit.detail['run']}: look at the weights and the data "
        "there, or leave it out."
    )
