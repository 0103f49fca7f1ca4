"""The ratio of means: its value, an independent formula for its error, and how often its interval holds the truth."""

import numpy as np
import pytest

from assay.errors import BadInput
from assay.estimates.ratio import ratio_interval


def test_value_and_standard_error_are_cochrans() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 0.4, 30), rng.normal(2.0, 0.3, 30)
    ratio, stderr, low, high = ratio_interval(x, y)
    covariance = np.cov(x, y)
    variance = covariance[0, 0] - 2 * ratio * covariance[0, 1] + ratio**2 * covariance[1, 1]
    assert float(ratio) == pytest.approx(x.mean() / y.mean())
    assert float(stderr) == pytest.approx(np.sqrt(variance / 30) / y.mean())
    assert float(low + high) / 2 == pytest.approx(float(ratio))


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    rng, held, trials = np.random.default_rng(1), 0, 2000
    shared = rng.normal(3.0, 0.5, (20, trials))
    x, y = 0.5 * shared + rng.normal(0, 0.3, (20, trials)), shared
    _, _, low, high = ratio_interval(x, y, level=0.9)
    held = int(((low <= 0.5) & (0.5 <= high)).sum())
    # four binomial standard errors, and 0.02 for the linearisation
    assert abs(held / trials - 0.9) < 4 * np.sqrt(0.09 / trials) + 0.02


def test_what_both_share_cancels() -> None:
    y = np.array([1.0, 2.0, 5.0])
    ratio, stderr, low, high = ratio_interval(np.stack([0.25 * y, y], -1), y[:, None])
    np.testing.assert_allclose([ratio, low, high], np.broadcast_to([0.25, 1.0], (3, 2)), atol=1e-15)
    np.testing.assert_allclose(stderr, 0, atol=1e-15)


def test_without_spread_or_denominator_nothing_is_made_up() -> None:
    ratio, *rest = ratio_interval([1.0], [4.0])
    assert float(ratio) == 0.25
    assert np.isnan(rest).all()
    assert np.isnan(ratio_interval([1.0, 2.0], [1.0, -1.0])).all()


def test_unpaired_samples_are_refused() -> None:
    with pytest.raises(BadInput, match="paired samples"):
        ratio_interval([1.0, 2.0], [1.0])
