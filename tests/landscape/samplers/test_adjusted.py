import math

import pytest
import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.chains import Chains, begin, walk
from assay.landscape.samplers import sampler_of
from assay.landscape.samplers.adjusted import AdjustedSGLD
from assay.landscape.samplers.persistent import PersistentSGLD
from assay.landscape.target import Target, target
from assay.zoo.densities import NormalCrossing, Separable
from reference.landscape_truths import crossing_energy

N_BETA, GAMMA, STEP = 145.0, 1.0, 3e-3


def made(module: nn.Module) -> Target:
    return target(module, lambda module, batch: module(batch[0]), torch.zeros(4, 1))


def chains(count: int, step: float, masks: Tensor | None = None) -> Chains:
    setting = torch.tensor([[step] * count, [N_BETA] * count, [GAMMA] * count], dtype=torch.float64)
    return Chains(tuple(range(count)), setting[0], setting[1], setting[2], masks)


def energy(module: nn.Module, sampler: AdjustedSGLD | PersistentSGLD) -> Tensor:
    """Mean of n beta L less the bias of each chain, (chain,)."""
    walking = begin(made(module), chains(64, STEP), sampler)
    walking.advance(800)
    drawn = walking.advance(1200)
    return (N_BETA * drawn.loss - drawn.bias).mean(1)


def test_it_is_exact_where_the_potential_has_a_kink_and_the_bias_law_fails() -> None:
    """|w_1| w_2^2: where w_2 is 1 the valley is an eighth of a step wide."""
    exact = crossing_energy((1, 2), N_BETA, GAMMA)
    each = energy(NormalCrossing([1, 2]), AdjustedSGLD(0.85))
    stderr = float(each.std()) / 8
    assert stderr < 0.03 * exact
    assert float(each.mean()) == pytest.approx(exact, abs=4 * stderr)


def test_without_the_test_what_is_left_of_the_bias_is_seen() -> None:
    exact = crossing_energy((1, 2), N_BETA, GAMMA)
    each = energy(NormalCrossing([1, 2]), PersistentSGLD(0.85))
    assert float(each.mean()) > exact + 3 * float(each.std()) / 8


def test_a_gaussian_has_its_own_variance_at_a_step_near_the_limit() -> None:
    stiff = 2 * N_BETA + GAMMA
    walking = begin(made(Separable([2.0] * 6)), chains(36, 1.5 / stiff), AdjustedSGLD(0.7))
    walking.advance(200)
    squares: list[Tensor] = []
    for _ in range(60):
        walking.advance(10)
        squares.append(walking.position.double().square().mean(1))
    each = torch.stack(squares).mean(0)
    assert float(each.mean()) == pytest.approx(1 / stiff, abs=4 * float(each.std()) / 6)
    assert float(each.std()) / 6 < 0.03 / stiff


def test_without_momentum_it_is_mala_step_for_step() -> None:
    module = NormalCrossing([2, 2])
    mine, mala = (
        walk(made(module), chains(5, 2e-3), 60, sampler)
        for sampler in (AdjustedSGLD(0.0), sampler_of("mala"))
    )
    torch.testing.assert_close(mine.loss, mala.loss, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(mine.reports["acceptance"], mala.reports["acceptance"], rtol=1e-4, atol=1e-5)


def test_a_step_that_is_refused_turns_the_momentum_round() -> None:
    walking = begin(made(Separable([2.0] * 3)), chains(3, 1e3), AdjustedSGLD(0.999999))
    walking.advance(1)
    first = walking.state
    walking.advance(1)
    assert torch.equal(walking.position, first.position)
    torch.testing.assert_close(walking.state.momentum, -first.momentum, rtol=0.1, atol=0.01)


def test_a_mask_holds_still() -> None:
    mask = torch.tensor([[True, False, True]])
    walking = begin(made(Separable([2.0] * 3)), chains(4, 1e-3, mask), AdjustedSGLD())
    walking.advance(30)
    assert bool(((walking.position != 0) == mask).all())


def test_momentum_out_of_range_and_batches_are_refused() -> None:
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(BadInput, match="momentum"):
            AdjustedSGLD(momentum)
    with pytest.raises(BadInput, match="all of the data"):
        setting = torch.ones(2, dtype=torch.float64)
        begin(made(Separable([2.0])), Chains((0, 1), setting, setting, setting, None, 2), AdjustedSGLD())
