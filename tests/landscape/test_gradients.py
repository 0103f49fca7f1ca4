import warnings
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from assay.landscape import gradients as gradients_module
from assay.landscape import target as target_module
from assay.landscape.gradients import Functional, everything, gradient_of, rows_of_everything
from assay.landscape.losses import cross_entropy, next_token, squared_error
from assay.landscape.sequential import Sequential
from assay.landscape.stack import Stack, is_stack, runs
from assay.landscape.target import target
from assay.models.model import Model


def seeded(*layers: nn.Module) -> nn.Sequential:
    module, generator = nn.Sequential(*layers), torch.Generator().manual_seed(0)
    for weight in module.parameters():
        weight.data = torch.randn(weight.shape, generator=generator)
    return module


def named(**layers: nn.Module) -> nn.Sequential:
    return seeded(OrderedDict(layers))  # type: ignore[arg-type]


def twice(bend: nn.Module) -> nn.Sequential:
    return seeded(nn.Linear(3, 4), bend, nn.Linear(4, 2), bend)


STACKS = {
    "linear": lambda: seeded(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)),
    "one layer": lambda: seeded(nn.Linear(3, 2)),
    "tanh": lambda: seeded(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.GELU(), nn.Linear(4, 2)
    ),
    "every activation": lambda: seeded(
        nn.Linear(3, 5),
        nn.SiLU(),
        nn.Linear(5, 4),
        nn.Sigmoid(),
        nn.Identity(),
        nn.Linear(4, 5),
        nn.GELU(approximate="tanh"),
        nn.Linear(5, 2),
        nn.Tanh(),
    ),
    "runs": lambda: seeded(
        nn.Linear(3, 2, bias=False),
        nn.Linear(2, 4, bias=False),
        nn.Linear(4, 2),
        nn.ReLU(),
        nn.Linear(2, 3, bias=False),
        nn.Linear(3, 1, bias=False),
        nn.Linear(1, 2, bias=False),
    ),
    "ends in an activation": lambda: seeded(nn.Linear(3, 2), nn.ReLU()),
    "norms": lambda: seeded(
        nn.LayerNorm(3, bias=False),
        nn.Linear(3, 5),
        nn.LayerNorm(5, eps=0.1),
        nn.Tanh(),
        nn.LayerNorm(5, elementwise_affine=False),
        nn.Linear(5, 2),
    ),
    "by name": lambda: named(
        first=nn.Linear(3, 4, bias=False),
        second=nn.Linear(4, 4, bias=False),
        bend=nn.Tanh(),
        last=nn.Linear(4, 2),
    ),
    "one activation twice": lambda: twice(nn.Tanh()),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("loss", [squared_error, cross_entropy], ids=["squared", "cross"])
def test_all_ways_give_what_autograd_gives_for_each_chain(name: str, loss) -> None:
    generator = torch.Generator().manual_seed(1)
    module = STACKS[name]()
    inputs = torch.randn(4, 6, 3, generator=generator)  # (chain, example, input)
    answers = torch.randn(4, 6, 2, generator=generator)
    if loss is cross_entropy:
        answers = answers.argmax(-1)
    made = target(module, loss, (inputs[0], answers[0]))
    rows = made.anchor() + 0.3 * torch.randn(4, len(made.anchor()), generator=generator)
    assert is_stack(made)
    for way in (Stack(made), Functional(made), Sequential(made)):
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
    mixing = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2))
    frozen = STACKS["tanh"]()
    frozen[0].bias.requires_grad_(False)
    mine = target(STACKS["linear"](), lambda module, batch: module(batch[0]).square().sum(1), data)
    for made in (target(mixing, squared_error, data), target(frozen, squared_error, data), mine):
        assert isinstance(gradient_of(made), Functional)
    losses, gradients = gradient_of(target(frozen, squared_error, data))(
        target(frozen, squared_error, data).anchor()[None], tuple(part[None] for part in data)
    )
    assert gradients.shape == (1, 5 * 3 + 20 + 10)
    assert_close(losses[0], squared_error(frozen, data).mean().detach())


def normed(norm) -> nn.Module:
    module = STACKS["tanh"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would have `torch.nn.utils.parametrizations`
        norm(module[2])
    return module


def turned() -> nn.Module:
    module = STACKS["tanh"]()
    module[0].register_forward_hook(lambda part, given, left: -left)
    return module


def more() -> nn.Module:
    module = STACKS["tanh"]()
    module[0].register_parameter("extra", nn.Parameter(torch.ones(2)))
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda: normed(nn.utils.weight_norm),
        lambda: normed(nn.utils.spectral_norm),
        lambda: normed(nn.utils.parametrizations.weight_norm),
        turned,
        more,
        lambda: twice(nn.SiLU(inplace=True)),
    ],
    ids=["weight norm", "spectral norm", "parametrized", "hook", "more weights", "in place"],
)
def test_layers_that_do_more_than_their_type_go_the_general_way(make) -> None:
    generator = torch.Generator().manual_seed(1)
    data = (torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator))
    module = make()
    made = target(module, squared_error, data)
    assert not is_stack(made)
    with made.evaluating():
        losses, gradients = gradient_of(made)(made.anchor()[None], tuple(part[None] for part in data))
        value = squared_error(module, data).mean()
    slopes = torch.autograd.grad(value, list(module.parameters()), allow_unused=True, materialize_grads=True)
    assert_close(losses[0], value.detach(), rtol=1e-5, atol=1e-6)
    assert_close(gradients[0], torch.cat([s.flatten() for s in slopes]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "tanh"])
def test_a_stack_reads_inputs_and_targets_and_leaves_other_columns(name: str) -> None:
    data = (torch.randn(9, 3), torch.randn(9, 2))
    module = STACKS[name]()
    two, three = (target(module, squared_error, given) for given in (data, (*data, torch.randn(9, 4))))
    for one, other in zip(
        *(gradient_of(each)(each.anchor()[None], everything(each)) for each in (two, three)), strict=True
    ):
        assert torch.equal(one, other)


def test_an_example_without_a_class_counts_for_nothing() -> None:
    """Torch leaves out those of class -100; their loss is 0."""
    generator = torch.Generator().manual_seed(1)
    inputs, classes = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, -100, 1, -100, 0])
    made = target(STACKS["tanh"](), cross_entropy, (inputs, classes))
    batch = tuple(part[None] for part in made.data)
    by_hand, general = (way(made.anchor()[None], batch) for way in (Stack(made), Sequential(made)))
    for one, other in zip(by_hand, general, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_tokens_are_averaged_like_examples() -> None:
    inputs = torch.randn(6, 3)
    made = target(STACKS["linear"](), lambda module, batch: module(batch[0]).square(), inputs)
    losses, _ = gradient_of(made)(made.anchor()[None], (inputs[None],))
    assert_close(losses[0], made.module(inputs).square().mean().detach())


class Deciding(nn.Module):
    """Takes one way or another by a value, which a batched call cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.2, 0.1]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.weight if float(self.weight.detach()[0]) > 0 else inputs.sum(1)


def test_what_cannot_be_batched_or_is_large_goes_one_chain_after_the_other(
    monkeypatch, make_tiny_llama
) -> None:
    data, ids = torch.randn(6, 3), torch.randint(0, 99, (5, 7))

    def total(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return module(batch[0]).square()

    assert isinstance(gradient_of(target(Deciding(), total, data)), Sequential)
    assert isinstance(gradient_of(target(make_tiny_llama(), None, ids)), Sequential)
    mixing = target(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)), squared_error, (data, torch.randn(6, 4)))
    assert isinstance(gradient_of(mixing), Functional)
    monkeypatch.setattr(gradients_module, "LARGE", 10)
    assert isinstance(gradient_of(mixing), Sequential)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tokens", [1024, 14], ids=["at once", "in blocks"])
@pytest.mark.parametrize("mask", [None, "mlp.1", "model.embed*"])
def test_a_language_model_is_differentiated_as_by_itself(
    monkeypatch, make_tiny_llama, tied: bool, tokens: int, mask: str | None
) -> None:
    monkeypatch.setattr(target_module, "TOKENS", tokens)
    model: Model = make_tiny_llama(tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 99, (5, 7), generator=generator)
    made = target(model, None, ids, mask=mask)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert ("lm_head.weight" in made.parameters) == (not tied and mask is None)
    rows = made.anchor() + 0.05 * torch.randn(2, made.d, generator=generator)
    batch = ids[torch.tensor([[0, 1, 2], [4, 4, 3]])]
    losses, slopes = gradient_of(made)(rows, (batch,))
    assert all(value.grad is None for value in model.module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    # once for both chains: a batch whose leading axis is 1
    shared, _ = gradient_of(made)(rows, (batch[:1],))
    assert_close(shared[0], losses[0])
    for chain in range(2):
        moved = make_tiny_llama(tie_word_embeddings=tied).module
        parameters = dict(moved.named_parameters())
        for name, value in made.named(rows[chain]).items():
            parameters[name].data = value
        value = next_token(moved, (batch[chain],)).mean()
        expected = torch.autograd.grad(value, [parameters[name] for name in made.parameters])
        assert_close(losses[chain], value.detach(), rtol=1e-5, atol=1e-6)
        assert_close(slopes[chain], torch.cat([slope.flatten() for slope in expected]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", [Stack, Functional, Sequential])
@pytest.mark.parametrize("name", STACKS)
def test_a_batch_for_all_chains_is_that_batch_for_each(name: str, way) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, answers = torch.randn(1, 6, 3, generator=generator), torch.randn(1, 6, 2, generator=generator)
    made = target(STACKS[name](), squared_error, (inputs[0], answers[0]))
    rows = made.anchor() + 0.3 * torch.randn(4, len(made.anchor()), generator=generator)
    shared = way(made)(rows, (inputs, answers))
    own = way(made)(rows, (inputs.repeat(4, 1, 1), answers.repeat(4, 1, 1)))
    for one, other in zip(shared, own, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_memory_that_is_kept_does_not_reach_into_what_was_given() -> None:
    generator = torch.Generator().manual_seed(1)
    made = target(STACKS["tanh"](), squared_error, (torch.randn(6, 3), torch.randn(6, 2)))
    way, rows = Stack(made), made.anchor() + torch.randn(2, len(made.anchor()), generator=generator)
    batch = (torch.randn(2, 6, 3, generator=generator), torch.randn(2, 6, 2, generator=generator))
    given = way(rows, batch)
    before = [part.clone() for part in given]
    way(2 * rows, batch)
    way(rows[:1], tuple(part[:1, :4] for part in batch))
    assert all(torch.equal(part, kept) for part, kept in zip(given, before, strict=True))
    assert all(torch.equal(part, kept) for part, kept in zip(way(rows, batch), before, strict=True))


def test_a_linear_network_needs_no_more_rows_than_it_has_inputs_and_outputs() -> None:
    generator = torch.Generator().manual_seed(1)
    data = (torch.randn(90, 3, generator=generator), torch.randn(90, 2, generator=generator))
    made = target(STACKS["linear"](), squared_error, data)
    assert [len(part[0]) for part in everything(made)] == [5, 5]
    assert rows_of_everything(made) == 5
    rows = made.anchor() + torch.randn(3, len(made.anchor()), generator=generator)
    few, all_of_it = (
        Stack(made)(rows, batch) for batch in (everything(made), tuple(part[None] for part in data))
    )
    for one, other in zip(few, all_of_it, strict=True):
        assert_close(one, other, rtol=1e-5, atol=1e-5)
    normed = seeded(nn.Linear(3, 2, bias=False), nn.LayerNorm(2, elementwise_affine=False))
    for module in (STACKS["one layer"](), STACKS["tanh"](), normed):
        assert len(everything(target(module, squared_error, data))[0][0]) == 90
        assert rows_of_everything(target(module, squared_error, data)) == 90
    assert (
        len(everything(target(STACKS["linear"](), cross_entropy, (data[0], data[1].argmax(1))))[0][0]) == 90
    )


@pytest.mark.parametrize(
    ("widths", "examples", "first", "expected"),
    [
        ([182, 182, 182, 182], 512, True, [range(3)]),
        (
            [182, 182, 182, 182],
            20,
            True,
            [range(1), range(1, 2), range(2, 3)],
        ),  # products of layers cost more
        ([100, 4, 100], 512, True, [range(1), range(1, 2)]),  # past a bottleneck they do, for any batch
        ([100, 50, 50, 50, 3, 90], 512, False, [range(4), range(4, 5)]),
    ],
)
def test_linear_layers_are_multiplied_where_that_is_less_work(widths, examples, first, expected) -> None:
    row = [nn.Linear(*pair, bias=False, device="meta") for pair in pairwise(widths)]
    assert runs(row, examples, first=first) == expected


def test_a_row_of_layers_is_as_exact_as_its_layers_one_by_one() -> None:
    """At the minimum of a linear network the loss is rounding alone: there is nothing for a product to cancel."""
    generator = torch.Generator().manual_seed(0)
    module = seeded(*(nn.Linear(20, 20, bias=False) for _ in range(3)))
    inputs = torch.randn(200, 20, generator=generator)
    answers = module.double()(inputs.double()).detach().float()
    made = target(module.float(), squared_error, (inputs, answers))
    assert runs(list(module), 200, first=True) == [range(3)]
    together, _ = Stack(made)(made.anchor()[None], (inputs[None], answers[None]))
    alone = squared_error(module, (inputs, answers)).mean().detach()
    assert float(together) < 4 * float(alone) < 1e-8 * float(answers.square().sum(1).mean())
