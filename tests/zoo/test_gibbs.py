import math

import pytest
import torch

from assay.estimates.convergence import convergence
from assay.landscape import known
from assay.zoo import deep_linear
from assay.zoo.gibbs import gibbs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("widths", "rank"),
    [((2, 2, 2), 0), ((4, 4, 4), 2), ((5, 3, 5), 3), ((3, 2, 3), 1), ((2, 2, 2, 2), 0), ((4, 3, 2, 3), 1)],
)
def test_the_sampler_finds_aoyagi_s_coefficient(widths: tuple[int, ...], rank: int) -> None:
    target = deep_linear.teacher(widths, rank, generator=generator(1))
    anchor = deep_linear.at_minimal_rank(target, widths)
    truth = known.deep_linear(widths, rank)
    for n_beta in (1e4, 1e6, 1e8):
        excess = gibbs(anchor, n_beta=n_beta, chains=32, sweeps=400, generator=generator(2))
        # four standard errors, and what the law leaves out: O(1/ln^2) where m > 1; where m = 1, a power of
        # n beta that was seen to be below 2 % at 1e4
        stderr = convergence(excess.numpy()).mcse
        left_out = (truth.multiplicity - 1) * 4 / math.log(n_beta) ** 2 + truth.at(n_beta) * 2 / n_beta**0.5
        assert float(excess.mean()) == pytest.approx(truth.at(n_beta), abs=4 * stderr + left_out), n_beta


@pytest.mark.parametrize(
    ("first", "second", "rank"),
    [((0, 0, 0, 0), (1, 1, 1, 1), 0), ((1, 1, 0, 0), (1, 1, 1, 1), 2), ((1, 1, 0, 0), (0, 1, 1, 0), 1)],
)
def test_elsewhere_on_the_fibre_it_finds_the_local_coefficient(first, second, rank: int) -> None:
    anchor = tuple(torch.diag(torch.tensor(diagonal, dtype=torch.float64)) for diagonal in (first, second))
    truth = known.deep_linear_local([4, 4, 4], (sum(first), sum(second)), rank)
    # gamma holds each weight within 0.03 of the anchor, away from weights of lower coefficient; measured in
    # that ball's units the temperature is n beta / gamma
    excess = gibbs(anchor, n_beta=1e12, localization=1e3, chains=32, sweeps=300, generator=generator())
    left_out = (truth.multiplicity - 1) * 4 / math.log(1e9) ** 2 + 0.05
    stderr = convergence(excess.numpy()).mcse
    assert float(excess.mean()) == pytest.approx(truth.at(1e9), abs=4 * stderr + left_out)


def test_one_layer_is_a_gaussian_whatever_the_covariance_and_the_localization() -> None:
    """Then E[n beta K] is the sum over modes of (1/2) h / (h + gamma), h = 2 n beta times an eigenvalue."""
    spread = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    n_beta, localization = 3.0, 7.0
    excess = gibbs(
        (torch.ones(3, 2),),
        n_beta=n_beta,
        localization=localization,
        covariance=spread,
        chains=40,
        sweeps=500,
        burn_in=0,
        generator=generator(),
    )
    curvature = 2 * n_beta * torch.linalg.eigvalsh(spread)
    expected = 3 * float((curvature / (curvature + localization)).sum()) / 2
    assert excess.shape == (40, 500)
    assert float(excess.mean()) == pytest.approx(expected, abs=4 * convergence(excess.numpy()).mcse)


def test_draws_hardly_depend_on_the_one_before() -> None:
    anchor = deep_linear.at_minimal_rank(torch.diag(torch.tensor([1.0, 2.0, 0.0])), (3, 3, 3))
    excess = gibbs(anchor, n_beta=1e4, chains=16, sweeps=300, generator=generator())
    assert convergence(excess.numpy()).ess > 0.5 * excess.numel()
    assert convergence(excess.numpy()).r_hat < 1.01
