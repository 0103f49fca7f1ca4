"""A number with its uncertainty: means with t-intervals, proportions with Wilson intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from assay.errors import BadInput

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: its standard error; NaN where one sample cannot tell.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of samples it rests on.
        level: nominal coverage of the interval.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    level: float = 0.95


def mean_interval(
    samples: ArrayLike, axis: int = 0, level: float = 0.95
) -> tuple[Floats, Floats, Floats, Floats]:
    """Give the mean along one axis with Student's t-interval, in float64.

    mean +- t * s / sqrt(n), with s the sample standard deviation (n - 1) and t the quantile of Student's
    distribution with n - 1 degrees of freedom. Exact for independent normal samples; for others it is
    as good as the mean of n of them is normal.

    Args:
        samples: independent samples along ``axis``, any other axes beside it.
        axis: the axis that counts the samples.
        level: nominal coverage.

    Returns:
        mean, stderr, low, high; each has the shape of ``samples`` without ``axis``. With one sample, all but
        the mean are NaN: nothing is known of the spread.

    Raises:
        BadInput: when there is no sample.
    """
    check_level(level)
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim == 0 or values.shape[axis] == 0:
        raise BadInput(f"a mean needs a sample or more along axis {axis}; the shape is {values.shape}.")
    n = values.shape[axis]
    mean = np.asarray(values.mean(axis=axis))
    if n == 1:
        unknown = np.full_like(mean, np.nan)
        return mean, unknown, unknown.copy(), unknown.copy()
    stderr = np.asarray(values.std(axis=axis, ddof=1) / np.sqrt(n))
    reach = stats.t.ppf((1 + level) / 2, n - 1) * stderr
    return mean, stderr, np.asarray(mean - reach), np.asarray(mean + reach)


def mean_estimate(samples: ArrayLike, level: float = 0.95) -> Estimate:
    """Give the mean of a row of independent samples as an `Estimate`; see `mean_interval`."""
    values = np.ravel(np.asarray(samples, dtype=np.float64))
    mean, stderr, low, high = (float(part) for part in mean_interval(values, level=level))
    return Estimate(mean, stderr, low, high, values.size, level)


def proportion(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Estimate a probability from ``successes`` in ``n`` independent trials, with Wilson's score interval.

    The interval is the set of p that a score test does not reject: centre (k + z^2/2) / (n + z^2), reach
    z / (n + z^2) * sqrt(k (n - k) / n + z^2 / 4). Unlike k/n +- z s it stays within [0, 1] and is not empty
    at k = 0 or k = n (E. B. Wilson 1927, Journal of the American Statistical Association 22:209).

    Args:
        successes: k, from 0 to n.
        n: number of trials.
        level: nominal coverage.

    Returns:
        The estimate k/n, with the standard error sqrt(k/n (1 - k/n) / n).

    Raises:
        BadInput: when the counts are not 0 <= successes <= n with n >= 1.
    """
    check_level(level)
    if not (n >= 1 and 0 <= successes <= n):
        raise BadInput(f"a proportion of {successes} in {n}: expected 0 <= successes <= n and n >= 1.")
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = (successes + z**2 / 2) / (n + z**2)
    reach = z / (n + z**2) * np.sqrt(successes * (n - successes) / n + z**2 / 4)
    # at k = 0 and k = n the ends are 0 and 1 exactly; rounding must not leave k/n outside
    low = 0.0 if successes == 0 else float(centre - reach)
    high = 1.0 if successes == n else float(centre + reach)
    return Estimate(share, float(np.sqrt(share * (1 - share) / n)), low, high, n, level)


def check_level(level: Any) -> None:
    """Refuse a level that is not a probability strictly between 0 and 1.

    Raises:
        BadInput: when it is not.
    """
    if not 0 < level < 1:
        raise BadInput(f"level is {level!r}: expected a probability between 0 and 1, such as 0.95.")
