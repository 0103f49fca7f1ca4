"""Benjamini-Hochberg: by hand, an independent implementation, and the rate it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from assay.errors import BadInput
from assay.estimates.multiplicity import benjamini_hochberg


def test_by_hand():
    # in order: 0.01*4/1, 0.03*4/2, 0.04*4/3, 0.9*4/4, then the smallest of what follows
    expected = [0.9, 0.04, 0.16 / 3, 0.16 / 3]
    assert benjamini_hochberg([0.9, 0.01, 0.04, 0.03]) == pytest.approx(expected, rel=1e-12)


@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_equals_scipys(p: np.ndarray):
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p), rel=1e-12)


def test_tests_that_were_not_made_do_not_count():
    adjusted = benjamini_hochberg([[0.01, np.nan], [0.5, np.nan]])
    assert adjusted[:, 0] == pytest.approx([0.02, 0.5], rel=1e-12)
    assert np.isnan(adjusted[:, 1]).all()


def test_false_discoveries_stay_below_the_rate():
    rng = np.random.default_rng(0)
    trials, tests, real, q = 1000, 40, 10, 0.2
    shares = []
    for _ in range(trials):
        z = rng.normal(size=tests)
        z[:real] += 3
        found = benjamini_hochberg(2 * stats.norm.sf(np.abs(z))) <= q
        shares.append(found[real:].sum() / max(found.sum(), 1))
    error = np.std(shares) / np.sqrt(trials)
    # for independent tests the rate is exactly q times the share of true nulls
    assert abs(np.mean(shares) - q * (tests - real) / tests) < 4 * error


def test_a_p_value_is_a_probability():
    with pytest.raises(BadInput, match=r"1\.5"):
        benjamini_hochberg([0.1, 1.5])
