"""The settings of an estimate, what they come to where they are left open, and refusing those out of range."""

import math
from dataclasses import dataclass, field
from typing import Literal

from assay.errors import BadInput
from assay.landscape.calibration import ROUND
from assay.landscape.defaults import affordable_steps, cheap_batch, stepping
from assay.landscape.samplers import sampler_of
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.samplers.settings import Setting
from assay.landscape.target import Target

SHORTEST = 2 * ROUND
"""Steps of burn-in in which a step size can be found: it is looked at once, and then held."""


@dataclass(frozen=True, kw_only=True)
class EstimateSettings:
    """What an estimate of the local learning coefficient is told.

    Attributes:
        data: hash of the data, as `Target.data_hash` gives it.
        loss: name of the loss, as `loss_name` gives it.
        step_size: epsilon of the sampler; found in burn-in when "auto".
        n_beta: number of samples times inverse temperature; n / ln n when None.
        localization: gamma, the precision of the Gaussian that keeps chains near the anchor.
        chains: independent chains, at least 2.
        draws: steps of each chain that are averaged, at least 8; as many as `relative_error` needs when None.
        burn_in: steps before them, never averaged; until nothing drifts when None.
        batch_size: examples in a batch; None takes all of the data at each step, "auto" as many as are cheap.
        sampler: by which steps; a name of `assay.landscape.samplers`.
        sampler_settings: of the sampler, by name, as `sampler_settings_of` reads them.
        relative_error: half the width of the 95 % interval, as a share of the estimate, at which draws suffice.
        bias_tolerance: what the step size may add before it is subtracted, as a share of the estimate.
        budget: steps of each chain, burn-in included; between 2,000 and 20,000 by the work of a step when None.
        second_temperature: walk as many chains again at n beta over this, above 1, and estimate from the slope too.
        fluctuation_draws: draws of each chain from which the singular fluctuation is estimated; 0 for not.
        chains_at_once: walk this many chains together; when None all of them, or one from a million parameters on.
        training: parts of the module that stay in training mode; all are in eval mode when empty.
        seed: of noise, batches and dropout.
    """

    data: str
    loss: str
    step_size: float | Literal["auto"] = "auto"
    n_beta: float | None = None
    localization: float = 1.0
    chains: int = 8
    draws: int | None = None
    burn_in: int | None = None
    batch_size: int | Literal["auto"] | None = "auto"
    sampler: str = "sgld"
    sampler_settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    relative_error: float = 0.02
    bias_tolerance: float = 0.05
    budget: int | None = None
    second_temperature: float | None = None
    fluctuation_draws: int = 0
    chains_at_once: int | None = None
    training: tuple[str, ...] = ()
    seed: int = 0

    def temperature(self, model: Target) -> float:
        """Give n beta: as set, or n / ln n."""
        return self.n_beta if self.n_beta is not None else model.n / math.log(model.n)

    def batch(self, model: Target) -> int | None:
        """Give the examples in a batch: as set, or as many as are cheap; None for all of the data."""
        if self.batch_size != "auto":
            return self.batch_size
        return None if sampler_of(self.sampler).exact else cheap_batch(model)

    def steps(self, model: Target) -> int:
        """Give the budget: as set, or what the work of a step allows beside a burn-in that is set."""
        if self.budget is not None:
            return self.budget
        return affordable_steps(model, self.batch(model), self.chains) + (self.burn_in or 0)

    def stepping(self, model: Target) -> Sampler:
        """Give the sampler; what is random in a module is to it as the chance of batches."""
        batch = self.batch(model)
        if batch is None and self.training:
            batch = model.n
        return stepping(self.sampler, self.sampler_settings, self.parameters(model), batch)

    def parameters(self, model: Target) -> int:
        """Give how many parameters move."""
        return int(model.mask.sum()) if model.mask is not None else model.d


def require(settings: EstimateSettings, model: Target) -> None:
    """Refuse a setting out of range, or other data than those the settings name.

    Raises:
        BadInput: with what was passed and what is expected.
    """
    s, n, sampler = settings, model.n, settings.stepping(model)
    needs = {
        f"step_size={s.step_size}: it must be above 0": s.step_size == "auto" or s.step_size > 0,
        f"n_beta={s.n_beta}: it must be above 0": s.n_beta is None or s.n_beta > 0,
        f"n_beta=None needs two examples or more, there are {n}": s.n_beta is not None or n > 1,
        f"localization={s.localization}: it is not negative": s.localization >= 0,
        f"chains={s.chains}: an interval needs at least 2": s.chains >= 2,
        f"chains_at_once={s.chains_at_once}: walk at least 1": s.chains_at_once is None
        or s.chains_at_once >= 1,
        f"draws={s.draws}: the diagnostics need at least 8": s.draws is None or s.draws >= 8,
        f"burn_in={s.burn_in}: it is not negative": s.burn_in is None or s.burn_in >= 0,
        f"seed={s.seed}: it is not negative": s.seed >= 0,
        f"relative_error={s.relative_error}: it must be above 0": s.relative_error > 0,
        f"bias_tolerance={s.bias_tolerance}: above 0 and below 1": 0 < s.bias_tolerance < 1,
        f"budget={s.budget}: burn-in and draws need at least 100 steps": s.budget is None or s.budget >= 100,
        f"second_temperature={s.second_temperature}: a ratio above 1": s.second_temperature is None
        or s.second_temperature > 1,
        f"fluctuation_draws={s.fluctuation_draws}: 0, or at least 2": s.fluctuation_draws == 0
        or s.fluctuation_draws >= 2,
        f"batch_size={s.batch_size} with sampler {s.sampler!r} that accepts or rejects, which needs all of the data: "
        "pass None": not sampler.exact or s.batch(model) is None,
        "training=True with a sampler that accepts or rejects, for which no loss may be random: take another": not (
            s.training and sampler.exact
        ),
        "training=True with fluctuation_draws: dropout would be counted as fluctuation": not s.training
        or s.fluctuation_draws == 0,
        "the settings name other data than those passed: build them from the same data": s.data
        == model.data_hash(),
    }
    if isinstance(s.batch_size, int):
        needs |= {
            f"batch_size={s.batch_size}: a batch has an example or more": s.batch_size >= 1,
            f"batch_size={s.batch_size} with {n} examples: take a smaller batch, or None for all": s.batch_size
            <= n,
        }
    for message, holds in needs.items():
        if not holds:
            raise BadInput(f"{message}.")
    budget = s.steps(model)
    burnt = s.burn_in if s.burn_in is not None else budget // 2
    if s.draws is None and burnt + 8 > budget:
        raise BadInput(
            f"burn_in={burnt} leaves no draws of budget={budget}: take a larger budget, or set draws."
        )
    if burnt < sampler.warm_up:
        raise BadInput(
            f"burn-in is {burnt} steps, and sampler {s.sampler!r} adapts for {sampler.warm_up}, which are never draws: "
            "take a longer burn_in or budget."
        )
    if s.step_size == "auto" and burnt < SHORTEST:
        raise BadInput(
            f"burn-in is {burnt} steps, and the step size, which is not given, is found in it: take {SHORTEST} or more."
        )
