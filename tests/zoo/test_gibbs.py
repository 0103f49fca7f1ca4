import math

import pytest
import torch
from torch.testing import assert_close

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
    assert_close(excess, torch.full_like(excess, expected))  # with no other layer, all of it is expected


def test_what_is_kept_has_the_mean_of_the_drawn_losses_and_less_variance() -> None:
    """The slow way: one chain and one sweep at a time, by the joint Gaussian of each layer's entries."""
    anchor = deep_linear.at_minimal_rank(torch.diag(torch.tensor([1.0, 0.0])).double(), (2, 2, 2))
    n_beta, localization = 20.0, 3.0
    excess = gibbs(
        anchor, n_beta=n_beta, localization=localization, chains=20, sweeps=100, generator=generator(1)
    )
    source, layers, drawn = generator(2), [layer.clone() for layer in anchor], []
    target = deep_linear.product(anchor)
    for _ in range(2000):
        for index in range(2):
            after = layers[1] if index == 0 else torch.eye(2, dtype=torch.float64)
            before = layers[0] if index == 1 else torch.eye(2, dtype=torch.float64)
            slope = torch.kron(after, before.T.contiguous())  # of the map's entries, row by row
            precision = 2 * n_beta * slope.T @ slope + localization * torch.eye(4)
            pull = 2 * n_beta * slope.T @ target.flatten() + localization * anchor[index].flatten()
            law = torch.linalg.cholesky(precision.inverse())
            noise = torch.randn(4, generator=source, dtype=torch.float64)
            layers[index] = (precision.inverse() @ pull + law @ noise).view(2, 2)
        drawn.append(float(n_beta * (deep_linear.product(tuple(layers)) - target).square().sum()))
    slow = torch.tensor(drawn, dtype=torch.float64).view(20, 100)
    stderr = math.hypot(convergence(excess.numpy()).mcse, convergence(slow.numpy()).mcse)
    assert float(excess.mean()) == pytest.approx(float(slow.mean()), abs=4 * stderr)
    assert float(excess.var()) < 0.5 * float(slow.var())


def test_draws_hardly_depend_on_the_one_before() -> None:
    anchor = deep_linear.at_minimal_rank(torch.diag(torch.tensor([1.0, 2.0, 0.0])), (3, 3, 3))
    excess = gibbs(anchor, n_beta=1e4, chains=16, sweeps=300, generator=generator())
    assert convergence(excess.numpy()).ess > 0.5 * excess.numel()
    assert convergence(excess.numpy()).r_hat < 1.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_beta": -100.0}, "n_beta=-100.0"),
        ({"localization": 0.0}, "localization=0.0"),
        ({"sweeps": 0}, "sweeps=0"),
        ({"chains": 0}, "chains=0"),
        ({"burn_in": -1}, "burn_in=-1"),
        ({"covariance": torch.zeros(2, 2)}, "not positive definite"),
        ({"covariance": torch.eye(3)}, r"shape \(3, 3\): expected \(2, 2\)"),
        ({"anchor": (torch.eye(2), torch.eye(3))}, "as many inputs"),
        ({"anchor": (torch.ones(4, 2, 2),)}, "one matrix or more"),
        ({"anchor": ()}, "one matrix or more"),
    ],
)
def test_what_cannot_be_sampled_is_refused(changed: dict, message: str) -> None:
    given = {"anchor": (torch.eye(2), torch.eye(2)), "n_beta": 100.0, "generator": generator(), **changed}
    with pytest.raises(ValueError, match=message):
        gibbs(**given)
