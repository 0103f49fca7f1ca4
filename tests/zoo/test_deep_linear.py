import pytest
import torch
from torch.testing import assert_close

from assay.zoo import deep_linear, training


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("widths", "rank"), [((6, 5, 4, 7), 3), ((3, 3), 2), ((4, 2, 4), 0), ((4, 5, 4), 4)])
def test_the_minimal_point_realises_the_map_with_layers_of_its_rank(
    widths: tuple[int, ...], rank: int
) -> None:
    target = deep_linear.teacher(widths, rank, generator=generator())
    weights = deep_linear.at_minimal_rank(target, widths)
    assert [w.shape for w in weights] == [(b, a) for a, b in zip(widths, widths[1:], strict=False)]
    assert torch.linalg.matrix_rank(target) == rank
    assert {int(torch.linalg.matrix_rank(w, rtol=1e-4)) for w in weights} == {rank}
    assert_close(
        deep_linear.product(weights), target, atol=1e-5, rtol=0
    )  # rounding of a few float32 products


def test_the_teacher_has_the_singular_values_it_promises() -> None:
    values = torch.linalg.svdvals(deep_linear.teacher((8, 6), 4, generator=generator(3)))
    assert (values[:4] >= 1 - 1e-5).all()
    assert (values[:4] <= 2 + 1e-5).all()


def test_the_module_computes_the_product() -> None:
    weights = deep_linear.random_weights((4, 6, 3), generator=generator(), scale=0.5)
    module, inputs = deep_linear.as_module(weights), torch.randn(5, 4, generator=generator(1))
    assert_close(module(inputs), inputs @ deep_linear.product(weights).T)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_scale_is_that_of_the_weights() -> None:
    (weights,) = deep_linear.random_weights((400, 300), generator=generator(), scale=0.1, seeds=2)
    # the relative error of a standard deviation from N draws is 1 / sqrt(2 N) = 0.0014
    assert float(weights.std()) == pytest.approx(0.1 / 20, rel=0.01)
    assert not torch.equal(*weights)


def test_examples_follow_the_map_up_to_the_noise() -> None:
    target = deep_linear.teacher((3, 2), 2, generator=generator())
    inputs, outputs = deep_linear.examples(target, 4000, generator=generator(1), noise=0.5)
    assert float((outputs - inputs @ target.T).std()) == pytest.approx(0.5, rel=0.05)
    inputs, outputs = deep_linear.examples(target, 10, generator=generator(1))
    assert_close(outputs, inputs @ target.T)


def test_training_is_gradient_descent_for_each_seed_alone() -> None:
    widths = (4, 3, 5, 2)
    target = deep_linear.teacher(widths, 2, generator=generator())
    start = deep_linear.random_weights(widths, generator=generator(1), scale=0.8, seeds=3)
    run = deep_linear.train(start, target, rate=0.01, steps=7, keep_every=3)
    assert run.steps == (0, 3, 6, 7)
    for seed in range(3):
        layers = [w[seed].clone().requires_grad_() for w in start]
        for step in range(8):
            loss = (deep_linear.product(tuple(layers)) - target).square().sum()
            if step in run.steps:
                assert_close(run.loss[run.steps.index(step), seed], loss.detach())
            for layer, slope in zip(layers, torch.autograd.grad(loss, layers), strict=True):
                layer.data.sub_(slope, alpha=0.01)
    assert torch.equal(start[0], run.checkpoints[0][0])


def test_small_initialization_goes_from_saddle_to_saddle() -> None:
    """The loss stays near the sum of the squared singular values not yet learned, one after the other."""
    target = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    start = deep_linear.random_weights((3, 4, 4, 3), generator=generator(), scale=0.02, seeds=2)
    run = deep_linear.train(start, target, rate=0.02, steps=12000, keep_every=20)
    for seed in range(2):
        loss = run.loss[:, seed]
        for plateau in (5.0, 1.0, 0.0):
            assert int(((loss - plateau).abs() < 0.02).sum()) > 20
        assert float(loss[-1]) < 1e-3


@pytest.mark.parametrize("n", [200, 2])
def test_few_examples_have_the_second_moments_of_many(n: int) -> None:
    inputs, target = torch.rand(n, 3, generator=generator()), torch.randn(2, 3, generator=generator(1))
    few, other = deep_linear.few_examples(inputs), torch.randn(2, 3, generator=generator(2))
    assert few.shape == (min(n, 3), 3)
    errors = [((part @ (other - target).T).square().sum(1)).mean() for part in (inputs, few)]
    assert_close(*errors)


def test_many_are_trained_with_momentum_and_decay_on_batches_of_their_own() -> None:
    inputs, target = torch.rand(12, 3, generator=generator()), torch.randn(2, 3, generator=generator(1))
    settings = {"width": 5, "layers": 3, "smallness": 0.5, "rate": 0.02, "momentum": 0.8, "weight_decay": 0.1}
    run = deep_linear.train_many(
        2,
        (inputs, inputs @ target.T),
        **settings,
        steps=7,
        keep_every=2,
        batch_size=4,
        generator=generator(3),
    )
    assert run.steps == (0, 2, 4, 6, 7)
    for seed, source in enumerate(training.generators(2, generator=generator(3))):
        shapes = [(5, 3), (5, 5), (2, 5)]
        layers = [(torch.randn(shape, generator=source) / 5**0.5).requires_grad_() for shape in shapes]
        moving = [torch.zeros(shape) for shape in shapes]
        for step in range(8):
            if step in run.steps:
                for index, layer in enumerate(layers):
                    assert_close(
                        run.states(seed)[step][f"{index}.weight"], layer.detach(), rtol=1e-4, atol=1e-6
                    )
            if step % 3 == 0:
                order = torch.randperm(12, generator=source)
            rows = inputs[order[step % 3 * 4 :][:4]]
            loss = (rows @ (deep_linear.product(tuple(layers)) - target).T).square().mean()
            for layer, speed, slope in zip(layers, moving, torch.autograd.grad(loss, layers), strict=True):
                speed.mul_(0.8).add_(slope + 0.1 * layer.detach())
                layer.data.sub_(speed, alpha=0.02)


def test_a_width_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 3 does not fit"):
        deep_linear.teacher((4, 2, 4), 3, generator=generator())
    with pytest.raises(ValueError, match="rank 4 does not fit"):
        deep_linear.at_minimal_rank(torch.eye(4), (4, 2, 4))


@pytest.mark.parametrize("widths", [(7, 3, 9), (3,), (3, 3, 4)])
def test_a_map_of_other_widths_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a map of shape"):
        deep_linear.at_minimal_rank(torch.eye(3), widths)


@pytest.mark.parametrize(("dtype", "smallest"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_small_singular_values_are_kept_down_to_the_rounding(dtype: torch.dtype, smallest: float) -> None:
    target = torch.diag(torch.tensor([1.0, smallest, 0.0], dtype=dtype))
    weights = deep_linear.at_minimal_rank(target, (3, 5, 3))
    assert_close(deep_linear.product(weights), target, rtol=1e-4, atol=smallest * 1e-4)
    assert not any(deep_linear.at_minimal_rank(torch.zeros(3, 3), (3, 5, 3))[0].flatten())


def test_settings_that_no_network_has_are_refused() -> None:
    data = torch.zeros(10, 3), torch.zeros(10, 2)
    for settings in ({"batch_size": 4}, {"batch_size": 5, "layers": 0}):
        with pytest.raises(ValueError, match="a divisor of 10 examples"):
            deep_linear.train_many(1, data, **settings, steps=1, generator=generator())
    several = deep_linear.random_weights((3, 2), generator=generator(), seeds=2)
    with pytest.raises(ValueError, match="expected one network's"):
        deep_linear.as_module(several)
    with pytest.raises(ValueError, match="keep_every=0"):
        deep_linear.train(several, torch.zeros(2, 3), rate=0.1, steps=1, keep_every=0)
