import numpy as np
import pytest
import torch

from assay.landscape import target as target_module
from assay.landscape.chains import Chains, begin
from assay.landscape.estimators import Draws, mean, slope, summary, variance, wbic
from assay.landscape.fluctuation import fluctuation
from assay.landscape.losses import squared_error
from assay.landscape.minimum import each_loss
from assay.landscape.target import target
from assay.zoo import deep_linear

RNG = np.random.default_rng(0)
D, N_BETA = 12, 30.0


def draws(n_beta: float, step: float = 0.0) -> Draws:
    """Exact draws of a quadratic of D directions as Langevin dynamics gives them: n beta L is half a chi-square."""
    heat = 1 / (1 - step / 4)  # step in units of 1 / curvature
    halves = heat * RNG.chisquare(D, size=(16, 4000)) / 2
    bias = np.full(halves.shape, D / 2 * (heat - 1))
    return Draws(2.0 + halves / n_beta, bias, n_beta, 2.0)


@pytest.mark.parametrize("step", [0.0, 0.2])
def test_mean_variance_and_slope_agree_where_all_are_exact(step: float) -> None:
    cold, hot = draws(N_BETA, step), draws(N_BETA / 3, step)
    for found in (mean(cold)["llc"], variance(cold)["llc_variance"], slope(cold, hot)["llc_slope"]):
        assert found == pytest.approx(D / 2, rel=0.02)
    assert mean(cold)["llc_raw"] - mean(cold)["llc_bias"] == pytest.approx(mean(cold)["llc"])


def test_the_slope_and_the_variance_need_no_baseline() -> None:
    cold, hot = draws(N_BETA), draws(N_BETA / 3)
    moved = [Draws(each.loss, each.bias, each.n_beta, 99.0) for each in (cold, hot)]
    assert slope(*moved) == slope(cold, hot)
    assert variance(moved[0]) == variance(cold)


def test_wbic_is_n_times_the_mean_loss() -> None:
    cold = draws(N_BETA)
    found = wbic(mean(cold), 100, N_BETA, 2.0)
    assert found["wbic"] == pytest.approx(100 * cold.loss.mean())
    assert found["wbic_low"] < found["wbic"] < found["wbic_high"]


def test_below_the_anchor_there_is_no_number() -> None:
    cold = draws(N_BETA)
    found = mean(Draws(cold.loss - 5, cold.bias, cold.n_beta, cold.baseline))
    assert np.isnan(found["llc"])
    assert found["llc_raw"] < 0


def test_one_chain_gives_no_number() -> None:
    assert np.isnan(summary(draws(N_BETA).excess[:1])["llc"])


@pytest.mark.parametrize(("tokens", "looked_at"), [(1, 1000), (5, 1000), (1, 250)])
def test_the_singular_fluctuation_of_a_regular_model_is_half_its_parameters(
    monkeypatch, tokens: int, looked_at: int
) -> None:
    """A linear model with unit noise at beta = 1: nu = d/2. The loss is a negative log likelihood."""
    generator = torch.Generator().manual_seed(0)
    n, inputs = 1000, 4
    x = torch.randn(n, tokens, inputs, generator=generator)
    noise = torch.randn(n, tokens, 1, generator=generator)
    y = x @ torch.randn(inputs, 1, generator=generator) + noise
    module = torch.nn.Linear(inputs, 1, bias=False)
    solution = torch.linalg.lstsq(x.flatten(0, 1), y.flatten(0, 1)).solution
    module.weight = torch.nn.Parameter(solution.T.contiguous())
    monkeypatch.setattr(target_module, "WORK", inputs * looked_at)
    made = target(module, lambda module, batch: (module(batch[0]) - batch[1]).square()[..., 0] / 2, (x, y))
    one = torch.ones(12, dtype=torch.float64)
    n_beta = n * tokens  # of the mean over tokens, so that the sum has the temperature 1
    walking = begin(made, Chains(tuple(range(12)), 2e-4 / tokens * one, n_beta * one, one))
    walking.advance(200)
    each = fluctuation(made, walking, 40, n_beta=n_beta)
    stderr = float(each.std()) / 12**0.5
    assert made.seen == looked_at
    # examples that stand for all have their own mean of x x^T: 3 % with 250
    assert float(each.mean()) == pytest.approx(inputs / 2, abs=4 * stderr + 0.15)
    assert stderr < 0.15


def test_losses_of_examples_are_those_of_the_module_at_these_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    map_ = deep_linear.teacher((3, 4, 2), 2, generator=generator)
    module = deep_linear.as_module(deep_linear.at_minimal_rank(map_, (3, 4, 2)))
    x, y = deep_linear.examples(map_, 30, generator=generator)
    made = target(module, squared_error, (x, y))
    before = made.anchor()
    found = each_loss(made, before[None] * 1.5)
    expected = (2.25 * x @ map_.T - y).square().sum(1).double()
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(made.anchor(), before)
