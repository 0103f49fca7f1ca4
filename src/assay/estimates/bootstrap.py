"""Bootstrap intervals of any statistic, and the paired difference of two."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from assay.errors import BadInput
from assay.estimates.estimate import Estimate, Floats, check_level

Statistic = Callable[[Floats], ArrayLike]


def mean(samples: Floats) -> Floats:
    """Give the mean over the first axis."""
    return np.asarray(samples.mean(axis=0))


def bootstrap(
    samples: ArrayLike,
    rng: np.random.Generator,
    statistic: Statistic = mean,
    *,
    resamples: int = 2000,
    kind: str = "bca",
    level: float = 0.95,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Bootstrap a statistic of independent samples: its value, standard error and interval.

    Every resample draws n samples with replacement, the same draw for all remaining axes, so that cells stay
    paired. ``"percentile"`` takes the quantiles of the resampled statistic. ``"bca"`` moves these for bias
    and skewness, with the acceleration from the jackknife (B. Efron 1987, Journal of the American Statistical
    Association 82:171); it is second-order accurate where the percentile interval is first-order.

    Args:
        samples: (n, ...), n at least 2; independent along the first axis.
        rng: draws the resamples.
        statistic: reduces the first axis, (n, ...) -> (...).
        resamples: number of resamples; the cost is this many statistics (and n more for ``"bca"``).
        kind: ``"percentile"`` or ``"bca"``.
        level: nominal coverage.

    Returns:
        value, stderr, low, high, each of shape (...). A statistic that does not vary is both ends.

    Raises:
        BadInput: when there are fewer than two samples or resamples, or the kind is unknown.
    """
    check_level(level)
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim == 0 or len(values) < 2 or resamples < 2:
        raise BadInput(
            f"a bootstrap needs at least two samples and two resamples; got samples of shape {values.shape} "
            f"and {resamples} resamples."
        )
    value = np.asarray(statistic(values), dtype=np.float64)
    draws = rng.integers(len(values), size=(resamples, len(values)))
    replicates = np.stack([np.asarray(statistic(values[draw]), dtype=np.float64) for draw in draws])
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if kind == "percentile":
        low, high = np.quantile(replicates, tails, axis=0)
    elif kind == "bca":
        low, high = _bca_ends(value, replicates, _jackknife(values, statistic), tails)
    else:
        raise BadInput(f"kind is {kind!r}: expected 'percentile' or 'bca'.")
    return value, np.asarray(replicates.std(axis=0, ddof=1)), np.asarray(low), np.asarray(high)


def _jackknife(values: Floats, statistic: Statistic) -> Floats:
    """Give the statistic with each sample left out in turn: (n, ...)."""
    kept = ~np.eye(len(values), dtype=bool)
    return np.stack([np.asarray(statistic(values[keep]), dtype=np.float64) for keep in kept])


def _bca_ends(value: Floats, replicates: Floats, left_out: Floats, tails: Floats) -> tuple[Floats, Floats]:
    """Give the quantiles of the replicates, corrected for bias z0 and acceleration a.

    With z0 the normal quantile of the share of replicates below the value (ties count half), the tail alpha
    moves to Phi(z0 + (z0 + z_alpha) / (1 - a (z0 + z_alpha))).
    """
    share = np.asarray((replicates < value).mean(axis=0) + (replicates <= value).mean(axis=0)) / 2
    # a value beyond every replicate would be infinitely biased; half a replicate is the most that can be told
    smallest = 0.5 / len(replicates)
    bias = stats.norm.ppf(np.clip(share, smallest, 1 - smallest))
    deviation = left_out.mean(axis=0) - left_out
    spread = (deviation**2).sum(axis=0) ** 1.5
    skewness = np.asarray((deviation**3).sum(axis=0))
    acceleration = np.divide(skewness, 6 * spread, out=np.zeros_like(skewness), where=spread > 0)
    ends: list[Floats] = []
    for tail in stats.norm.ppf(tails):
        moved = np.asarray(stats.norm.cdf(bias + (bias + tail) / (1 - acceleration * (bias + tail))))
        ends.append(_quantile_each(replicates, moved))
    return ends[0], ends[1]


def _quantile_each(replicates: Floats, probability: Floats) -> Floats:
    """Give one quantile per cell, linear between order statistics: (resamples, ...), (...) -> (...)."""
    ordered = np.sort(replicates, axis=0)
    place = np.asarray(probability) * (len(ordered) - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    low, high = (np.take_along_axis(ordered, index[None], axis=0)[0] for index in (below, above))
    return np.asarray(low + (place - below) * (high - low))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    kind: str = "bca",
    level: float = 0.95,
) -> Estimate:
    """Estimate the mean of b - a over pairs; what both share cancels, so the interval is narrow.

    Args:
        a: (n,), one number per pair.
        b: (n,), in the same order.
        rng: draws the resamples.
        resamples: number of resamples.
        kind: ``"percentile"`` or ``"bca"``.
        level: nominal coverage.

    Raises:
        BadInput: when the two are not rows of the same length.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise BadInput(
            f"a paired difference needs two rows of one length; got {left.shape} and {right.shape}."
        )
    parts = bootstrap(right - left, rng, resamples=resamples, kind=kind, level=level)
    value, stderr, low, high = (float(part) for part in parts)
    return Estimate(value, stderr, low, high, len(left), level)
