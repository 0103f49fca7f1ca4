r"""The local learning coefficient: how degenerate the minimum is at which training ended.

.. math:: \hat\lambda = n\beta\,\bigl(E_w[L(w)] - L(w^*)\bigr), \qquad
          w \sim \exp\Bigl(-n\beta\,L(w) - \frac{\gamma}{2}\lVert w - w^* \rVert^2\Bigr)

with :math:`n\beta = n/\ln n` unless given. Source: E. Lau, Z. Furman, G. Wang, D. Murfet and S. Wei, "The local
learning coefficient", 2023 (arXiv 2308.12108); the temperature is that of WBIC (S. Watanabe 2013). It has no unit;
d/2 at a minimum without degeneracy, less where directions are flat.

Draws come from Langevin dynamics, several chains at once. Step size, burn-in and length are found on the way
(`assay.landscape.calibration`) unless given. Burn-in is never averaged in, and :math:`L(w^*)` is taken over all of the
data. A step size makes the mean loss too large by a law that is exact in quadratic potentials; that bias is reported as
``llc_bias`` and subtracted (`assay.landscape.estimators`).

Cost: chains x (burn_in + draws) gradients of one batch. Limits: the coefficient is local, and only means
something at a minimum; chains explore flat directions slowly. The checks say when either was not so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from assay.estimates.checks import Check
from assay.landscape.calibration import STOPPED, Aim, Run, run
from assay.landscape.chains import Chains
from assay.landscape.chance import chain_seeds
from assay.landscape.estimators import Draws, aligned, finite_or_flagged, mean, named, others, pull, withheld
from assay.landscape.fluctuation import fluctuation
from assay.landscape.gradients import LARGE
from assay.landscape.learning_coefficient_checks import judge
from assay.landscape.learning_coefficient_settings import EstimateSettings, require
from assay.landscape.losses import Loss, loss_name, next_token
from assay.landscape.minimum import Anchor, look, steepest
from assay.landscape.probe import acceptance_of
from assay.landscape.samplers.settings import sampler_settings_of
from assay.landscape.target import Data, Target, target
from assay.landscape.walks import bias_of_loss
from assay.models.model import Model
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

TRACE = 1000
"""Steps of a trace that are kept for the picture, evenly spaced."""
TRACES = ("loss", "bias", "loss_bias", "virial", "distance")
"""Parts of a `Walk` that are kept, and the share of its bias that falls on the loss."""


@dataclass(frozen=True, kw_only=True)
class LearningCoefficient(EstimateSettings, Measurement):
    """The local learning coefficient at a module's present weights; its settings are those of `EstimateSettings`."""

    name: ClassVar[str] = "learning_coefficient"
    made_by: ClassVar[str | None] = "assay.landscape.target.target(module, loss, data, mask=...)"
    revision: ClassVar[int] = 6

    def data_hash(self) -> str:
        """Give the hash of the data the settings name."""
        return self.data

    def plan(self, model: Target) -> Sequence[Unit]:
        """Groups of chains.

        Raises:
            BadInput: a setting out of range, or other data than those the settings name.
        """
        require(self, model)
        together = self._together(model)
        return [
            Unit(f"chains-{start:03d}", {"start": start, "stop": stop}, cost=stop - start)
            for start in range(0, self.chains, together)
            for stop in [min(start + together, self.chains)]
        ]

    def _together(self, model: Target) -> int:
        return self.chains_at_once or (self.chains if model.d < LARGE else 1)

    def prepare(self, model: Target) -> Anchor:
        """Look at the anchor: its loss, and whether it is a minimum, over all of the data if chains see all of them."""
        return look(self._seen(model).standing(), self.temperature(model), self.localization)

    def _seen(self, model: Target, seed: int = 0) -> Target:
        """Give the module as the settings say, in its own mode or in eval mode, and what a look goes through."""
        seeds = count(seed) if self.training else None
        return replace(model, thorough=self.batch(model) is None, seeds=seeds)

    def measure(self, model: Target, unit: Unit, shared: Anchor) -> Pieces:
        """Walk a group of chains until it has its share of the precision asked for."""
        numbers = range(unit.detail["start"], unit.detail["stop"])
        seeds = chain_seeds(self.seed, numbers)
        model = self._seen(model, seeds[0]) if self.training else model
        ratios = [1.0] if self.second_temperature is None else [1.0, self.second_temperature]
        n_beta = torch.tensor(ratios, dtype=torch.float64).reciprocal() * self.temperature(model)
        n_beta = n_beta.repeat_interleave(len(seeds))
        gamma = torch.full_like(n_beta, self.localization)
        masks = None if model.mask is None else model.mask[None]
        chains = Chains(
            seeds * len(ratios), torch.zeros_like(n_beta), n_beta, gamma, masks, self.batch(model)
        )
        aim = Aim(
            None if self.step_size == "auto" else self.step_size,
            self.burn_in,
            self.draws,
            self.bias_tolerance,
            # groups of chains are independent: each needs its share of the precision only
            self.relative_error * math.sqrt(self.chains / len(seeds)),
            self.steps(model),
            judged=len(seeds),
        )
        found = run(model, chains, self.stepping(model), aim, float(shared.loss))
        return {**self._pieces(model, chains, found, len(seeds)), **shared._asdict()}

    def _pieces(self, model: Target, chains: Chains, found: Run, count: int) -> Pieces:
        """Lay out what is kept of a group of chains; those at the second temperature have names of their own."""
        walked = replace(chains, step_size=torch.full_like(chains.n_beta, found.step_size))
        falls_on_loss = bias_of_loss(found.walk, walked, self.stepping(model))
        traces = {name: getattr(found.walk, name).cpu() for name in TRACES if name != "loss_bias"}
        traces["loss_bias"] = falls_on_loss.cpu()
        acceptance = torch.full_like(chains.n_beta, torch.nan)
        if "acceptance" in found.walk.reports:
            acceptance = found.walk.reports["acceptance"][:, found.burn_in :].mean(1)
        elif self.sampler == "sgld":  # whose steps are those that are tested
            acceptance = acceptance_of(model, chains, found.walking, found.step_size, self.seed)
        pieces = {
            **{f"trace_{name}": trace[:count] for name, trace in traces.items()},
            **{f"second_{name}": traces[name][count:] for name in ("loss", "loss_bias")},
            "step_size": torch.full((count,), found.step_size, dtype=torch.float64),
            "curvature": found.curvature[:count].clone(),
            "acceptance": acceptance[:count].double().cpu(),
            "burn_in": torch.tensor(found.burn_in),
            "stopped": torch.tensor(STOPPED.index(found.stopped)),
        }
        if self.fluctuation_draws:
            values = fluctuation(model, found.walking, self.fluctuation_draws, self.temperature(model))
            pieces["singular_fluctuation"] = values[:count]
        return pieces

    def combine(self, model: Target, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Estimate from the draws of the chains that did not diverge."""
        parts = list(pieces.values())
        traces, burn_in = aligned(parts)
        n_beta, baseline = self.temperature(model), float(parts[0]["loss"])
        loss, bias, _, virial, distance = (traces[f"trace_{name}"] for name in TRACES)
        kept, after = np.isfinite(loss * bias).all(1), slice(burn_in, None)
        if self.second_temperature is not None:  # chains are kept pair by pair
            kept &= np.isfinite(traces["second_loss"] * traces["second_loss_bias"]).all(1)

        def drawn(at: str, n_beta: float) -> Draws:
            losses, added = (traces[f"{at}_{name}"][kept, after] for name in ("loss", "loss_bias"))
            return Draws(losses, added, n_beta, baseline)

        draws, ratio, parameters = drawn("trace", n_beta), self.second_temperature, self.parameters(model)
        hot = drawn("second", n_beta / ratio) if ratio is not None else None
        variables: dict[str, Any] = mean(draws)
        variables |= others(draws, hot, variables, None if self.n_beta is not None else model.n)
        whole = self.batch(model) is None and not self.training
        if not whole:  # it would be mostly that of batches and dropout
            variables = {name: value for name, value in variables.items() if "variance" not in name}
        variables["unexplored"] = (
            1 - 2 * (virial - bias)[kept, after].mean() / parameters if kept.any() else np.nan
        )
        held = self.localization / 2 * distance[kept, after] ** 2
        variables |= pull(draws, held, virial[kept, after], whole=whole)
        if self.fluctuation_draws:
            each = torch.cat([part["singular_fluctuation"] for part in parts]).numpy()[kept]
            variables |= named("singular_fluctuation", each)
        per_chain = np.full(self.chains, np.nan)
        per_chain[kept] = draws.excess.mean(1)
        below = kept.sum() >= 2 and np.isnan(variables["llc"])
        if below or float(parts[0]["downhill"]) > steepest(variables["llc_raw"]):
            variables, per_chain = withheld(variables), np.full_like(per_chain, np.nan)
        steps = np.unique(np.linspace(0, loss.shape[1] - 1, TRACE).round().astype(int))
        trace, free = ("chain", "draw"), {"allow_nan": True}
        variables |= {
            "llc_per_chain": ("chain", per_chain, free),
            **{
                name: ("chain", torch.cat([part[name] for part in parts]).numpy(), free)
                for name in ("step_size", "curvature", "acceptance")
            },
            "diverged": ("chain", ~kept),
            "n_beta": n_beta,
            "anchor_loss": baseline,
            "anchor_downhill": float(parts[0]["downhill"]),
            "loss": (trace, loss[:, steps], free),
            "distance": (trace, distance[:, steps], free),
        }
        coords = {"chain": np.arange(self.chains), "draw": steps - burn_in}
        attrs = {
            **self._attrs(model),
            "parameters": parameters,
            "burn_in": burn_in,
            "draws": loss.shape[1] - burn_in,
            "stopped": STOPPED[max(int(part["stopped"]) for part in parts)],
        }
        return finite_or_flagged(xr.Dataset(variables, coords, attrs))

    def _attrs(self, model: Target) -> dict[str, Any]:
        """Say what was estimated, and by which settings where they were found."""
        sampler = self.stepping(model)
        return {
            "model": model.source,
            "loss": self.loss,
            "moved": model.moved,
            "examples": model.n,
            "batch_size": self.batch(model) or model.n,
            "sampler": sampler.name,
            "momentum": getattr(sampler, "momentum", 0.0),
            "exact": sampler.exact,
            "relative_error": self.relative_error,
            "bias_tolerance": self.bias_tolerance,
        }

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge the chains, the anchor and the step size."""
        return judge(dataset)

    def memory(self, model: Target) -> int:
        """Positions, gradients and noise of the chains walked together, the traces of all, and what a model keeps."""
        together = self._together(model) * (1 if self.second_temperature is None else 2)
        buffers = 6 * together * model.d * model.dtype.itemsize
        kept = 0 if model.entries is None else model.entries.most(model.data[0])
        return buffers + kept + 5 * 8 * self.chains * self.steps(model)


def learning_coefficient(  # noqa: PLR0913 (each is one documented setting of the sampler)
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    *,
    n_beta: float | None = None,
    step_size: float | Literal["auto"] = "auto",
    localization: float = 1.0,
    chains: int = 8,
    draws: int | None = None,
    burn_in: int | None = None,
    batch_size: int | Literal["auto"] | None = "auto",
    sampler: str = "sgld",
    momentum: float | None = None,
    sampler_settings: Mapping[str, float] | Sequence[str] | None = None,
    mask: Mapping[str, Tensor] | Tensor | str | None = None,
    seed: int = 0,
    relative_error: float = 0.02,
    bias_tolerance: float = 0.05,
    budget: int | None = None,
    second_temperature: float | None = None,
    fluctuation_draws: int = 0,
    chains_at_once: int | None = None,
    training: bool = False,
    source: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Estimate the local learning coefficient at a module's present weights.

    Args:
        module: any network, or a model as `assay.load` gives it; its weights are the anchor, and are left as they
            are. It is sampled in eval mode unless ``training``.
        loss: ``loss(module, batch)`` with one value per example or token, or the name of a ready-made one of
            `assay.landscape.losses`: ``"next_token"`` (of a loaded language model when None), ``"squared_error"``,
            ``"cross_entropy"``, or for behaviour ``"kl_to_anchor"`` and ``"squared_distance_to_anchor"``.
        data: a tensor, a tuple of tensors, a ``Dataset`` or a ``DataLoader``; for a loaded language model also the
            path of a text or token file.
        n_beta: number of samples times inverse temperature; n / ln n when not given.
        step_size: epsilon; found in burn-in unless given.
        localization: gamma.
        chains: independent chains.
        draws: steps of each chain that are averaged; as many as `relative_error` needs when not given.
        burn_in: steps before them; until nothing drifts when not given.
        batch_size: examples in a batch; None takes all of the data at each step, "auto" as many as are cheap.
        sampler: by which steps: "sgld", "psgld", "sghmc", "sgnht", "baoab", or on all of the data "mala" or "hmc".
        momentum: of "sgld": the share that a step keeps; 0.9 with all of the data and 0 with batches when not given.
        sampler_settings: what the sampler is told, as a mapping or as words (``friction=5.0``): of "sgld" momentum,
            and adjusted (accept or reject each step; by itself up to 32 parameters); "psgld": adapt, damping;
            "sghmc": friction, noise; "sgnht": diffusion, inertia; "baoab": friction; "hmc": leapfrog, jitter.
        mask: parameter name -> bool tensor, true where it moves; parameters not named stay. One bool vector
            over all parameters. Or words: ``"head.3.5"``, ``"mlp.3"`` of a language model, ``"layers.0.*"`` of any.
        seed: of noise and batches.
        relative_error: half the width of the 95 % interval, as a share of the estimate, at which draws suffice.
        bias_tolerance: what the step size may add before it is subtracted, as a share of the estimate.
        budget: steps of each chain, burn-in included; between 2,000 and 20,000 when not given.
        second_temperature: walk as many chains again at n beta divided by this, and estimate from the slope too.
        fluctuation_draws: draws of each chain from which the singular fluctuation is estimated; 0 for not.
        chains_at_once: walk fewer chains together, to need less memory.
        training: leave every part of the module in its own mode, with dropout and statistics of batches, and not in
            eval mode.
        source: what run folders call the module; its class when not given.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``llc`` with ``llc_stderr``, ``llc_low`` and ``llc_high`` (Student's t over
        chains, which are independent, and never narrower than ``llc_mcse`` allows), which is ``llc_raw`` less
        ``llc_bias``, the first-order bias of the step size; ``llc_per_chain`` (chain); where asked for or possible
        ``llc_variance``, ``llc_slope``, ``wbic`` and ``singular_fluctuation``; ``llc_mcse``, ``r_hat``, ``ess``,
        ``drift``, ``unexplored``, ``held``, ``degree``, ``sensitivity``; per chain ``step_size``, ``curvature``,
        ``acceptance``, ``diverged``; and the traces ``loss`` and ``distance`` (chain, draw; burn-in below 0).
        ``attrs["stopped"]`` says whether the interval is as narrow as asked or the budget was spent.

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
        sampler=sampler,
        sampler_settings=sampler_settings_of(sampler, sampler_settings, momentum),
        relative_error=relative_error,
        bias_tolerance=bias_tolerance,
        budget=budget,
        second_temperature=second_temperature,
        fluctuation_draws=fluctuation_draws,
        chains_at_once=chains_at_once,
        training=tuple(name for name, part in model.module.named_modules() if part.training and training),
        seed=seed,
    )
    return perform(measurement, model, **run)
