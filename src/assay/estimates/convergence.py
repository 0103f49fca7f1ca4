"""Have the chains converged: split R-hat, effective sample size, Monte Carlo standard error."""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base.array import array_stats
from numpy.typing import ArrayLike

from assay.errors import BadInput


@dataclass(frozen=True)
class Convergence:
    """How far a sampler's chains can be trusted.

    Attributes:
        r_hat: rank-normalised split R-hat; near 1 when the chains agree, above 1.01 they do not.
        ess: bulk effective sample size: as many independent draws would tell the mean as well.
        mcse: Monte Carlo standard error of the mean, in the units of the draws.
    """

    r_hat: float
    ess: float
    mcse: float


def convergence(draws: ArrayLike) -> Convergence:
    """Judge the draws of one quantity.

    A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Buerkner 2021, Bayesian Analysis 16:667.

    Args:
        draws: [chain, draw], at least 8 draws each. One chain alone is compared with itself, half by half.

    Raises:
        BadInput: when the draws are not [chain, draw], are too few, or are not finite.
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 8:
        raise BadInput(
            f"draws have shape {values.shape}: expected [chain, draw] with at least 8 draws per chain."
        )
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise BadInput(f"{count} draws are NaN or infinite: the chains diverged; use a smaller step size.")
    halves = values[:, : values.shape[1] // 2 * 2].reshape(2, -1) if len(values) == 1 else values
    return Convergence(
        r_hat=np.asarray(array_stats.rhat(halves)).item(),
        ess=np.asarray(array_stats.ess(values)).item(),
        mcse=np.asarray(array_stats.mcse(values)).item(),
    )
