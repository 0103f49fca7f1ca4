from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from assay.landscape import chains as chains_module
from assay.landscape.chains import Chains, InTurn, begin, walk
from assay.landscape.gradients import Functional
from assay.landscape.losses import squared_error
from assay.landscape.samplers import sampler_of
from assay.landscape.samplers.mala import MALA
from assay.landscape.target import target
from reference.landscape_slow import slow_walk


def network() -> nn.Sequential:
    module, generator = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        torch.Generator().manual_seed(0),
    )
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    return module


DATA = (torch.randn(30, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(30, 2))
SEEDS = (5, 6, 7)
STEP, BETA, GAMMA = (
    torch.tensor([1e-3, 2e-3, 5e-4]),
    torch.tensor([20.0, 5.0, 9.0]),
    torch.tensor([1.0, 0.0, 30.0]),
)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_chains_together_take_the_steps_each_takes_alone_on_the_module(batch_size: int | None) -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    mask = {"0.weight": torch.rand(4, 3, generator=torch.Generator().manual_seed(2)) > 0.5}
    made = target(module, squared_error, DATA, mask=mask)
    assert made.mask is not None
    chains = Chains(SEEDS, STEP, BETA, GAMMA, made.mask[None], batch_size)
    for way in (None, Functional(made)):
        traces = walk(made, chains, 40, gradient=way)
        for chain, seed in enumerate(SEEDS):
            losses, distances = slow_walk(
                module,
                squared_error,
                DATA,
                seed=seed,
                step_size=float(STEP[chain]),
                n_beta=float(BETA[chain]),
                localization=float(GAMMA[chain]),
                batch_size=batch_size,
                steps=40,
                mask=mask,
            )
            # float32 rounding, grown over 40 steps of a contracting walk
            assert_close(traces.loss[chain].float(), losses, rtol=1e-4, atol=1e-5)
            assert_close(traces.distance[chain].float(), distances, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_equal_seeds_see_equal_noise() -> None:
    made = target(network(), squared_error, DATA)
    same = Chains((3, 3, 4), *torch.tensor([[1e-3] * 3, [9.0] * 3, [1.0] * 3]), None, 5)
    loss = walk(made, same, 10).loss
    assert torch.equal(loss[0], loss[1])
    assert not torch.equal(loss[0], loss[2])
    alone = walk(made, replace(same, seeds=(4, 5, 3)), 10).loss  # numbers that each chain draws for itself
    assert_close(loss[[0, 2]], alone[[2, 0]], rtol=1e-5, atol=0)
    accepting = [
        walk(made, replace(same, seeds=seeds, batch_size=None), 10, MALA()).loss
        for seeds in ((3, 3, 4), (4, 5, 3))
    ]
    assert_close(accepting[0][[1, 2]], accepting[1][[2, 0]], rtol=1e-5, atol=0)


def test_the_first_step_is_at_the_anchor_and_each_chain_has_its_own_mask() -> None:
    made = target(network(), squared_error, DATA)
    masks = torch.zeros(2, len(made.anchor()), dtype=torch.bool)
    masks[0, :3] = True
    traces = walk(made, Chains((1, 2), *torch.tensor([[1e-3] * 2, [9.0] * 2, [1.0] * 2]), masks), 5)
    expected = squared_error(made.module, DATA).mean().double().detach()
    assert_close(traces.loss[:, 0], expected.expand(2), rtol=1e-6, atol=0)
    assert traces.distance[:, 0].tolist() == [0, 0]
    assert float(traces.distance[0, -1]) > 0
    assert traces.distance[1].tolist() == [0] * 5
    assert traces.squared_gradient[1].tolist() == [0] * 5


def test_a_strong_localization_keeps_chains_at_its_own_distance() -> None:
    """With gamma alone in force the distance is that of a Gaussian: sqrt(d / gamma)."""
    made = target(network(), squared_error, DATA)
    gamma, step = 1e4, 1e-5
    setting = torch.tensor([[step] * 8, [1e-6] * 8, [gamma] * 8])
    distance = walk(made, Chains(tuple(range(8)), *setting), 1500).distance[:, 300:]
    expected = (len(made.anchor()) / gamma / (1 - step * gamma / 4)) ** 0.5
    assert float(distance.square().mean().sqrt()) == pytest.approx(expected, rel=0.03)


def test_a_walk_goes_on_where_it_stopped() -> None:
    made = target(network(), squared_error, DATA)
    chains = Chains(SEEDS, STEP, BETA, GAMMA, batch_size=7)
    whole, walking = walk(made, chains, 30), begin(made, chains)
    parts = [walking.advance(11), walking.advance(19)]
    for name in ("loss", "squared_gradient", "distance", "virial", "bias"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name))
    assert_close((walking.position - made.anchor()).norm(dim=1).max() > 0, torch.tensor(True))


def test_each_chain_has_its_own_anchor() -> None:
    module = network()
    made = target(module, squared_error, DATA)
    anchors = made.anchor() + torch.randn(3, 26, generator=torch.Generator().manual_seed(3))
    chains = Chains(SEEDS, STEP, BETA, GAMMA, batch_size=7, anchors=anchors)
    together = walk(made, chains, 20)
    for chain, anchor in enumerate(anchors):
        torch.nn.utils.vector_to_parameters(anchor, module.parameters())
        alone = Chains(
            SEEDS[chain : chain + 1], *(part[chain : chain + 1] for part in (STEP, BETA, GAMMA)), batch_size=7
        )
        there = walk(target(module, squared_error, DATA), alone, 20)
        for name in ("loss", "distance"):
            assert_close(getattr(together, name)[chain], getattr(there, name)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["sgld", "psgld", "mala"])
def test_groups_of_chains_take_the_steps_of_all_together(monkeypatch, sampler: str) -> None:
    """Groups are of two chains, and one; step size, temperature, mask and anchor are each chain's own."""
    made, stepping = target(network(), squared_error, DATA), sampler_of(sampler)
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(3, made.d, generator=generator) > 0.3
    anchors = made.anchor() + 0.1 * torch.randn(3, made.d, generator=generator)
    chains = Chains(SEEDS, STEP, BETA, GAMMA, masks, None if stepping.exact else 7, anchors)
    together = begin(made, chains, stepping)
    monkeypatch.setattr(chains_module, "CACHED", 2 * made.d)
    in_turn = begin(made, chains, stepping)
    assert isinstance(in_turn, InTurn)
    assert not isinstance(together, InTurn)
    for steps in (6, 3):
        expected, found = together.advance(steps), in_turn.advance(steps)
        for name in ("loss", "squared_gradient", "distance", "virial", "bias"):
            assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
        assert found.reports.keys() == expected.reports.keys()
        for each in (together, in_turn):
            each.change_step(STEP / 2)
    assert_close(in_turn.position, together.position, rtol=1e-5, atol=1e-6)
