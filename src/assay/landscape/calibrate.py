r"""The plane of step size and temperature: where the estimate of the learning coefficient depends on neither.

Every setting :math:`(\varepsilon, n\beta)` is a few chains, and all settings walk as one batched run, of large modules
one after the other, with common random numbers: chain c sees the same noise at every setting. On the plateau the
estimate is steady: steps small enough that their bias is small, large enough that chains forget where they began, and a
temperature at which the law :math:`E[n\beta (L - L^*)] \to \lambda` already holds. `assay.learning_coefficient` finds
such a step size by itself; this is to see it, and to see how much the choice of temperature matters.

A setting is on the plateau when none of its chains diverged, they agree and do not drift, the step size adds less than
`TOLERABLE`, its estimate is that of its temperature (within two standard errors or `STEADY` of the median over the
sound step sizes), and all this holds of the next smaller or the next larger step size too.

Cost: settings x chains x (burn_in + draws) gradients of one batch. Limits: all settings walk equally long, so the
smallest steps go least far.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, Unpack, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from assay.errors import BadInput
from assay.estimates.checks import Check, graded
from assay.landscape.calibration import Aim, run
from assay.landscape.chains import Chains, walk
from assay.landscape.chance import chain_seeds
from assay.landscape.estimators import NUMBERS, Draws, mean
from assay.landscape.learning_coefficient import LearningCoefficient
from assay.landscape.learning_coefficient_checks import minimum
from assay.landscape.learning_coefficient_settings import require
from assay.landscape.losses import Loss, loss_name, next_token
from assay.landscape.minimum import Anchor
from assay.landscape.samplers.settings import sampler_settings_of
from assay.landscape.target import Data, Target, target
from assay.landscape.walks import bias_of_loss
from assay.models.model import Model
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

STEPS = tuple(2.0**power for power in range(-6, 4))
"""Step sizes that are looked at where none are given, in units of the one that a short run finds."""
TEMPERATURES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Values of n beta where none are given, in units of n / ln n."""
ROOM = 2**26
"""Weights of all chains up to which settings are walked as one."""
TOLERABLE, STEADY, AGREEING = 0.15, 0.05, 1.1
"""Bias as a share of the estimate, deviation from the temperature's median, and split R-hat, on the plateau."""
SPREAD = 0.1
"""Share of the estimate by which the plateaus of two temperatures may differ."""


@dataclass(frozen=True)
class Plane:
    """What is walked.

    Attributes:
        anchor: what is known of it.
        step_size: epsilon, ascending.
        found: the step size a short run found; NaN where all were given.
    """

    anchor: Anchor
    step_size: tuple[float, ...]
    found: float


@dataclass(frozen=True, kw_only=True)
class Calibrate(Measurement):
    """The estimate over a plane of step sizes and temperatures.

    Attributes:
        data: hash of the data, as `Target.data_hash` gives it.
        loss: name of the loss, as `loss_name` gives it.
        step_sizes: epsilon, ascending; ten around the one a short run finds when None.
        n_betas: n beta, ascending; five around n / ln n when None.
        localization: gamma.
        chains: at each setting, at least 2.
        draws: steps of each chain that are averaged, at least 8.
        burn_in: steps before them.
        batch_size: examples in a batch; None takes all of the data, "auto" as many as are cheap.
        momentum: the share of its momentum that a step keeps; as in `LearningCoefficient` when None.
        seed: of noise and batches.
    """

    name: ClassVar[str] = "calibrate"
    made_by: ClassVar[str | None] = "assay.landscape.target.target(module, loss, data, mask=...)"
    revision: ClassVar[int] = 5
    data: str
    loss: str
    step_sizes: tuple[float, ...] | None = None
    n_betas: tuple[float, ...] | None = None
    localization: float = 1.0
    chains: int = 4
    draws: int = 1000
    burn_in: int = 1000
    batch_size: int | Literal["auto"] | None = "auto"
    momentum: float | None = None
    seed: int = 0

    def data_hash(self) -> str:
        """Give the hash of the data the settings name."""
        return self.data

    def at(self, n_beta: float | None = None) -> LearningCoefficient:
        """Give the estimate at one temperature, whose defaults hold here too."""
        return LearningCoefficient(
            data=self.data,
            loss=self.loss,
            step_size="auto" if self.step_sizes is None else 1.0,  # where given, it is not found in burn-in
            n_beta=n_beta,
            localization=self.localization,
            chains=self.chains,
            draws=self.draws,
            burn_in=self.burn_in,
            batch_size=self.batch_size,
            sampler_settings=sampler_settings_of("sgld", None, self.momentum),
            seed=self.seed,
        )

    def temperatures(self, model: Target) -> tuple[float, ...]:
        """Give the values of n beta: as set, or around n / ln n."""
        if self.n_betas is not None:
            return self.n_betas
        return tuple(ratio * self.at().temperature(model) for ratio in TEMPERATURES)

    def plan(self, model: Target) -> Sequence[Unit]:
        """One batched run; of a large module, whose chains would not fit in memory, one after the other.

        Raises:
            BadInput: a setting out of range, or other data than those the settings name.
        """
        require(self.at(None if self.n_betas is None else 1.0), model)
        for name, values in (("step_sizes", self.step_sizes), ("n_betas", self.n_betas)):
            if values is not None and (not values or min(values) <= 0 or list(values) != sorted(set(values))):
                raise BadInput(f"{name}={values}: give positive values, ascending, each once.")
        count = len(self.step_sizes or STEPS) * len(self.temperatures(model))
        together = self._together(model)
        return [
            Unit(f"settings-{start:03d}", {"start": start, "stop": stop}, stop - start)
            for start in range(0, count, together)
            for stop in [min(start + together, count)]
        ]

    def _together(self, model: Target) -> int:
        """Tell how many settings are walked as one."""
        return max(1, ROOM // (self.chains * model.d))

    def prepare(self, model: Target) -> Plane:
        """Look at the anchor, and find the step size around which to look where none are given."""
        n_beta = self.temperatures(model)[len(self.temperatures(model)) // 2]
        anchor = self.at(n_beta).prepare(model)
        if self.step_sizes is not None:
            return Plane(anchor, self.step_sizes, float("nan"))
        aim = Aim(None, self.burn_in, 8, 0.05, 1.0, self.burn_in + 8)
        chains = self._chains(model, [(1.0, n_beta)])
        found = run(model, chains, self.at().stepping(model), aim, float(anchor.loss)).step_size
        return Plane(anchor, tuple(found * ratio for ratio in STEPS), found)

    def _chains(self, model: Target, settings: Sequence[tuple[float, float]]) -> Chains:
        """Lay out the chains of settings (step size, n beta) as one row; a chain has the same seed at every one."""
        seeds = chain_seeds(self.seed, range(self.chains))
        epsilon, beta = torch.tensor(settings, dtype=torch.float64).repeat_interleave(self.chains, 0).T
        masks = None if model.mask is None else model.mask[None]
        gamma, batch = torch.full_like(epsilon, self.localization), self.at().batch(model)
        return Chains(seeds * len(settings), epsilon, beta, gamma, masks, batch)

    def measure(self, model: Target, unit: Unit, shared: Plane) -> Pieces:
        """Walk the chains of some settings as one."""
        plane = [*product(shared.step_size, self.temperatures(model))]
        settings = plane[unit.detail["start"] : unit.detail["stop"]]
        chains, sampler = self._chains(model, settings), self.at().stepping(model)
        traces = walk(model, chains, self.burn_in + self.draws, sampler)
        bias = bias_of_loss(traces, chains, sampler)
        shape = (len(settings), self.chains, self.draws)
        return {
            "loss": traces.loss[:, self.burn_in :].cpu().reshape(shape),
            "bias": bias[:, self.burn_in :].cpu().reshape(shape),
            "step_size": torch.tensor(shared.step_size, dtype=torch.float64),
            "found": torch.tensor(shared.found, dtype=torch.float64),
            "anchor_loss": shared.anchor.loss,
            "downhill": shared.anchor.downhill,
        }

    def combine(self, model: Target, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Estimate at every setting, and mark the plateau."""
        parts, n_betas = list(pieces.values()), self.temperatures(model)
        walked, shape = parts[0], (len(parts[0]["step_size"]), len(n_betas), self.chains, self.draws)
        loss, bias = (
            torch.cat([part[name] for part in parts]).view(shape).numpy() for name in ("loss", "bias")
        )
        names = (*NUMBERS, "llc_raw", "llc_bias")
        plane = np.full((len(names), *loss.shape[:2]), np.nan)
        finite = np.asarray(np.isfinite(loss * bias).all(-1))
        for row, column in np.ndindex(loss.shape[:2]):
            kept = finite[row, column]
            draws = Draws(
                loss[row, column, kept],
                bias[row, column, kept],
                n_betas[column],
                float(walked["anchor_loss"]),
            )
            if kept.sum() >= 2:
                found = mean(draws)
                plane[:, row, column] = [found[name] for name in names]
        dims = ("step_size", "n_beta")
        dataset = xr.Dataset(
            {name: (dims, values, {"allow_nan": True}) for name, values in zip(names, plane, strict=True)},
            {"step_size": walked["step_size"].numpy(), "n_beta": np.array(n_betas)},
            {"model": model.source, "loss": self.loss, "examples": model.n, "chains": self.chains},
        )
        dataset["diverged"] = (dims, (~finite).sum(-1))
        dataset["plateau"] = plateau(dataset)
        for part in ("", "_low", "_high", "_stderr"):
            dataset[f"llc_plateau{part}"] = _level(dataset[f"llc{part}"].where(dataset["plateau"]))
        dataset["anchor_downhill"] = float(walked["downhill"])
        dataset["step_size_found"] = ((), float(walked["found"]), {"allow_nan": True})
        return dataset

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge whether the anchor is a minimum, and whether there is a plateau, the same at all temperatures."""
        middle = dataset["llc_raw"].isel(n_beta=dataset.sizes["n_beta"] // 2)
        found = [minimum(float(dataset["anchor_downhill"]), float(middle.median()))]
        steady = dataset["plateau"]
        count, of = int(steady.sum()), steady.sizes["n_beta"]
        at = int(steady.any("step_size").sum())
        message = f"{count} of {steady.size} settings are on the plateau, at {at} of {of} temperatures."
        remedy = "Look at other step sizes, or walk longer; without a plateau there is no estimate to trust."
        if not count:
            return [*found, Check("L211", "no plateau", "fail", 0.0, message, remedy)]
        found.append(Check("L211", "no plateau", "pass", float(count), message))
        return found if at < 2 else [*found, _temperature(dataset)]

    def memory(self, model: Target) -> int:
        """Positions, gradients and noise of the chains walked together, and the traces of all."""
        settings = len(self.step_sizes or STEPS) * len(self.temperatures(model))
        together = min(settings, self._together(model))
        buffers = together * self.chains * 6 * model.d * model.dtype.itemsize
        return buffers + settings * self.chains * 5 * 8 * (self.burn_in + self.draws)


def plateau(dataset: xr.Dataset) -> xr.DataArray:
    """Mark the settings at which the estimate is steady; see the head of this module."""
    llc = dataset["llc"]
    share = dataset["llc_bias"] / np.abs(llc)
    still = np.abs(dataset["drift"]) <= np.maximum(3 * dataset["drift_stderr"], 0.02 * np.abs(llc))
    sound = (
        (dataset["diverged"] == 0) & (share <= TOLERABLE) & (dataset["r_hat"] <= AGREEING) & still & (llc > 0)
    )
    level = _level(llc.where(sound))
    near = np.abs(llc - level) <= np.maximum(2 * dataset["llc_stderr"], STEADY * np.abs(level))
    steady = sound & near
    smaller, larger = (steady.shift(step_size=places, fill_value=False) for places in (1, -1))
    return steady & (smaller | larger)


def _level(plane: xr.DataArray) -> xr.DataArray:
    """The median over step sizes, at each temperature; NaN where there is none."""
    level = plane.median("step_size")
    level.attrs["allow_nan"] = True
    return level


def _temperature(dataset: xr.Dataset) -> Check:
    """Judge how far the plateaus of different temperatures lie apart, where that is beyond chance."""
    known = dataset[["llc_plateau", "llc_plateau_stderr"]].dropna("n_beta")
    level = known["llc_plateau"]
    low, high = (
        known.isel(n_beta=int(place)) for place in (np.argmin(level.values), np.argmax(level.values))
    )
    apart = float(high["llc_plateau"] - low["llc_plateau"])
    chance = 3 * math.hypot(float(high["llc_plateau_stderr"]), float(low["llc_plateau_stderr"]))
    share = apart / float(level.median())
    message = (
        f"The plateaus lie from {float(low['llc_plateau']):.4g} (n beta {float(low['n_beta']):.4g}) to "
        f"{float(high['llc_plateau']):.4g} (n beta {float(high['n_beta']):.4g}), {share:.0%} of their median apart."
    )
    remedy = (
        "State n beta with the estimate, and compare only estimates of one. Where it rises with n beta, the "
        "localization holds directions that the loss hardly does: a smaller one holds fewer."
    )
    limits = (SPREAD, math.inf)
    title = "the estimate depends on the temperature"
    return graded("L212", title, share if apart > chance else 0.0, limits, message, remedy)


def calibrate(  # noqa: PLR0913 (each is one documented setting of the plane)
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    *,
    step_sizes: Sequence[float] | None = None,
    n_betas: Sequence[float] | None = None,
    localization: float = 1.0,
    chains: int = 4,
    draws: int = 1000,
    burn_in: int = 1000,
    batch_size: int | Literal["auto"] | None = "auto",
    momentum: float | None = None,
    mask: Mapping[str, Tensor] | Tensor | str | None = None,
    seed: int = 0,
    source: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Estimate the learning coefficient over a plane of step sizes and temperatures, as one batched run.

    Args:
        module: as `assay.learning_coefficient` takes it, and so ``loss``, ``data`` and ``mask``.
        loss: see there.
        data: see there.
        step_sizes: epsilon, ascending; ten around the one a short run finds when not given.
        n_betas: n beta, ascending; five around n / ln n when not given.
        localization: gamma.
        chains: at each setting.
        draws: steps of each chain that are averaged.
        burn_in: steps before them.
        batch_size: examples in a batch; None takes all of the data, "auto" as many as are cheap.
        momentum: the share of its momentum that a step keeps; as in `assay.learning_coefficient` when not given.
        mask: see there.
        seed: of noise and batches.
        source: what run folders call the module; its class when not given.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds over (step_size, n_beta) ``llc`` with ``llc_stderr``, ``llc_low`` and ``llc_high``,
        ``llc_raw``, ``llc_bias``, the diagnostics, how many chains ``diverged``, and ``plateau``; over (n_beta)
        ``llc_plateau``, the median on the plateau, with the medians of standard errors and interval ends there; and
        ``step_size_found``, the step size a short run found.

    What cannot be sampled, and a setting out of range, is `BadInput`.
    """
    model = target(module, loss, data, mask=mask, source=source)
    measurement = Calibrate(
        data=model.data_hash(),
        loss=loss_name(loss or next_token),
        step_sizes=_floats("step_sizes", step_sizes),
        n_betas=_floats("n_betas", n_betas),
        localization=localization,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        batch_size=batch_size,
        momentum=momentum,
        seed=seed,
    )
    return perform(measurement, model, **run)


def _floats(name: str, values: object) -> tuple[float, ...] | None:
    """Read the values of an axis, of whatever was passed."""
    if values is None:
        return None
    try:
        return tuple(float(value) for value in cast("Sequence[float]", values))
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{name}={values!r}: give a tuple of numbers, ascending; leave it out to have them found."
        ) from error
