"""Means and proportions: closed forms, an independent implementation, and coverage over seeds."""

import numpy as np
import pytest
from scipy import stats

from assay.errors import BadInput
from assay.estimates.estimate import Estimate, mean_estimate, mean_interval, proportion


def coverage_bounds(level: float, trials: int, sigmas: float = 4.0) -> tuple[float, float]:
    """Give the range in which the share of covering intervals lies, save once in 16000."""
    reach = sigmas * np.sqrt(level * (1 - level) / trials)
    return level - reach, level + reach


def test_mean_interval_of_four_numbers_by_hand():
    # 1, 2, 3, 4: mean 2.5, s^2 = 5/3, stderr = sqrt(5/12); t(0.975, 3) = 3.182446305284263
    mean, stderr, low, high = mean_interval([1, 2, 3, 4])
    assert mean == 2.5
    assert stderr == pytest.approx(np.sqrt(5 / 12), rel=1e-14)
    assert high - mean == pytest.approx(3.182446305284263 * np.sqrt(5 / 12), rel=1e-12)
    assert mean - low == pytest.approx(high - mean, rel=1e-12)


def test_mean_interval_is_the_same_for_every_cell_and_axis():
    samples = np.random.default_rng(0).normal(size=(3, 7, 2))
    whole = mean_interval(samples, axis=1, level=0.8)
    for row in range(3):
        for column in range(2):
            alone = mean_estimate(samples[row, :, column], level=0.8)
            cell = [part[row, column] for part in whole]
            assert cell == pytest.approx([alone.value, alone.stderr, alone.low, alone.high], rel=1e-12)


def test_mean_interval_adds_up_in_float64():
    samples = np.full(10, 1e8, dtype=np.float32)
    samples[0] += 8  # float32 sums of 1e9 have steps of 64, so a float32 mean would lose this
    assert mean_interval(samples)[0] == 1e8 + 0.8


def test_one_sample_tells_nothing_of_the_spread():
    mean, *rest = mean_interval(np.array([[3.0, 4.0]]))
    assert mean.tolist() == [3.0, 4.0]
    assert all(np.isnan(part).all() and part.shape == (2,) for part in rest)


@pytest.mark.parametrize("level", [0.95, 0.6])
def test_t_interval_covers_at_its_level(level: float):
    trials = 4000
    samples = np.random.default_rng(1).normal(2.0, 3.0, size=(5, trials))
    _, _, low, high = mean_interval(samples, level=level)
    covered = np.mean((low <= 2.0) & (high >= 2.0))
    least, most = coverage_bounds(level, trials)
    assert least < covered < most


@pytest.mark.parametrize(
    ("successes", "n", "level"), [(0, 7, 0.95), (3, 7, 0.9), (7, 7, 0.99), (250, 1000, 0.95)]
)
def test_proportion_equals_scipys_wilson(successes: int, n: int, level: float):
    ours = proportion(successes, n, level)
    theirs = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low <= ours.value <= ours.high
    assert (ours.value, ours.n, ours.level) == (successes / n, n, level)


def test_proportion_stderr_by_hand():
    assert proportion(1, 4).stderr == pytest.approx(np.sqrt(3) / 8, rel=1e-14)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(successes: int, n: int):
    with pytest.raises(BadInput, match="0 <= successes <= n"):
        proportion(successes, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_probability(level: float):
    with pytest.raises(BadInput, match="between 0 and 1"):
        mean_interval([1.0, 2.0], level=level)


def test_no_sample_is_refused():
    with pytest.raises(BadInput, match=r"\(0, 3\)"):
        mean_interval(np.empty((0, 3)))


def test_an_estimate_cannot_be_changed():
    estimate = Estimate(1.0, 0.1, 0.8, 1.2, 9)
    assert estimate.level == 0.95
    with pytest.raises(AttributeError):
        estimate.value = 2.0  # type: ignore[misc]
