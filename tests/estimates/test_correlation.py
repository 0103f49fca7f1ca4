"""Correlations: an independent implementation, and coverage over seeds."""

import numpy as np
import pytest
from scipy import stats

from assay.errors import BadInput
from assay.estimates.correlation import pearson, spearman


def pairs(seed: int, n: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, r * x + np.sqrt(1 - r**2) * rng.normal(size=n)


@pytest.mark.parametrize("level", [0.95, 0.7])
def test_pearson_equals_scipys(level: float):
    x, y = pairs(0, 30, 0.6)
    ours, theirs = pearson(x, y, level=level), stats.pearsonr(x, y)
    interval = theirs.confidence_interval(level)
    assert ours.value == pytest.approx(theirs.statistic, rel=1e-12)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_spearman_equals_scipys_with_ties():
    x, y = (np.round(values) for values in pairs(1, 50, 0.7))
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)


def test_spearman_interval_by_hand():
    x, y = pairs(2, 28, 0.5)
    ours = spearman(x, y, level=0.9)
    reach = 1.6448536269514722 * np.sqrt((1 + ours.value**2 / 2) / 25)
    expected = np.tanh(np.arctanh(ours.value) - reach), np.tanh(np.arctanh(ours.value) + reach)
    assert (ours.low, ours.high) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", ["pearson", "fisher", "bootstrap"])
def test_covers_at_its_level(method: str):
    trials, level, r, n = 400, 0.9, 0.5, 60
    truth = r if method == "pearson" else 6 / np.pi * np.arcsin(r / 2)  # rank correlation of a normal pair
    covered = 0
    for seed in range(trials):
        x, y = pairs(seed, n, r)
        if method == "pearson":
            estimate = pearson(x, y, level=level)
        elif method == "fisher":
            estimate = spearman(x, y, level=level)
        elif seed >= 60:
            continue
        else:
            rng = np.random.default_rng(seed)
            estimate = spearman(x, y, interval="bootstrap", rng=rng, resamples=300, level=level)
        covered += estimate.low <= truth <= estimate.high
    made = 60 if method == "bootstrap" else trials
    # four binomial standard errors, and 0.02 for intervals that are exact only as n grows
    error = np.sqrt(level * (1 - level) / made)
    assert level - 0.02 - 4 * error < covered / made <= min(1, level + 0.02 + 4 * error)


def test_perfect_and_absent_variation():
    x = np.arange(6.0)
    assert (spearman(x, x**3).low, spearman(x, x**3).high) == (1.0, 1.0)
    assert np.isnan([pearson(x, np.ones(6)).value, pearson(x, np.ones(6)).low]).all()


def test_bad_input():
    with pytest.raises(BadInput, match="at least 4"):
        pearson([1, 2, 3], [1, 2, 3])
    with pytest.raises(BadInput, match="`rng`"):
        spearman([1, 2, 3, 4], [1, 2, 4, 3], interval="bootstrap")
