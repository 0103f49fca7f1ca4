import math

import numpy as np
import pytest

from assay.errors import BadInput
from assay.estimates.alignment import alignment

LENGTH = 200


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def events(seed: int, count: int = 4) -> list[int]:
    return sorted(int(place) for place in rng(seed).choice(LENGTH, count, replace=False))


def test_events_that_come_together_are_told_from_chance() -> None:
    first = [events(seed) for seed in range(10)]
    second = [[place + 2 for place in run] for run in first]
    found = alignment(first, second, LENGTH, tolerance=3, rng=rng())
    assert (found.share.value, found.share.low, found.share.high) == (1.0, 1.0, 1.0)
    assert found.events == 40
    # an event of another run lies within 3 with probability of about 4 * 7 / 200
    assert found.baseline.value == pytest.approx(0.14, abs=0.06)
    assert 0 < found.baseline.low < found.baseline.value < found.baseline.high < 0.3
    assert found.p == pytest.approx(1 / 2001)
    assert alignment(first, second, LENGTH, tolerance=1, rng=rng(), shuffles=10).share.value < 0.5


def test_unrelated_events_are_like_chance() -> None:
    chances = [
        alignment(
            [events(seed) for seed in range(start, start + 8)],
            [events(seed + 1000) for seed in range(start, start + 8)],
            LENGTH,
            tolerance=5,
            rng=rng(start),
            shuffles=200,
        ).p
        for start in range(0, 400, 8)
    ]
    # p is uniform or larger: 50 trials, and four standard errors
    assert np.mean(np.array(chances) <= 0.1) <= 0.1 + 4 * (0.09 / 50) ** 0.5
    assert np.mean(chances) > 0.35


def early(rng: np.random.Generator) -> list[int]:
    """Two to four events in the first third, as changes of a training lie."""
    return sorted(int(place) for place in rng.choice(np.arange(5, 36), rng.integers(2, 5), replace=False))


@pytest.mark.parametrize("runs", [4, 12])
def test_events_that_are_early_in_both_series_are_like_chance(runs: int) -> None:
    source, trials = rng(3), 100
    chances = [
        alignment(
            [early(source) for _ in range(runs)],
            [early(source) for _ in range(runs)],
            101,
            tolerance=5,
            rng=source,
            shuffles=200,
        ).p
        for _ in range(trials)
    ]
    # p is uniform or larger; four standard errors
    assert np.mean(np.array(chances) <= 0.05) <= 0.05 + 4 * (0.05 * 0.95 / trials) ** 0.5


def test_a_single_run_is_no_test() -> None:
    source = rng(4)
    for _ in range(5):
        assert math.isnan(alignment([early(source)], [early(source)], 101, tolerance=5, rng=source).p)
    # nor is there a shift where the clock is short
    short = alignment([[3]], [[3]], 11, tolerance=3, rng=source)
    assert math.isnan(short.baseline.value) and short.share.value == 1.0


def test_a_single_run_is_beside_itself_shifted() -> None:
    found = alignment([[30, 90, 150]], [[31, 91, 151]], LENGTH, tolerance=2, rng=rng())
    assert found.share.value == 1.0
    assert found.share.low == pytest.approx(3 / (3 + 1.96**2), rel=1e-3)  # Wilson's at k = n = 3
    shifts = [by for by in range(5, LENGTH - 4)]
    by_hand = [
        sum(any(abs(a - (b + by) % LENGTH) <= 2 for b in (31, 91, 151)) for a in (30, 90, 150)) / 3
        for by in shifts
    ]
    assert found.baseline.value == pytest.approx(np.mean(by_hand))


def test_without_events_there_is_nothing_to_say() -> None:
    found = alignment([[], []], [[3], [4]], LENGTH, tolerance=2, rng=rng())
    assert found.events == 0
    assert math.isnan(found.share.value)
    assert math.isnan(found.p)


@pytest.mark.parametrize(("first", "second", "tolerance"), [([], [], 1), ([[1]], [], 1), ([[1]], [[1]], -1)])
def test_bad_input(first: list[list[int]], second: list[list[int]], tolerance: int) -> None:
    with pytest.raises(BadInput, match="lists of events"):
        alignment(first, second, LENGTH, tolerance=tolerance, rng=rng())
