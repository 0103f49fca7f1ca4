"""Refusing settings of an estimate that are out of range."""

from typing import TYPE_CHECKING

from assay.errors import BadInput
from assay.landscape.calibration import ROUND
from assay.landscape.target import Target

if TYPE_CHECKING:
    from assay.landscape.learning_coefficient import LearningCoefficient

SHORTEST = 2 * ROUND
"""Steps of burn-in in which a step size can be found: it is looked at once, and then held."""


def require(settings: "LearningCoefficient", model: Target) -> None:
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
