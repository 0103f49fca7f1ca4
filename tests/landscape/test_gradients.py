import pytest
import torch
from torch import nn
from torch.testing import assert_close

from assay.landscape.gradients import Functional, Stack, gradient_of, is_stack
from assay.landscape.losses import cross_entropy, squared_error
from assay.landscape.target import target


def seeded(*layers: nn.Module) -> nn.Sequential:
    module, generator = nn.Sequential(*layers), torch.Generator().manual_seed(0)
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    return module


STACKS = {
    "linear": lambda: seeded(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)),
    "one layer": lambda: seeded(nn.Linear(3, 2)),
    "tanh": lambda: seeded(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.GELU(), nn.Linear(4, 2)
    ),
    "ends in an activation": lambda: seeded(nn.Linear(3, 2), nn.ReLU()),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("loss", [squared_error, cross_entropy], ids=["squared", "cross"])
def test_both_ways_give_what_autograd_gives_for_each_chain(name: str, loss) -> None:
    generator = torch.Generator().manual_seed(1)
    module = STACKS[name]()
    inputs = torch.randn(4, 6, 3, generator=generator)  # (chain, example, input)
    answers = torch.randn(4, 6, 2, generator=generator)
    if loss is cross_entropy:
        answers = answers.argmax(-1)
    made = target(module, loss, (inputs[0], answers[0]))
    rows = made.anchor() + 0.3 * torch.randn(4, len(made.anchor()), generator=generator)
    assert is_stack(made)
    for way in (Stack(made), Functional(made)):
        losses, gradients = way(rows, (inputs, answers))
        for chain in range(4):
            torch.nn.utils.vector_to_parameters(rows[chain], module.parameters())
            value = loss(module, (inputs[chain], answers[chain])).mean()
            slopes = torch.autograd.grad(value, list(module.parameters()))
            # float32 sums of at most 6 x 5 products, in another order
            assert_close(losses[chain], value.detach(), rtol=1e-5, atol=1e-6)
            assert_close(gradients[chain], torch.cat([s.flatten() for s in slopes]), rtol=1e-4, atol=1e-5)


def test_what_is_no_plain_stack_goes_the_general_way() -> None:
    data = (torch.randn(6, 3), torch.randn(6, 2))
    with_norm = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    frozen = STACKS["tanh"]()
    frozen[0].bias.requires_grad_(False)
    mine = target(STACKS["linear"](), lambda module, batch: module(batch[0]).square().sum(1), data)
    for made in (target(with_norm, squared_error, data), target(frozen, squared_error, data), mine):
        assert isinstance(gradient_of(made), Functional)
    losses, gradients = gradient_of(target(frozen, squared_error, data))(
        target(frozen, squared_error, data).anchor()[None], tuple(part[None] for part in data)
    )
    assert gradients.shape == (1, 5 * 3 + 20 + 10)
    assert_close(losses[0], squared_error(frozen, data).mean().detach())


def test_tokens_are_averaged_like_examples() -> None:
    inputs = torch.randn(6, 3)
    made = target(STACKS["linear"](), lambda module, batch: module(batch[0]).square(), inputs)
    losses, _ = gradient_of(made)(made.anchor()[None], (inputs[None],))
    assert_close(losses[0], made.module(inputs).square().mean().detach())
