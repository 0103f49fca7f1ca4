"""Alignment: do events in one series come with events in another, more often than chance would have it?

Every run has two lists of events on a common clock. An event of the first kind is matched when one of the second kind
lies within a tolerance. The alignment is the share that is matched. Chance is the same share after shuffling: events of
one run against those of the others. With a single run it is the share after its own events were shifted around the
clock, which is there to be looked at and is no test: where changes are early in training, as they mostly are, a shift
takes them apart whether or not they belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from assay.errors import BadInput
from assay.estimates.estimate import Estimate, Floats, proportion
from assay.estimates.ratio import ratio_interval

Events = Sequence[int]


@dataclass(frozen=True)
class Alignment:
    """How often events of the first kind come with one of the second.

    Attributes:
        share: of events matched, with its interval over runs (over events with a single run).
        baseline: the same after shuffling.
        p: probability that shuffling gives as large a share; NaN where there is no event, or one run alone.
        events: of the first kind, in all runs.
    """

    share: Estimate
    baseline: Estimate
    p: float
    events: int


def alignment(
    first: Sequence[Events],
    second: Sequence[Events],
    length: int,
    *,
    tolerance: int,
    rng: np.random.Generator,
    shuffles: int = 2000,
) -> Alignment:
    """Tell how often events of the first kind come with one of the second.

    With several runs, shuffling gives each run's first list another run's second list (`shuffles` permutations for
    p; all other runs for the baseline). With one run there is no p, and for the baseline the second list goes round
    the clock, by all shifts of more than twice the tolerance.

    Args:
        first: for each run its events, as places 0, ..., length - 1.
        second: for each run.
        length: of the clock.
        tolerance: how far apart a match may be.
        rng: draws the permutations.
        shuffles: how many.

    Raises:
        BadInput: when there is no run, not both lists for each, or a tolerance below 0.
    """
    if not first or len(first) != len(second) or tolerance < 0:
        raise BadInput(
            f"{len(first)} and {len(second)} lists of events, tolerance {tolerance}: give both lists for each run, "
            "and a tolerance of 0 or more."
        )
    counts = np.array([len(events) for events in first], dtype=np.float64)
    nothing = Estimate(*[float("nan")] * 4, n=len(first))
    if counts.sum() == 0:
        return Alignment(nothing, nothing, float("nan"), 0)
    matched = np.array([[_matched(a, b, tolerance) for b in second] for a in first], dtype=np.float64)
    own = np.diag(matched)
    total = int(counts.sum())
    if len(first) == 1:
        shifts = range(2 * tolerance + 1, length - 2 * tolerance)
        shifted = np.array(
            [_matched(first[0], [(place + by) % length for place in second[0]], tolerance) for by in shifts],
            dtype=np.float64,
        )
        return Alignment(proportion(int(own[0]), total), _spread(shifted / total), float("nan"), total)
    runs = len(first)
    others = (matched.sum(1) - own) / (runs - 1)
    drawn = np.array([matched[np.arange(runs), rng.permutation(runs)].sum() for _ in range(shuffles)])
    return Alignment(_ratio(own, counts), _ratio(others, counts), _tail(drawn, float(own.sum())), total)


def _matched(first: Events, second: Events, tolerance: int) -> int:
    return sum(any(abs(a - b) <= tolerance for b in second) for a in first)


def _tail(shuffled: Floats, observed: float) -> float:
    """Give the share of shuffles at least as large, the observed one counted among them."""
    return float((1 + (shuffled >= observed).sum()) / (1 + len(shuffled)))


def _ratio(matched: Floats, counts: Floats) -> Estimate:
    value, stderr, low, high = (float(part) for part in ratio_interval(matched, counts))
    return Estimate(value, stderr, max(low, 0.0), min(high, 1.0), len(counts))


def _spread(shares: Floats) -> Estimate:
    """Give the mean over all shifts with the middle 95% of them: there is no sampling error."""
    if not len(shares):
        return Estimate(*[float("nan")] * 4, n=0)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Estimate(float(shares.mean()), float(shares.std()), float(low), float(high), len(shares))
