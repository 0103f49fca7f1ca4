r"""Change points of a curve: where its level after differs from its level before.

The moving sum statistic compares the mean of the G points from t on with that of the G points before,

.. math:: M_t = \bar y_{[t, t+G)} - \bar y_{[t-G, t)}.

A change point is a peak of \|M_t\| that is the highest within G, above two bars, and as far above the valley
between it and any higher one. One bar is of relevance, a share of the curve's range; the other of noise, which pure
noise passes anywhere with about a given small probability. What noise makes of M is seen in M itself where it is
quietest: so noise may depend on its past (autoregressive, a random walk), and a steady slope is no change. Near the
ends windows are cut short. Source: B. Eichinger and C. Kirch 2018, Bernoulli 24:526 (MOSUM).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import find_peaks
from scipy.stats import halfnorm

from assay.errors import BadInput
from assay.estimates.estimate import Floats

QUIET = 1 / 3
"""Noise is told by the quietest places, this share of them: each change takes up to 2 G places."""
_TILT = 1e-9
"""By which share equal heights are told apart, so that of a level stretch the first place is the peak."""


@dataclass(frozen=True)
class ChangePoints:
    """Where a curve changes, and by how much.

    Attributes:
        index: of the first point after each change, ascending.
        size: level after less level before, in the units of the curve.
        noise: standard deviation of white noise that would make levels differ as much as they do in the quietest third
            of the places; larger where a curve seldom rests.
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
        level: probability, about, that noise without a change passes anywhere.

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
    place, critical = np.arange(len(values)), _critical(len(values), window, level)
    whole = (place >= window) & (place <= len(values) - window)  # where no window is cut short
    chosen, resting = np.zeros(0, dtype=np.intp), whole
    while True:
        noise = float(np.quantile((np.abs(jumps) / spread)[resting], QUIET) / halfnorm.ppf(QUIET))
        before, chosen = (
            chosen,
            _peaks(jumps, np.maximum(critical * noise * spread, share * np.ptp(values)), window),
        )
        # what changed is no noise: look again, without it
        resting = whole & (np.abs(place[:, None] - chosen) > window).all(1)
        if len(chosen) <= len(before) or not resting.any():
            return ChangePoints(tuple(map(int, chosen)), tuple(map(float, jumps[chosen])), noise)


def _peaks(jumps: Floats, bar: Floats, window: int) -> NDArray[np.intp]:
    """Find where jumps are largest within the window, and stand out by the bar."""
    size = np.abs(jumps) * (1 - _TILT * np.linspace(0, 1, len(jumps)))
    size, bar = np.append(size, 0.0), np.append(bar, 0.0)  # a peak has two sides: one place more at the end
    return find_peaks(size, height=bar, prominence=bar, distance=window + 1)[0]


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
