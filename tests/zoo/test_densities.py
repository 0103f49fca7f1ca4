import pytest
import torch

from assay.landscape import known
from assay.zoo.densities import NormalCrossing, Separable
from reference.landscape_truths import tempered_excess


def test_the_potentials_are_what_they_say() -> None:
    inputs = torch.zeros(3, 1)
    crossing, separable = NormalCrossing([2, 4]), Separable([2, 4])
    assert crossing(inputs).tolist() == separable(inputs).tolist() == [0, 0, 0]
    for module in (crossing, separable):
        module.weight.data = torch.tensor([-3.0, 0.5])
    assert crossing(inputs).tolist() == [9 / 16] * 3
    assert separable(inputs).tolist() == [9 + 1 / 16] * 3


def test_with_prior_exponents_a_flat_prior_finds_what_the_prior_finds() -> None:
    """By quadrature on a grid of the unit square: of v, with the module's own potential; and of w, with the prior."""
    powers, priors, n_beta = [2.0, 4.0], [0.0, 1.0], 200.0
    crossing = NormalCrossing(powers, priors)
    grid = ((torch.arange(100) + 0.5) / 100).double()
    found = []
    for v in torch.cartesian_prod(grid, grid).float():
        crossing.weight.data = v
        found.append(float(crossing(torch.zeros(1, 1)).detach()))
    flat = n_beta * torch.tensor(found, dtype=torch.float64)
    flat_weight = (-flat).exp()
    excess = n_beta * grid[:, None] ** 2 * grid**4
    weight = (-excess).exp() * grid
    by_prior = float((weight * excess).sum() / weight.sum())
    assert float((flat_weight * flat).sum() / flat_weight.sum()) == pytest.approx(by_prior, rel=0.01)
    assert tempered_excess(powers, priors, n_beta) == pytest.approx(by_prior, rel=0.01)
    effective = crossing.powers.tolist()
    assert known.normal_crossing(effective) == known.normal_crossing(powers, priors)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NormalCrossing([]),
        lambda: Separable([]),
        lambda: Separable([0.5]),
        lambda: Separable([2, float("inf")]),
        lambda: NormalCrossing([2, 2], [0, 1.5]),
        lambda: NormalCrossing([2, 2], [0]),
        lambda: NormalCrossing([2], [-1]),
    ],
)
def test_powers_without_a_slope_are_refused(make) -> None:
    with pytest.raises(ValueError, match="expected one"):
        make()
