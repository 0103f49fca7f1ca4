"""Passes that begin at a block give the numbers of whole passes, and compute nothing before it twice."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from assay.models.entries import Entries, first_read
from assay.models.model import Model, wrap
from families import FAMILIES, VOCABULARY

PLENTY = 2**30


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def llama() -> Model:
    return wrap(FAMILIES["llama"].build())


@contextmanager
def counting(model: Model) -> Generator[list[int]]:
    """Count the tokens that go through the MLP of each block."""
    counts = [0] * model.n_layers
    hooks = [
        block.mlp_reader.register_forward_pre_hook(
            lambda _, args, layer=layer: counts.__setitem__(layer, counts[layer] + args[0].shape[:2].numel())
        )
        for layer, block in enumerate(model.parts.blocks)
        if block.mlp_reader is not None
    ]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_begins_at_its_last_block(kind: str, ids: Tensor) -> None:
    model = wrap(FAMILIES[kind].build())
    layer = model.n_layers - 1
    entries = Entries(model, layer, PLENTY)
    assert entries.serves(ids)
    for parameter in model.parts.blocks[layer].module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    whole = model.module(ids).logits
    slopes = torch.autograd.grad(
        whole.square().sum(), [*model.parts.blocks[layer].module.parameters()], allow_unused=True
    )
    for _ in range(2):
        with entries.begun():
            found = model.module(ids).logits
        again = torch.autograd.grad(
            found.square().sum(), [*model.parts.blocks[layer].module.parameters()], allow_unused=True
        )
        assert_close(found, whole, rtol=1e-5, atol=1e-5)
        for slope, other in zip(slopes, again, strict=True):
            if slope is not None:
                assert_close(other, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
    assert torch.equal(model.module(ids).logits, whole)


def test_a_row_is_computed_once_as_long_as_there_is_room(llama: Model, ids: Tensor) -> None:
    layer, width = llama.n_layers - 1, llama.d_model
    of_a_row = 12 * width * 4
    for room, computed, held in ((PLENTY, 3, 3), (2 * of_a_row, 4, 2), (0, 6, 0)):
        entries = Entries(llama, layer, room)
        with counting(llama) as counts, entries.begun():
            first = llama.module(ids).logits
            assert torch.equal(llama.module(ids).logits, first)
            # nor does company change an entry: the same row in another place gives the same numbers
            flipped = llama.module(ids.flip(0)).logits
        assert_close(flipped.flip(0), first, rtol=1e-5, atol=1e-5)
        computed += 3 - held  # the flipped rows that were not kept
        assert counts[0] == 12 * computed
        assert counts[-1] == 12 * 9
        assert entries.held == held * of_a_row
        assert entries.most(ids) == min(room, 3 * of_a_row)


def test_entries_follow_weights_that_are_changed_before_the_block(llama: Model, ids: Tensor) -> None:
    entries = Entries(llama, 1, PLENTY)
    with entries.begun():
        before = llama.module(ids).logits
    with torch.no_grad():
        next(llama.parts.blocks[0].module.parameters()).add_(0.1)
    with entries.begun():
        after = llama.module(ids).logits
    assert float((after - before).detach().abs().max()) > 1e-3
    assert_close(after, llama.module(ids).logits, rtol=1e-5, atol=1e-5)


def test_other_calls_than_on_ids_alone_are_whole_passes(llama: Model, ids: Tensor) -> None:
    entries = Entries(llama, 1, PLENTY)
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    whole = llama.module(ids, attention_mask=mask).logits
    with counting(llama) as counts, entries.begun(), entries.begun():  # nested, as looks within walks are
        assert torch.equal(llama.module(ids, attention_mask=mask).logits, whole)
    assert counts[0] == ids.numel()
    assert entries.held == 0


def test_a_block_that_looks_around_is_found_out(llama: Model, ids: Tensor) -> None:
    blocks = llama.module.get_submodule("model.layers")
    assert isinstance(blocks, nn.ModuleList)
    seen: list[Tensor] = []
    blocks[0].register_forward_hook(lambda _, __, output: seen.append(output) or None)
    last = blocks[-1]
    last.forward = lambda *args, plain=last.forward, **kwargs: plain(*args, **kwargs) + seen[-1]
    assert not Entries(llama, llama.n_layers - 1, PLENTY).serves(ids)


def test_the_first_block_that_reads_a_parameter() -> None:
    model = wrap(FAMILIES["llama"].build())
    blocks, named = model.parts.blocks, dict(model.module.named_parameters())
    one, two = (next(iter(blocks[layer].module.parameters())) for layer in (0, 1))
    assert first_read(model, [two]) == 1
    assert first_read(model, [two, one]) == 0
    assert first_read(model, [named["model.norm.weight"]]) == model.n_layers - 1
    assert first_read(model, [named["model.embed_tokens.weight"], two]) == 0
    tied = model.parts.unembed is not None and model.parts.unembed.weight is model.parts.embed.weight
    assert first_read(model, [named.get("lm_head.weight", two)]) == (0 if tied else model.n_layers - 1)
    assert first_read(model, [nn.Parameter(torch.zeros(1)), two]) == 0  # unknown
