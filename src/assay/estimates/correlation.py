"""Correlations with their intervals."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.estimates.estimate import Estimate, Floats, check_level


def pearson(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Estimate the linear correlation of pairs, with Fisher's interval.

    artanh(r) is nearly normal with standard error 1 / sqrt(n - 3) for jointly normal pairs; the interval is
    taken there and mapped back. The standard error of r itself is (1 - r^2) / sqrt(n - 3).

    Args:
        x: (n,), n at least 4.
        y: (n,).
        level: nominal coverage.

    Returns:
        The estimate; NaN throughout where x or y does not vary.
    """
    left, right = _pairs(x, y)
    return _fisher(_correlation(left, right), len(left), 1.0, level)


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    *,
    interval: Literal["fisher", "bootstrap"] = "fisher",
    rng: np.random.Generator | None = None,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate the rank correlation of pairs; ties share the mean of their ranks.

    Fisher's interval widens the standard error of artanh by 1 + r^2 / 2 under the root (D. G. Bonett and
    T. A. Wright 2000, Psychometrika 65:23). The bootstrap (percentile) resamples pairs, and assumes nothing
    about how they are distributed.

    Args:
        x: (n,), n at least 4.
        y: (n,).
        interval: ``"fisher"`` or ``"bootstrap"``.
        rng: draws the resamples; needed for the bootstrap.
        resamples: number of resamples of the bootstrap.
        level: nominal coverage.

    Returns:
        The estimate; NaN throughout where x or y does not vary.

    Raises:
        BadInput: when the bootstrap is asked for without ``rng``.
    """
    left, right = _pairs(x, y)
    r = _rank_correlation(np.stack([left, right], axis=1))
    if interval == "fisher":
        return _fisher(float(r), len(left), 1 + float(r) ** 2 / 2, level)
    if rng is None:
        raise BadInput(
            "the bootstrap interval of a rank correlation needs `rng`, a numpy Generator with a seed."
        )
    pairs = np.stack([left, right], axis=1)
    parts = bootstrap(pairs, rng, _rank_correlation, resamples=resamples, kind="percentile", level=level)
    value, stderr, low, high = (float(part) for part in parts)
    return Estimate(value, stderr, low, high, len(left), level)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or left.size < 4:
        raise BadInput(
            f"a correlation needs two rows of one length, at least 4; got {left.shape} and {right.shape}."
        )
    return left, right


def _correlation(x: Floats, y: Floats) -> float:
    left, right = x - x.mean(), y - y.mean()
    scale = np.sqrt((left**2).sum() * (right**2).sum())
    return float(np.clip((left * right).sum() / scale, -1, 1)) if scale > 0 else float("nan")


def _rank_correlation(pairs: Floats) -> Floats:
    """Give the rank correlation of (n, 2) as an array without axes."""
    return np.asarray(_correlation(stats.rankdata(pairs[:, 0]), stats.rankdata(pairs[:, 1])))


def _fisher(r: float, n: int, widening: float, level: float) -> Estimate:
    """Give Fisher's interval; ``widening`` multiplies the variance of artanh(r)."""
    check_level(level)
    error = float(np.sqrt(widening / (n - 3)))
    if abs(r) == 1:
        return Estimate(r, 0.0, r, r, n, level)
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    low, high = np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)
    return Estimate(r, (1 - r**2) * error, float(low), float(high), n, level)
