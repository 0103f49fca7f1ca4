import pytest
import torch

from assay.landscape.samplers import sgld


def test_a_step_is_the_equation_for_each_chain() -> None:
    position, gradient, noise = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    step_size = torch.tensor([[0.1], [0.4]])
    moved = sgld.moved(position, gradient, noise, step_size)
    for chain, epsilon in enumerate((0.1, 0.4)):
        expected = position[chain] - epsilon / 2 * gradient[chain] + epsilon**0.5 * noise[chain]
        torch.testing.assert_close(moved[chain], expected)


@pytest.mark.parametrize("step_size", [0.1, 0.4])
def test_a_gaussian_has_the_variance_and_the_bias_that_the_documentation_gives(step_size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    curvature = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    size = torch.tensor([[step_size]], dtype=torch.float64)
    position = torch.zeros(4000, 3, dtype=torch.float64)
    total, squared = torch.zeros(3, dtype=torch.float64), 0.0
    for step in range(400):
        gradient = curvature * position
        if step >= 200:  # the slowest mode forgets at rate 0.5 * 0.1 / 2 a step
            total += position.square().mean(0) / 200
            squared += float(gradient.square().sum(1).mean()) / 200
        noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
        position = sgld.moved(position, gradient, noise, size)
    variance = 1 / (curvature * (1 - step_size * curvature / 4))
    # 4000 chains alone give a relative error of sqrt(2 / 4000) = 2 %, and 200 steps of each reduce it
    torch.testing.assert_close(total, variance, rtol=0.04, atol=0)
    energy = float((curvature * total).sum() / 2)
    bias = float(sgld.bias(torch.tensor(step_size), torch.tensor(squared)))
    assert energy - bias == pytest.approx(1.5, rel=0.02)
    assert energy > 1.5 + bias / 2
