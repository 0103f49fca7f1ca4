import pytest
import torch

from assay.landscape import chains as chains_module
from assay.landscape.chains import Chains
from assay.landscape.losses import squared_error
from assay.landscape.probe import Probe
from assay.landscape.target import Target, target
from assay.zoo import deep_linear
from assay.zoo.densities import Separable


def chains(count: int, masks: torch.Tensor | None = None, batch_size: int | None = None) -> Chains:
    one = torch.ones(count, dtype=torch.float64)
    return Chains(tuple(range(count)), one, 7 * one, 2 * one, masks, batch_size)


def network(n: int = 60) -> Target:
    generator = torch.Generator().manual_seed(3)
    map_ = deep_linear.teacher((3, 4, 2), 2, generator=generator)
    module = deep_linear.as_module(deep_linear.at_minimal_rank(map_, (3, 4, 2)))
    return target(module, squared_error, deep_linear.examples(map_, n, generator=generator))


def hessian(made: Target, probe: Probe, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.hessian(lambda flat: _potential(made, flat), at)


def _potential(made: Target, flat: torch.Tensor) -> torch.Tensor:
    loss = made.loss  # written out: U = n beta L + gamma / 2 |w - w*|^2
    outputs = torch.func.functional_call(made.module, made.named(flat), (made.data[0],))
    anchor = made.anchor()
    assert loss is squared_error
    return 7 * (outputs - made.data[1]).square().sum(1).mean() + (flat - anchor).square().sum()


def test_the_largest_curvature_is_the_hessian_s() -> None:
    made = network()
    probe = Probe(made, chains(2))
    expected = torch.linalg.eigvalsh(hessian(made, probe, made.anchor())).max()
    assert float(probe.curvature(rounds=60).mean()) == pytest.approx(float(expected), rel=0.02)


def test_a_mask_confines_it() -> None:
    made = network()
    mask = torch.zeros(1, made.d, dtype=torch.bool)
    mask[:, :5] = True
    expected = torch.linalg.eigvalsh(hessian(made, Probe(made, chains(2)), made.anchor())[:5, :5]).max()
    found = Probe(made, chains(2, mask)).curvature(rounds=60)
    assert float(found.mean()) == pytest.approx(float(expected), rel=0.02)


def test_the_point_is_that_of_the_potential() -> None:
    made = network()
    probe, at = Probe(made, chains(1)), made.anchor() + 0.1
    leaf = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(_potential(made, leaf), leaf)
    point = probe.point(at[None])
    torch.testing.assert_close(point.slope[0], slope, rtol=1e-4, atol=1e-4)
    assert float(point.potential) == pytest.approx(float(_potential(made, at)), rel=1e-4)


def test_small_steps_are_accepted_and_large_ones_are_not() -> None:
    made = target(Separable([4.0] * 30), lambda module, batch: module(batch[0]), torch.zeros(8, 1))
    probe, at = Probe(made, chains(6, batch_size=4)), torch.full((6, 30), 0.5)
    assert float(probe.acceptance(at, 1e-6, 0).min()) > 0.99
    assert float(probe.acceptance(at, 1.0, 0).max()) < 0.05
    assert torch.equal(probe.acceptance(at, 1e-2, 5), probe.acceptance(at, 1e-2, 5))


def test_groups_of_chains_are_tested_as_all_together(monkeypatch) -> None:
    made = target(Separable([4.0] * 32), lambda module, batch: module(batch[0]), torch.zeros(8, 1))
    one = torch.ones(3, dtype=torch.float64)
    setting = Chains((1, 2, 3), one, torch.tensor([2.0, 7.0, 12.0]), torch.tensor([0.5, 9.0, 2.0]))
    probe, at = Probe(made, setting), torch.linspace(0.3, 0.9, 96).view(3, 32)
    together = probe.acceptance(at, 2e-2, 0)
    assert 0.1 < float(together.min()) < 0.9
    monkeypatch.setattr(chains_module, "CACHED", 2 * 32)
    torch.testing.assert_close(probe.acceptance(at, 2e-2, 0), together, rtol=1e-5, atol=0)
