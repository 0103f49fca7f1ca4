r"""Change points of a curve: where its level after differs from its level before.

The moving sum statistic compares the mean of the G points from t on with that of the G points before,

.. math:: M_t = \bar y_{[t, t+G)} - \bar y_{[t-G, t)}.

A change point is a place where \|M_t\| is largest among its neighbours within G and above two bars: one of noise,
which pure noise passes anywhere with a given small probability, and one of relevance, a share of the curve's range.
Near the ends windows are cut short. Source: B. Eichinger and C. Kirch 2018, Bernoulli 24:526 (MOSUM).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from assay.errors import BadInput
from assay.estimates.estimate import Floats


@dataclass(frozen=True)
class ChangePoints:
    """Where a curve changes, and by how much.

    Attributes:
        index: of the first point after each change, ascending.
        size: level after less level before, in the units of the curve.
        noise: standard deviation of a point around its level, from differences of neighbours.
    """

    index: tuple[int, ...]
    size: tuple[float, ...]
    noise: float


def change_points(curve: ArrayLike, *, window: int, share: float = 0.05, level: float = 0.05) -> ChangePoints:
    """Find the changes of a curve.

    Args:
        curve: (n,), finite, evenly spaced in whatever the curve runs over.
        window: G, points in a level; changes closer than this are told as one.
        share: smallest change that counts, as a share of the curve's range.
        level: probability that noise without a change passes anywhere.

    Raises:
        BadInput: too few points for the window, points that are not finite, or a setting out of range.
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.ndim != 1 or window < 1 or len(values) < 2 * window or not np.isfinite(values).all():
        raise BadInput(
            f"change points of a curve of shape {values.shape} with window {window}: expected a row of finite "
            "numbers, at least twice as long as the window, which is at least 1."
        )
    if not (0 <= share < 1 and 0 < level < 1):
        raise BadInput(f"share={share} and level={level}: expected 0 <= share < 1 and 0 < level < 1.")
    jumps, spread = _moving(values, window)
    noise = 1.4826 * float(np.median(np.abs(np.diff(values)))) / math.sqrt(2)
    bar = np.maximum(_critical(len(values), window, level) * noise * spread, share * np.ptp(values))
    size = np.abs(jumps)
    # strictly above those before, so that of equal neighbours the first is taken
    chosen = [
        place
        for place in range(1, len(values))
        if size[place] > bar[place]
        and size[place] > size[max(1, place - window) : place].max(initial=0)
        and size[place] >= size[place : place + window + 1].max()
    ]
    return ChangePoints(tuple(chosen), tuple(float(jumps[place]) for place in chosen), noise)


def _moving(values: Floats, window: int) -> tuple[Floats, Floats]:
    """Give M_t for each t (0 at t = 0), and its standard deviation for noise of one unit."""
    total = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    place = np.arange(len(values))
    start, stop = np.maximum(place - window, 0), np.minimum(place + window, len(values))
    before, after = np.maximum(place - start, 1), stop - place
    jumps = (total[stop] - total[place]) / after - (total[place] - total[start]) / before
    jumps[0] = 0.0
    return jumps, np.sqrt(1 / before + 1 / after)


def _critical(n: int, window: int, level: float) -> float:
    """Give the bar for a standardized statistic, from the extreme value law of its maximum over all places."""
    spans = max(n / window, math.e)  # the law is asymptotic in n / G
    root = math.log(spans)
    scale = math.sqrt(2 * root)
    shift = 2 * root + math.log(root) / 2 + math.log(1.5) - math.log(math.pi) / 2
    return (shift - math.log(-math.log(1 - level) / 2)) / scale
