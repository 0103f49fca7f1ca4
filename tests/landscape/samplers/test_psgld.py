"""The bias of the loss under a preconditioner, in a Gaussian where it is known to every order."""

import torch

from assay.landscape.chains import Chains, begin
from assay.landscape.samplers.psgld import PSGLD
from assay.landscape.target import target
from assay.landscape.walks import bias_of_loss
from assay.zoo.densities import Separable

N_BETA, GAMMA, STEP, CHAINS = 20.0, 60.0, 8e-3, 200


def test_what_falls_on_the_loss_is_weighted_by_the_preconditioner() -> None:
    """Powers 2 and 8: the second direction is held by the localization alone, and so walked in long steps."""
    made = target(Separable([2.0, 8.0]), lambda module, batch: module(batch[0]), torch.zeros(4, 1))
    one = torch.ones(CHAINS, dtype=torch.float64)
    chains = Chains(tuple(range(CHAINS)), STEP * one, N_BETA * one, GAMMA * one)
    sampler = PSGLD(adapt=100, damping=0.05)
    walking = begin(made, chains, sampler)
    walking.advance(150)
    drawn = walking.advance(1500)
    stiff, scale = 2 * N_BETA + GAMMA, walking.state.scale.double()[:, 0]
    share = STEP * scale * stiff / 4
    added = (N_BETA / stiff) * share / (1 - share)  # its loss is w^2, of variance 1 / (stiff (1 - share))
    found = bias_of_loss(drawn, chains, sampler).mean(1) - added
    stderr = float(found.std()) / CHAINS**0.5
    assert stderr < 0.01 * float(added.mean())
    assert abs(float(found.mean())) < 4 * stderr
    with_one = drawn.bias - sampler.bias(chains.step_size[:, None], 2 * GAMMA * drawn.virial)
    assert abs(float((with_one.mean(1) - added).mean())) > 0.1 * float(added.mean())
    # and less that, the loss is that of the Gaussian; the other direction has next to none
    excess = N_BETA * drawn.loss.mean(1) - bias_of_loss(drawn, chains, sampler).mean(1)
    assert abs(float(excess.mean()) - N_BETA / stiff) < 4 * float(excess.std()) / CHAINS**0.5
