r"""The local learning coefficient: how degenerate the minimum is at which training ended.

.. math:: \hat\lambda = n\beta\,\bigl(E_w[L(w)] - L(w^*)\bigr), \qquad
          w \sim \exp\Bigl(-n\beta\,L(w) - \frac{\gamma}{2}\lVert w - w^* \rVert^2\Bigr)

with :math:`n\beta = n/\ln n` unless given. Source: E. Lau, Z. Furman, G. Wang, D. Murfet and S. Wei, "The local
learning coefficient", 2023 (arXiv 2308.12108); the temperature is that of WBIC (S. Watanabe 2013). It has no unit;
d/2 at a minimum without degeneracy, less where directions are flat.

Draws come from stochastic gradient Langevin dynamics, several chains at once. Burn-in is never averaged in, and
:math:`L(w^*)` is taken over all of the data. A step size makes the estimate too large, to first order by
:math:`\frac{\varepsilon}{8} E\lVert\nabla U\rVert^2`, which is reported beside it as ``llc_bias``.

Cost: chains x (burn_in + draws) gradients of one batch. Limits: the coefficient is local, and only means
something at a minimum; step size, length and localization are chosen by the user, and the checks say when badly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from numpy.random import SeedSequence
from torch import Tensor, nn

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.convergence import convergence
from assay.estimates.estimate import mean_interval
from assay.landscape.chains import Chains, walk
from assay.landscape.gradients import mean_loss
from assay.landscape.learning_coefficient_checks import judge
from assay.landscape.losses import Loss, loss_name, next_token
from assay.landscape.samplers import sgld
from assay.landscape.target import Data, Target, target
from assay.models.model import Model
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

TRACE = 1000
"""Steps of a trace that are kept for the picture, evenly spaced."""
LINE = tuple(10.0**power for power in np.arange(-8, 2.5, 0.5))
"""Step lengths at which a minimum is looked for downhill of the anchor, in units of 1 / n beta."""


class Anchor(NamedTuple):
    """What is known of the anchor before any chain starts.

    Attributes:
        loss: over all of the data, ().
        downhill: n beta times the loss that a line search along the gradient gains, ().
    """

    loss: Tensor
    downhill: Tensor


@dataclass(frozen=True, kw_only=True)
class LearningCoefficient(Measurement):
    """The local learning coefficient at a module's present weights.

    Attributes:
        data: hash of the data, as `Target.data_hash` gives it.
        loss: name of the loss, as `loss_name` gives it.
        step_size: epsilon of the sampler.
        n_beta: number of samples times inverse temperature; n / ln n when None.
        localization: gamma, the precision of the Gaussian that keeps chains near the anchor.
        chains: independent chains, at least 2.
        draws: steps of each chain that are averaged, at least 8.
        burn_in: steps before them, never averaged.
        batch_size: examples in a batch; None takes all of the data at each step.
        chains_at_once: walk this many chains together; all of them when None. Fewer need less memory.
        seed: of noise and batches.
    """

    name: ClassVar[str] = "learning_coefficient"
    data: str
    loss: str
    step_size: float
    n_beta: float | None = None
    localization: float = 1.0
    chains: int = 8
    draws: int = 1000
    burn_in: int = 1000
    batch_size: int | None = None
    chains_at_once: int | None = None
    seed: int = 0

    def data_hash(self) -> str:
        """Give the hash of the data the settings name."""
        return self.data

    def temperature(self, model: Target) -> float:
        """Give n beta: as set, or n / ln n."""
        return self.n_beta if self.n_beta is not None else model.n / math.log(model.n)

    def plan(self, model: Target) -> Sequence[Unit]:
        """Groups of chains.

        Raises:
            BadInput: a setting out of range, or other data than those the settings name.
        """
        self._require(model)
        together = self.chains_at_once or self.chains
        return [
            Unit(f"chains-{start:03d}", {"start": start, "stop": stop}, cost=stop - start)
            for start in range(0, self.chains, together)
            for stop in [min(start + together, self.chains)]
        ]

    def _require(self, model: Target) -> None:
        needs = {
            f"step_size={self.step_size}: it must be above 0": self.step_size > 0,
            f"n_beta={self.n_beta}: it must be above 0": self.n_beta is None or self.n_beta > 0,
            f"n_beta=None needs two examples or more, there are {model.n}": (self.n_beta or model.n) > 1
            or self.n_beta is not None,
            f"localization={self.localization}: it is not negative": self.localization >= 0,
            f"chains={self.chains}: an interval needs at least 2": self.chains >= 2,
            f"chains_at_once={self.chains_at_once}: walk at least 1": (self.chains_at_once or 1) >= 1,
            f"draws={self.draws}: the diagnostics need at least 8": self.draws >= 8,
            f"burn_in={self.burn_in}: it is not negative": self.burn_in >= 0,
            f"seed={self.seed}: it is not negative": self.seed >= 0,
            f"batch_size={self.batch_size}: a batch has an example or more": (self.batch_size or 1) >= 1
            and self.batch_size != 0,
            f"batch_size={self.batch_size} with {model.n} examples: take a smaller batch, or None for all": (
                self.batch_size or 0
            )
            <= model.n,
            "the settings name other data than those passed: build them from the same data": self.data
            == model.data_hash(),
        }
        for message, holds in needs.items():
            if not holds:
                raise BadInput(f"{message}.")

    def prepare(self, model: Target) -> Anchor:
        """Look at the anchor: its loss over all of the data, and whether it is a minimum."""
        n_beta, anchor = self.temperature(model), model.anchor()
        loss, slope = _full(model, anchor)
        if model.mask is not None:
            slope = slope * model.mask
        steps = [anchor - slope * (length / n_beta) for length in LINE]
        lowest = min(float(_full(model, flat, gradient=False)[0]) for flat in steps)
        return Anchor(loss, (n_beta * (loss - lowest)).clamp_min(0))

    def measure(self, model: Target, unit: Unit, shared: Anchor) -> Pieces:
        """Walk a group of chains."""
        numbers = range(unit.detail["start"], unit.detail["stop"])
        settings = (self.step_size, self.temperature(model), self.localization)
        epsilon, beta, gamma = (torch.full((len(numbers),), value, dtype=torch.float64) for value in settings)
        masks = None if model.mask is None else model.mask[None]
        # one seed for each chain, the same in whatever group it walks
        seeds = tuple(int(SeedSequence([self.seed, number]).generate_state(1)[0]) for number in numbers)
        traces = walk(
            model, Chains(seeds, epsilon, beta, gamma, masks, self.batch_size), self.burn_in + self.draws
        )
        return {
            "loss": traces.loss,
            "squared_gradient": traces.squared_gradient,
            "distance": traces.distance,
            "anchor_loss": shared.loss,
            "anchor_downhill": shared.downhill,
        }

    def combine(self, model: Target, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Estimate from the draws of the chains that did not diverge."""
        parts = list(pieces.values())
        loss, squared, distance = (
            torch.cat([part[name] for part in parts]).numpy()
            for name in ("loss", "squared_gradient", "distance")
        )
        n_beta, baseline = self.temperature(model), float(parts[0]["anchor_loss"])
        excess = n_beta * (loss - baseline)
        kept = np.isfinite(excess).all(1)
        after = slice(self.burn_in, None)
        per_chain = np.where(kept, excess[:, after].mean(1), np.nan)
        after_burn_in = torch.from_numpy(squared[kept, after])
        variables: dict[str, Any] = {
            **_summary(excess[kept, after]),
            "llc_per_chain": ("chain", per_chain, {"allow_nan": True}),
            "llc_bias": sgld.bias(torch.tensor(self.step_size), after_burn_in.mean()).item(),
            "diverged": ("chain", ~kept),
            "n_beta": n_beta,
            "anchor_loss": baseline,
            "anchor_downhill": float(parts[0]["anchor_downhill"]),
        }
        if (
            self.batch_size is None and kept.any()
        ):  # with batches the variance would be mostly that of the batches
            variables["llc_variance"] = (n_beta**2 * loss[kept, after].var(1, ddof=1)).mean()
        steps = np.unique(np.linspace(0, loss.shape[1] - 1, TRACE).round().astype(int))
        trace = ("chain", "draw")
        variables |= {
            "loss": (trace, loss[:, steps], {"allow_nan": True}),
            "distance": (trace, distance[:, steps], {"allow_nan": True}),
        }
        coords = {"chain": np.arange(self.chains), "draw": steps - self.burn_in}
        parameters = int(model.mask.sum()) if model.mask is not None else len(model.anchor())
        attrs = {"model": model.source, "loss": self.loss, "parameters": parameters, "examples": model.n}
        return _finite_or_flagged(xr.Dataset(variables, coords, attrs))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge the chains, the anchor and the step size."""
        return judge(dataset)

    def memory(self, model: Target) -> int:
        """Positions, gradients and noise of the chains walked together, and the traces of all."""
        together = self.chains_at_once or self.chains
        buffers = 5 * together * len(model.anchor()) * model.dtype.itemsize
        return buffers + 3 * 8 * self.chains * (self.burn_in + self.draws)


def learning_coefficient(  # noqa: PLR0913 (each is one documented setting of the sampler)
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    *,
    step_size: float,
    n_beta: float | None = None,
    localization: float = 1.0,
    chains: int = 8,
    draws: int = 1000,
    burn_in: int = 1000,
    batch_size: int | None = None,
    chains_at_once: int | None = None,
    mask: Mapping[str, Tensor] | str | None = None,
    seed: int = 0,
    source: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Estimate the local learning coefficient at a module's present weights.

    Args:
        module: any network, or a model as `assay.load` gives it; its weights are the anchor, and are left as they
            are. It is sampled in eval mode.
        loss: ``loss(module, batch)`` with one value per example or token, or the name of a ready-made one of
            `assay.landscape.losses`: ``"next_token"``, ``"squared_error"``, ``"cross_entropy"``, and for what a
            network does rather than how well, ``"kl_to_anchor"`` and ``"squared_distance_to_anchor"``. ``None``
            for a loaded language model is the next token's.
        data: a tensor, a tuple of tensors, a ``Dataset`` or a ``DataLoader``; for a loaded language model also the
            path of a text or token file.
        step_size: epsilon; look at ``llc_bias`` and check L204 to choose it.
        n_beta: number of samples times inverse temperature; n / ln n when not given.
        localization: gamma.
        chains: independent chains.
        draws: steps of each chain that are averaged.
        burn_in: steps before them.
        batch_size: examples in a batch; all of the data when not given.
        chains_at_once: walk fewer chains together, to need less memory.
        mask: parameter name -> bool tensor, true where it moves; parameters not named stay. Or words: ``"head.3.5"``
            or ``"mlp.3"`` of a loaded language model, ``"layers.0.*"`` of any module.
        seed: of noise and batches.
        source: what run folders call the module; its class when not given.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``llc`` with ``llc_stderr``, ``llc_low`` and ``llc_high`` (Student's t over
        chains, which are independent, and never narrower than ``llc_mcse`` allows), ``llc_per_chain`` (chain),
        ``llc_bias`` (first-order bias of the step size, not subtracted), ``llc_mcse``, ``r_hat``, ``ess``,
        ``drift`` with ``drift_stderr``, the traces ``loss`` and ``distance`` (chain, draw; negative draws are
        burn-in), and with all data in each step ``llc_variance``, the estimate from the variance of the loss.

    What cannot be sampled, and a setting out of range, is `BadInput`.
    """
    model = target(module, loss, data, mask=mask, source=source)
    measurement = LearningCoefficient(
        data=model.data_hash(),
        loss=loss_name(loss or next_token),
        step_size=step_size,
        n_beta=n_beta,
        localization=localization,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        batch_size=batch_size,
        chains_at_once=chains_at_once,
        seed=seed,
    )
    return perform(measurement, model, **run)


def _full(model: Target, flat: Tensor, *, gradient: bool = True) -> tuple[Tensor, Tensor]:
    """Give the mean loss over all of the data in float64, and its gradient (zero where not asked)."""
    function, total = mean_loss(model), torch.zeros((), dtype=torch.float64, device=flat.device)
    leaf, slope = flat.detach().requires_grad_(gradient), torch.zeros_like(flat)
    with model.evaluating(), torch.set_grad_enabled(gradient):
        for batch in model.blocks():
            share = len(batch[0]) / model.n
            value = function(leaf, batch)
            total += share * value.detach()
            if gradient:
                slope += share * torch.autograd.grad(value, leaf)[0]
    return total, slope


def _summary(excess: np.ndarray) -> dict[str, Any]:
    """Estimate from the draws (chain, draw) of n beta (L - L*); NaN with fewer than two chains."""
    nothing = dict.fromkeys(("llc", "llc_stderr", "llc_low", "llc_high", "llc_mcse", "r_hat", "ess"), np.nan)
    if len(excess) < 2:
        return {**nothing, "drift": np.nan, "drift_stderr": np.nan}
    half = excess.shape[1] // 2
    drift, drift_stderr, *_ = mean_interval(excess[:, half:].mean(1) - excess[:, :half].mean(1))
    value, stderr, low, high = (float(part) for part in mean_interval(excess.mean(1)))
    judged = convergence(excess)
    # a few chains may agree by luck: never narrower than what the autocorrelation of the draws allows
    wider = max(1.0, judged.mcse / stderr) if stderr > 0 else 1.0
    return {
        "llc": value,
        "llc_stderr": wider * stderr,
        "llc_low": value - wider * (value - low),
        "llc_high": value + wider * (high - value),
        "llc_mcse": judged.mcse,
        "r_hat": judged.r_hat,
        "ess": judged.ess,
        "drift": drift,
        "drift_stderr": drift_stderr,
    }


def _finite_or_flagged(dataset: xr.Dataset) -> xr.Dataset:
    """Allow NaN where chains diverged: their own check says so, and says which."""
    if bool(dataset["diverged"].any()):
        for variable in dataset.data_vars.values():
            variable.attrs["allow_nan"] = True
            if variable.dtype.kind == "f":
                variable.values = np.where(np.isinf(variable.values), np.nan, variable.values)
    return dataset
