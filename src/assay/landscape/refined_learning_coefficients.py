r"""Refined local learning coefficients: how degenerate the minimum is in the weights of one part, the others held.

.. math:: \hat\lambda_P = n\beta\,\bigl(E_{w_P}[L(w_P, w^*_{\neg P})] - L(w^*)\bigr), \qquad
          w_P \sim \exp\Bigl(-n\beta\,L - \frac{\gamma}{2}\lVert w_P - w^*_P \rVert^2\Bigr)

Source: G. Wang, J. Hoogland, S. van Wingerden, Z. Furman and D. Murfet, "Differentiation and specialization of
attention heads via the refined local learning coefficient", 2024 (arXiv 2410.02984). It has no unit; it is at most half
the number of the part's weights, and the coefficients of parts do not add up to that of the whole.

All parts are one batched run: a row of the flat buffer for each chain of each part, with the part's own mask and step
size. Chain c sees the same noise and the same batches whatever part it moves, so that differences between parts are not
luck. Beside each part stand as many weights at random, drawn from the whole module. Of a module of a million parameters
or more, or one that `torch.func` does not serve, parts go one after the other, as `assay.learning_coefficient` with a
mask walks each, and there is no random part beside them.

Cost: parts x chains x (burn_in + draws) gradients of one batch, twice that with the random parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
import xarray as xr
from numpy.random import SeedSequence
from torch import Tensor, nn

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.landscape.chains import Chains, walk
from assay.landscape.chance import chain_seeds
from assay.landscape.estimators import Draws, mean
from assay.landscape.learning_coefficient import LearningCoefficient
from assay.landscape.learning_coefficient_settings import require
from assay.landscape.losses import Loss, loss_name, next_token
from assay.landscape.minimum import look, steepest
from assay.landscape.parts import Parts, parts_of
from assay.landscape.probe import Probe
from assay.landscape.refined_checks import judge
from assay.landscape.samplers.settings import Setting, sampler_settings_of
from assay.landscape.target import Data, Target
from assay.landscape.walks import bias_of_loss
from assay.models.model import Model
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

STIFF = 0.2
"""Step size times the largest curvature that a part meets at the anchor; chains fly apart at 4."""
ROUNDS = 12
"""Products with the Hessian in which the largest curvature is found."""
TRACES = ("loss", "bias", "loss_bias", "virial")
"""What is kept of a walk: parts of a `Walk`, and the share of its bias that falls on the loss."""


@dataclass(frozen=True, kw_only=True)
class RefinedLearningCoefficients(Measurement):
    """The local learning coefficient of each part of a module.

    Attributes:
        data: hash of the data, as `Target.data_hash` gives it.
        loss: name of the loss, as `loss_name` gives it.
        parts: their names.
        step_size: epsilon of the sampler; "auto" takes for each part `STIFF` over the largest curvature that its
            weights meet at the anchor, or in large modules what burn-in finds.
        n_beta: number of samples times inverse temperature; n / ln n when None.
        localization: gamma, the precision of the Gaussian that keeps chains near the anchor.
        chains: independent chains of each part, at least 2.
        draws: steps of each chain that are averaged, at least 8.
        burn_in: steps before them, never averaged.
        batch_size: examples in a batch; None takes all of the data at each step, "auto" as many as are cheap.
        sampler: by which steps; a name of `assay.landscape.samplers`. "sgld" is without momentum, unless that is set.
        sampler_settings: of the sampler, by name, as `sampler_settings_of` reads them.
        baseline: whether random parts of the same sizes are sampled too.
        parts_at_once: walk this many together, which is one unit; fewer need less memory.
        seed: of noise, batches and random parts.
    """

    name: ClassVar[str] = "refined_learning_coefficients"
    made_by: ClassVar[str | None] = "assay.landscape.parts.parts_of(module, loss, data, parts)"
    data: str
    loss: str
    parts: tuple[str, ...]
    step_size: float | Literal["auto"] = "auto"
    n_beta: float | None = None
    localization: float = 1.0
    chains: int = 4
    draws: int = 1000
    burn_in: int = 1000
    batch_size: int | Literal["auto"] | None = "auto"
    sampler: str = "sgld"
    sampler_settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    baseline: bool = True
    parts_at_once: int = 16
    seed: int = 0

    def data_hash(self) -> str:
        """Give the hash of the data the settings name."""
        return self.data

    def at(self) -> LearningCoefficient:
        """Give the estimate of one part."""
        return LearningCoefficient(
            data=self.data,
            loss=self.loss,
            step_size=self.step_size,
            n_beta=self.n_beta,
            localization=self.localization,
            chains=self.chains,
            draws=self.draws,
            burn_in=self.burn_in,
            batch_size=self.batch_size,
            sampler=self.sampler,
            sampler_settings={
                **({"momentum": 0.0} if self.sampler == "sgld" else {}),
                **self.sampler_settings,
            },
            seed=self.seed,
        )

    def plan(self, model: Parts) -> Sequence[Unit]:
        """Groups of parts.

        Raises:
            BadInput: a setting out of range, or other data or parts than those the settings name.
        """
        require(self.at(), model.whole)
        if self.parts_at_once < 1:
            raise BadInput(f"parts_at_once={self.parts_at_once}: walk at least 1.")
        if self.parts != tuple(model.masks):
            raise BadInput("the settings name other parts than those passed: build them from the same parts.")
        together, count = self.parts_at_once if model.together else 1, len(self.parts)
        return [
            Unit(f"parts-{start:03d}", {"start": start, "stop": min(start + together, count)}, together)
            for start in range(0, count, together)
        ]

    def measure(self, model: Parts, unit: Unit, shared: None) -> Pieces:
        """Walk all chains of a group of parts, and look whether the anchor is a minimum in each."""
        places = range(unit.detail["start"], unit.detail["stop"])
        names, at = [self.parts[place] for place in places], self.at()
        n_beta, whole = at.temperature(model.whole), at.batch(model.whole) is None
        ones = [replace(model.one(name), thorough=whole) for name in names]
        looks = [look(one, n_beta, self.localization) for one in ones]
        seen = {
            "downhill": torch.stack([torch.as_tensor(each.downhill).double() for each in looks]),
            "anchor_loss": torch.stack([each.loss for each in looks]),
        }
        if not model.together:
            (one,), (here,) = ones, looks
            walked = at.measure(one, Unit("chains-000", {"start": 0, "stop": self.chains}), here)
            traces = {name: walked[f"trace_{name}"][None, None, :, self.burn_in :] for name in TRACES}
            return {**seen, **traces, "step_size": walked["step_size"][None, :1]}
        rows = torch.stack([model.row(name) for name in names])
        if self.baseline:
            random = [self._random(row, place) for row, place in zip(rows, places, strict=True)]
            rows = torch.cat([rows, torch.stack(random)])
        found = self._walked(replace(model.whole, thorough=whole), rows)
        return {**seen, **{name: part.view(-1, len(names), *part.shape[1:]) for name, part in found.items()}}

    def _random(self, row: Tensor, place: int) -> Tensor:
        """Give the mask of as many weights at random."""
        generator = torch.Generator().manual_seed(
            int(SeedSequence([self.seed, place, 1]).generate_state(1)[0])
        )
        chosen = torch.randperm(len(row), generator=generator)[: int(row.sum())].to(row.device)
        return torch.zeros_like(row).index_fill_(0, chosen, value=True)

    def _walked(self, whole: Target, rows: Tensor) -> Pieces:
        """Walk the chains of several masks (part, d) as one: `TRACES` (part, chain, draw), and step sizes (part,)."""
        step_size = torch.ones(len(rows), dtype=torch.float64)
        if self.step_size == "auto":
            stiffest = Probe(whole, self._chains(whole, rows, step_size, 1)).curvature(rounds=ROUNDS)
            step_size = STIFF / stiffest.double().cpu()
        else:
            step_size *= self.step_size
        chains, sampler = self._chains(whole, rows, step_size, self.chains), self.at().stepping(whole)
        walked = walk(whole, chains, self.burn_in + self.draws, sampler)
        parts = (walked.loss, walked.bias, bias_of_loss(walked, chains, sampler), walked.virial)
        shape, after = (len(rows), self.chains, -1), slice(self.burn_in, None)
        traces = (part.cpu()[:, after].reshape(shape) for part in parts)
        return {**dict(zip(TRACES, traces, strict=True)), "step_size": step_size}

    def _chains(self, whole: Target, rows: Tensor, step_size: Tensor, each: int) -> Chains:
        """Give so many chains for each mask; a chain has the same seed for every one."""
        seeds = chain_seeds(self.seed, range(each))
        epsilon = step_size.repeat_interleave(each)
        beta = torch.full_like(epsilon, self.at().temperature(whole))
        gamma = torch.full_like(epsilon, self.localization)
        masks, batch = rows.repeat_interleave(each, 0), self.at().batch(whole)
        return Chains(seeds * len(rows), epsilon, beta, gamma, masks, batch)

    def combine(self, model: Parts, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Estimate for each part from the chains that did not diverge."""
        groups = list(pieces.values())
        traces = {
            name: torch.cat([group[name] for group in groups], 1).numpy() for name in (*TRACES, "step_size")
        }
        seen = {
            name: torch.cat([group[name] for group in groups]).numpy() for name in ("downhill", "anchor_loss")
        }
        sizes = np.array([sum(int(part.sum()) for part in mask.values()) for mask in model.masks.values()])
        variables: dict[str, Any] = {
            "parameters": ("part", sizes),
            "downhill": ("part", seen["downhill"]),
            "step_size": ("part", traces["step_size"][0]),
            "n_beta": self.at().temperature(model.whole),
        }
        for kind, prefix in enumerate(("", "baseline_") if self.baseline and model.together else ("",)):
            found = [
                self._estimate(
                    {name: traces[name][kind, place] for name in TRACES}, int(size), model, float(loss)
                )
                for place, (size, loss) in enumerate(zip(sizes, seen["anchor_loss"], strict=True))
            ]
            for name in found[0]:
                dims = ("part", "chain") if found[0][name].ndim else "part"
                values = np.array([each[name] for each in found])
                variables[f"{prefix}{name}"] = (dims, values, {"allow_nan": True})
        limits = np.array([steepest(float(raw)) for raw in variables["llc_raw"][1]])
        variables["at_minimum"] = ("part", seen["downhill"] <= limits)
        coords = {"part": list(self.parts), "chain": np.arange(self.chains)}
        attrs = {"model": model.source, "loss": self.loss, "examples": model.whole.n}
        return _without_slopes(xr.Dataset(variables, coords, attrs))

    def _estimate(
        self, traces: Mapping[str, np.ndarray], size: int, model: Parts, anchor_loss: float
    ) -> dict[str, np.ndarray]:
        """Estimate for one part from traces (chain, draw)."""
        n_beta = self.at().temperature(model.whole)
        kept = np.isfinite(traces["loss"] * traces["bias"]).all(1)
        draws = Draws(traces["loss"][kept], traces["loss_bias"][kept], n_beta, anchor_loss)
        found = mean(draws)
        each = np.full(self.chains, np.nan)
        each[kept] = draws.excess.mean(1)
        half = (traces["virial"] - traces["bias"])[kept]
        found["unexplored"] = 1 - 2 * half.mean() / size if kept.any() else np.nan
        return {**{name: np.asarray(value) for name, value in found.items()}, "llc_per_chain": each}

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge chains and anchors over all parts."""
        return judge(dataset)

    def memory(self, model: Parts) -> int:
        """Positions, gradients and noise of the chains of one unit, and their traces."""
        if not model.together:
            return max(self.at().memory(model.one(name)) for name in self.parts)
        together = self.chains * min(self.parts_at_once, len(self.parts)) * (2 if self.baseline else 1)
        return together * (6 * model.whole.d * model.dtype.itemsize + 5 * 8 * (self.burn_in + self.draws))


def _without_slopes(dataset: xr.Dataset) -> xr.Dataset:
    """Withhold the estimates of parts in whose weights the anchor is no minimum."""
    for name, variable in dataset.data_vars.items():
        if str(name).startswith("llc") and name not in ("llc_raw", "llc_bias"):
            dataset[name] = variable.where(dataset["at_minimum"]).assign_attrs(allow_nan=True)
    return dataset


def refined_learning_coefficients(  # noqa: PLR0913 (each is one documented setting of the sampler)
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    parts: Mapping[str, Mapping[str, Tensor] | str] | Sequence[str] | None = None,
    *,
    step_size: float | Literal["auto"] = "auto",
    n_beta: float | None = None,
    localization: float = 1.0,
    chains: int = 4,
    draws: int = 1000,
    burn_in: int = 1000,
    batch_size: int | Literal["auto"] | None = "auto",
    sampler: str = "sgld",
    sampler_settings: Mapping[str, float] | Sequence[str] | None = None,
    baseline: bool = True,
    parts_at_once: int = 16,
    seed: int = 0,
    source: str | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Estimate the local learning coefficient of each part of a module, the others held.

    Args:
        module: any network, or a model as `assay.load` gives it; its weights are the anchor, and are left as they are.
        loss: as `assay.learning_coefficient` takes it.
        data: as `assay.learning_coefficient` takes it.
        parts: names: head.3.5 or mlp.3 of a language model, parameters by name (* and ? allowed). Or a mapping from
            names of your own to such names or masks. Every module that holds weights of its own when not given.
        step_size: epsilon; found for each part unless given.
        n_beta: number of samples times inverse temperature; n / ln n when not given.
        localization: gamma.
        chains: independent chains of each part.
        draws: steps of each chain that are averaged.
        burn_in: steps before them.
        batch_size: examples in a batch; None takes all of the data at each step, "auto" as many as are cheap.
        sampler: by which steps, as `assay.learning_coefficient` takes it; "sgld" is without momentum unless it is set.
        sampler_settings: what the sampler is told, as a mapping or as words (friction=5.0).
        baseline: whether as many weights at random are sampled beside each part; not in large modules.
        parts_at_once: walk this many parts together.
        seed: of noise, batches and random parts.
        source: what run folders call the module; its class when not given.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``llc`` (part) with ``llc_stderr``, ``llc_low``, ``llc_high``, ``llc_raw``,
        ``llc_bias``, ``r_hat``, ``ess``, ``drift``, ``unexplored``; ``llc_per_chain`` (part, chain); ``parameters``,
        ``step_size``, ``downhill`` and ``at_minimum`` (part); and the same estimates of random parts as
        ``baseline_llc`` and so on. NaN where the anchor is no minimum in a part's weights.

    Raises:
        BadInput: a part that is none, what cannot be sampled, or a setting out of range.
    """
    subject = parts_of(module, loss, data, parts, source=source)
    measurement = RefinedLearningCoefficients(
        data=subject.whole.data_hash(),
        loss=loss_name(loss or next_token),
        parts=tuple(subject.masks),
        step_size=step_size,
        n_beta=n_beta,
        localization=localization,
        chains=chains,
        draws=draws,
        burn_in=burn_in,
        batch_size=batch_size,
        sampler=sampler,
        sampler_settings=sampler_settings_of(sampler, sampler_settings),
        baseline=baseline,
        parts_at_once=parts_at_once,
        seed=seed,
    )
    return perform(measurement, subject, **run)
