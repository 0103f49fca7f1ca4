import math

import pytest
import torch

from assay.errors import BadInput
from assay.landscape.chains import Chains, begin, walk
from assay.landscape.losses import squared_error
from assay.landscape.samplers.persistent import PersistentSGLD
from assay.landscape.target import Target, target
from assay.zoo import deep_linear
from assay.zoo.densities import Separable

N_BETA, GAMMA, STEP = 20.0, 3.0, 2e-2
STIFF = 2 * N_BETA + GAMMA


def bowl() -> Target:
    return target(Separable([2.0] * 6), lambda module, batch: module(batch[0]), torch.zeros(4, 1))


def chains(count: int, batch_size: int | None = None, masks: torch.Tensor | None = None) -> Chains:
    setting = torch.tensor([[STEP] * count, [N_BETA] * count, [GAMMA] * count], dtype=torch.float64)
    return Chains(tuple(range(count)), setting[0], setting[1], setting[2], masks, batch_size)


def test_without_momentum_it_is_langevin_dynamics_step_for_step() -> None:
    map_ = deep_linear.teacher((3, 4, 2), 2, generator=torch.Generator().manual_seed(0))
    module = deep_linear.as_module(deep_linear.at_minimal_rank(map_, (3, 4, 2)))
    made = target(
        module, squared_error, deep_linear.examples(map_, 30, generator=torch.Generator().manual_seed(1))
    )
    plain, kept = walk(made, chains(3), 40), walk(made, chains(3), 40, PersistentSGLD(0.0))
    torch.testing.assert_close(kept.loss, plain.loss, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(kept.bias, plain.bias, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_leaves_the_law_of_the_draws_as_it_is(momentum: float) -> None:
    """Variance 1 / (h (1 - eps h / 4)), far from 1 / h at this step size, and the bias that says so."""
    walking = begin(bowl(), chains(64), PersistentSGLD(momentum))
    walking.advance(300)
    squares: list[torch.Tensor] = []
    biases: list[torch.Tensor] = []
    for _ in range(60):
        biases.append(walking.advance(20).bias.mean(1))
        squares.append(walking.position.double().square().mean(1))
    expected = 1 / (STIFF * (1 - STEP * STIFF / 4))
    each = torch.stack(squares).mean(0)
    assert float(each.mean()) == pytest.approx(expected, abs=4 * float(each.std()) / 8)
    assert float(each.std()) / 8 < 0.02 * expected
    added = 6 / 2 * (expected * STIFF - 1)
    each = torch.stack(biases).mean(0)
    assert float(each.mean()) == pytest.approx(added, abs=4 * float(each.std()) / 8)


def test_a_flat_direction_is_explored_faster() -> None:
    def reached(sampler: PersistentSGLD) -> float:
        quartic = target(Separable([8.0] * 40), lambda module, batch: module(batch[0]), torch.zeros(4, 1))
        setting = torch.tensor([[1e-5] * 16, [1.0] * 16, [1e-3] * 16], dtype=torch.float64)
        walking = begin(quartic, Chains(tuple(range(16)), setting[0], setting[1], setting[2]), sampler)
        walking.advance(400)
        return float(walking.position.square().mean())

    # free diffusion: the mean square after t steps is eps t (1 + c) / (1 - c)
    assert reached(PersistentSGLD(0.0)) == pytest.approx(1e-5 * 400, rel=0.25)
    assert reached(PersistentSGLD(0.9)) == pytest.approx(19 * 1e-5 * 400, rel=0.25)


def test_a_mask_holds_still() -> None:
    mask = torch.tensor([[True, False, True, True, False, True]])
    walking = begin(bowl(), chains(4, masks=mask), PersistentSGLD())
    walking.advance(30)
    moved = walking.position != 0
    assert bool((moved == mask).all())


def test_momentum_out_of_range_is_refused() -> None:
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(BadInput, match="momentum"):
            PersistentSGLD(momentum)
