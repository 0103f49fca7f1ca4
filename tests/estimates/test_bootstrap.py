"""Bootstrap: an independent implementation, symmetry, and coverage over seeds."""

import numpy as np
import pytest
from scipy import stats

from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap, paired_difference


def median(samples: np.ndarray) -> np.ndarray:
    return np.median(samples, axis=0)


@pytest.mark.parametrize(("kind", "theirs"), [("percentile", "percentile"), ("bca", "BCa")])
def test_agrees_with_scipy_on_skewed_samples(kind: str, theirs: str):
    samples = np.random.default_rng(0).exponential(size=40)
    # ends are quantiles of random resamples: with 20000 of them their standard error is below 0.02 stderr
    ours = bootstrap(samples, np.random.default_rng(1), resamples=20000, kind=kind, level=0.9)
    reference = stats.bootstrap(
        (samples,),
        np.mean,
        n_resamples=20000,
        method=theirs,
        confidence_level=0.9,
        rng=np.random.default_rng(2),
    )
    tolerance = 0.1 * reference.standard_error
    assert ours[0] == samples.mean()
    assert ours[1] == pytest.approx(reference.standard_error, rel=0.03)
    assert ours[2] == pytest.approx(reference.confidence_interval.low, abs=tolerance)
    assert ours[3] == pytest.approx(reference.confidence_interval.high, abs=tolerance)


def test_bca_moves_towards_the_long_tail():
    samples = np.random.default_rng(3).exponential(size=30)
    plain = bootstrap(samples, np.random.default_rng(0), kind="percentile")
    moved = bootstrap(samples, np.random.default_rng(0), kind="bca")
    assert moved[2] > plain[2]
    assert moved[3] > plain[3]


def test_cells_are_those_of_the_single_rows():
    samples = np.random.default_rng(4).normal(size=(12, 2, 3))
    whole = bootstrap(samples, np.random.default_rng(5), median, resamples=200)
    for row in range(2):
        for column in range(3):
            alone = bootstrap(samples[:, row, column], np.random.default_rng(5), median, resamples=200)
            assert [part[row, column] for part in whole] == pytest.approx(
                [float(part) for part in alone], rel=1e-12
            )


def test_the_same_generator_state_gives_the_same_bytes():
    samples = np.random.default_rng(6).normal(size=20)
    first, second, other = (
        np.array(bootstrap(samples, np.random.default_rng(seed), resamples=50)).tobytes()
        for seed in (7, 7, 8)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_covers_at_its_level(kind: str):
    trials, level = 500, 0.8
    samples = np.random.default_rng(9).normal(size=(60, trials))
    _, _, low, high = bootstrap(samples, np.random.default_rng(10), resamples=400, kind=kind, level=level)
    covered = np.mean((low <= 0) & (high >= 0))
    # four binomial standard errors, and 0.02 by which a bootstrap of 60 samples falls short of its level
    error = np.sqrt(level * (1 - level) / trials)
    assert level - 0.02 - 4 * error < covered < level + 4 * error


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_what_does_not_vary_has_an_interval_without_width(kind: str):
    value, stderr, low, high = bootstrap(np.full(9, 0.25), np.random.default_rng(0), kind=kind, resamples=20)
    assert (value, stderr, low, high) == (0.25, 0.0, 0.25, 0.25)


def test_pairing_cancels_what_both_share():
    rng = np.random.default_rng(11)
    shared = rng.normal(0, 100, size=50)
    a, b = shared + rng.normal(0, 0.1, 50), shared + 1 + rng.normal(0, 0.1, 50)
    difference = paired_difference(a, b, np.random.default_rng(0))
    assert difference.low < 1 < difference.high
    assert difference.high - difference.low < 0.2
    assert difference.value == pytest.approx((b - a).mean(), rel=1e-12)
    assert difference.n == 50


def test_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(BadInput, match="at least two samples"):
        bootstrap([1.0], rng)
    with pytest.raises(BadInput, match="'percentile' or 'bca'"):
        bootstrap([1.0, 2.0], rng, kind="basic")
    with pytest.raises(BadInput, match=r"\(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3], rng)
