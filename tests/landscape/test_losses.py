import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from assay.errors import BadInput
from assay.landscape import target as target_module
from assay.landscape.gradients import gradient_of, mean_loss
from assay.landscape.losses import (
    PRESETS,
    OutputLoss,
    Recomputed,
    cross_entropy,
    find_loss,
    kl_to_anchor,
    loss_name,
    next_token,
    squared_distance_to_anchor,
    squared_error,
)
from assay.landscape.target import target
from assay.models.model import Model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Attending(nn.Module):
    """No plain stack, so that chains go through `torch.func`; three-dimensional outputs when asked."""

    def __init__(self, *, by_token: bool) -> None:
        super().__init__()
        self.read, self.write, self.by_token = nn.Linear(3, 4), nn.Linear(4, 5), by_token

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.write(torch.tanh(self.read(inputs)))
        return outputs if self.by_token else outputs.mean(1)


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stack": (stack, (30, 3)),
    "classes": (lambda: Attending(by_token=False), (30, 2, 3)),
    "tokens": (lambda: Attending(by_token=True), (30, 2, 3)),
}


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    build, shape = MODULES[name]
    module = build()
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator(len(shape)))
    return module, torch.randn(shape, generator=generator(1))


def test_the_next_token_is_scored_by_what_comes_before(tiny_llama: Model) -> None:
    ids = torch.randint(0, 300, (2, 7), generator=generator())
    losses = next_token(tiny_llama.module, (ids,)).detach()
    assert losses.shape == (2, 6)
    with torch.no_grad():
        # row 1, position 3: the probability of token 4 of a prompt that ends with token 3
        last = tiny_llama.module(ids[1:, :4]).logits[0, -1].log_softmax(-1)
        whole = tiny_llama.module(ids, labels=ids).loss
    assert float(losses[1, 3]) == pytest.approx(-float(last[ids[1, 4]]), abs=1e-5)
    assert float(losses.mean()) == pytest.approx(float(whole), abs=1e-5)


def test_cross_entropy_takes_one_class_an_example_or_one_a_token() -> None:
    scores, classes = torch.randn(4, 3, 5, generator=generator()), torch.randint(0, 5, (4, 3))
    by_token = cross_entropy.of(scores, classes)
    assert by_token.shape == (4, 3)
    for token in range(3):
        assert torch.equal(cross_entropy.of(scores[:, token], classes[:, token]), by_token[:, token])
    expected = -scores.log_softmax(-1)[2, 1, classes[2, 1]]
    assert float(by_token[2, 1]) == pytest.approx(float(expected))


@pytest.mark.parametrize("keep", [2**28, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("loss", ["kl_to_anchor", "squared_distance_to_anchor"])
@pytest.mark.parametrize("name", MODULES)
def test_a_loss_to_the_anchor_is_that_of_two_copies(monkeypatch, name: str, loss: str, keep: int) -> None:
    monkeypatch.setattr(target_module, "KEPT", keep)
    module, inputs = made(name)
    anchored = target(module, loss, inputs)
    assert isinstance(anchored.loss, OutputLoss if keep else Recomputed)
    flat = anchored.anchor()
    moved = flat + 0.1 * torch.randn(flat.shape, generator=generator(2))
    other = copy.deepcopy(module)
    nn.utils.vector_to_parameters(moved, other.parameters())
    with torch.no_grad():
        before, after = module(inputs).double(), other(inputs).double()
    if loss == "kl_to_anchor":
        expected = functional.kl_div(
            after.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
    else:
        expected = (after - before).square().sum(-1)
    assert float(mean_loss(anchored)(moved, anchored.data)) == pytest.approx(float(expected.mean()), rel=1e-4)
    losses, slopes = gradient_of(anchored)(moved[None], tuple(part[None] for part in anchored.data))
    assert float(losses[0]) == pytest.approx(float(expected.mean()), rel=1e-4)
    # the slope is that of autograd through the two copies
    again = other(inputs)
    fixed = module(inputs).detach()
    if loss == "kl_to_anchor":
        p = fixed.softmax(-1)
        value = (p * (p.log() - again.log_softmax(-1))).sum(-1).mean()
    else:
        value = (again - fixed).square().sum(-1).mean()
    expected_slope = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(other.parameters()))])
    torch.testing.assert_close(slopes[0], expected_slope, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("keep", [2**28, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("loss", ["kl_to_anchor", "squared_distance_to_anchor"])
@pytest.mark.parametrize("name", MODULES)
def test_at_the_anchor_it_is_zero_to_the_last_bit(monkeypatch, name: str, loss: str, keep: int) -> None:
    monkeypatch.setattr(target_module, "KEPT", keep)
    module, inputs = made(name)
    module.train()
    anchored = target(module, loss, inputs)
    with torch.no_grad():
        assert all(float(anchored.loss(module, block).abs().max()) == 0 for block in anchored.blocks())
    assert module.training
    assert anchored.data_hash() == target(module, squared_error_of_itself, inputs).data_hash()


def squared_error_of_itself(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0]).square().flatten(1).sum(1)


def test_a_loss_to_the_anchor_has_no_value_without_one() -> None:
    with pytest.raises(BadInput, match="needs one"):
        kl_to_anchor(stack(), (torch.zeros(2, 3),))


def test_a_name_stands_for_its_loss() -> None:
    for name, loss in PRESETS.items():
        assert find_loss(name) is loss
        assert loss_name(name) == loss_name(loss) == name
    with pytest.raises(BadInput, match="no loss is called 'kl'; ready-made are next_token"):
        find_loss("kl")


def weighted(module: nn.Module, batch: tuple[torch.Tensor, ...], weight: float = 1.0) -> torch.Tensor:
    return weight * module(batch[0]).sum(1)


def with_scale(scale: float | torch.Tensor) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor]:
    def scaled(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return scale * module(batch[0]).sum(1)

    return scaled


class Power:
    def __init__(self, exponent: int) -> None:
        self.exponent = exponent

    def __call__(self, module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return module(batch[0]).pow(self.exponent).sum(1)


def test_losses_that_differ_are_named_differently_and_the_same_alike() -> None:
    assert loss_name(squared_error) != loss_name(squared_distance_to_anchor)
    twins = [
        (weighted, weighted),
        (with_scale(2.0), with_scale(2.0)),
        (with_scale(torch.ones(3, dtype=torch.bfloat16)), with_scale(torch.ones(3, dtype=torch.bfloat16))),
        (partial(weighted, weight=2.0), partial(weighted, weight=2.0)),
        (Power(2), Power(2)),
        (OutputLoss(torch.dot), OutputLoss(torch.dot)),
    ]
    for one, other in twins:
        assert loss_name(one) == loss_name(other)
    others = [with_scale(3.0), with_scale(torch.zeros(3)), partial(weighted, weight=3.0), Power(3)]
    names = {loss_name(loss) for loss in [*(one for one, _ in twins), *others]}
    assert len(names) == len(twins) + len(others)
    assert loss_name(weighted).startswith("weighted ")
    assert loss_name(partial(weighted, weight=2.0)).startswith("weighted ")


def test_a_loss_edited_at_a_prompt_is_another() -> None:
    def typed(source: str) -> Callable[..., torch.Tensor]:
        scope: dict[str, Callable[..., torch.Tensor]] = {}
        exec(source, {"math": math}, scope)
        return scope["potential"]

    plain, other = (
        "def potential(m, b): return m(b[0]).sum(1)",
        "def potential(m, b): return m(b[0]).sum(1) * 2",
    )
    assert loss_name(typed(plain)) == loss_name(typed(plain))
    assert loss_name(typed(plain)) != loss_name(typed(other))
