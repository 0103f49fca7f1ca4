"""Convergence figures: known answers for independent, autoregressive and disagreeing chains."""

import numpy as np
import pytest

from assay.errors import BadInput
from assay.estimates.convergence import convergence


def test_independent_draws_count_in_full():
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(4, 2000))
    figures = convergence(draws)
    assert abs(figures.r_hat - 1) < 0.01
    # the estimated size of 8000 independent draws scatters by a few per cent
    assert figures.ess == pytest.approx(8000, rel=0.1)
    assert figures.mcse == pytest.approx(2 / np.sqrt(8000), rel=0.1)


def test_an_autoregressive_chain_has_its_known_size():
    rho, n = 0.8, 20000
    noise = np.random.default_rng(1).normal(size=(2, n))
    draws = np.zeros((2, n))
    for step in range(1, n):
        draws[:, step] = rho * draws[:, step - 1] + noise[:, step]
    # n (1 - rho) / (1 + rho) independent draws; its estimate scatters by about 5 % at this length
    assert convergence(draws).ess == pytest.approx(2 * n * (1 - rho) / (1 + rho), rel=0.2)


def test_chains_that_disagree_and_chains_that_drift_are_seen():
    rng = np.random.default_rng(2)
    apart = rng.normal(size=(2, 500)) + np.array([[0.0], [3.0]])
    assert convergence(apart).r_hat > 1.5
    drifting = rng.normal(size=(1, 500)) + np.linspace(0, 5, 500)  # one chain: seen only because it is split
    assert convergence(drifting).r_hat > 1.5


def test_bad_input():
    with pytest.raises(BadInput, match=r"\[chain, draw\]"):
        convergence(np.zeros(10))
    draws = np.zeros((2, 10))
    draws[1, 3] = np.nan
    with pytest.raises(BadInput, match="1 draws are NaN"):
        convergence(draws)
