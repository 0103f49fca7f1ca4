"""Kept memory changes no logit, candidates in bfloat16 give the top of float32, and the unembedding comes back."""

import pytest
import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.blocks import Blocks
from assay.models.loading import wrap
from assay.models.unembedding import Candidates, Kept, Unembedding, candidates, kept, unembedding_by
from families import FAMILIES

ROWS, WIDTH, VOCABULARY = 300, 32, 640  # more rows than are rescored at once
HALF = 2.0**-8  # relative error of bfloat16


@pytest.fixture(scope="module", params=[False, True], ids=["no bias", "bias"])
def unembed(request: pytest.FixtureRequest) -> nn.Linear:
    linear = nn.Linear(WIDTH, VOCABULARY, bias=request.param)
    generator = torch.Generator().manual_seed(0)
    for parameter in linear.parameters():
        parameter.data.normal_(generator=generator)
    return linear


@pytest.fixture(scope="module")
def states() -> Tensor:
    return torch.randn(ROWS, 1, WIDTH, generator=torch.Generator().manual_seed(1))


def test_kept_memory_changes_no_logit(unembed: nn.Linear, states: Tensor) -> None:
    through = Kept(unembed)
    with torch.no_grad():
        for rows in (states, states[:7], states.flip(0), states.squeeze(1)):  # fewer, more, and another shape
            torch.testing.assert_close(through(rows), unembed(rows), rtol=0, atol=1e-5)
        first = through(states)
        assert through(states[:2]).data_ptr() == first.data_ptr()


def test_memory_is_kept_for_plain_linear_maps_only() -> None:
    model = wrap(FAMILIES["llama"].build())
    through = kept(model)
    assert through is not None
    ids = torch.randint(3, 101, (1, 6), generator=torch.Generator().manual_seed(4))
    handle = model.parts.unembed.register_forward_hook(lambda _, __, output: 2 * output)
    with torch.no_grad(), unembedding_by(through):
        hooked = model.module(input_ids=ids).logits.clone()
    with torch.no_grad():
        torch.testing.assert_close(hooked, model.module(input_ids=ids).logits, rtol=0, atol=1e-5)
    handle.remove()
    assert kept(wrap(FAMILIES["llama"].build().bfloat16())) is None


@pytest.mark.parametrize(("count", "top"), [(16, 5), (6, 5), (64, 1)])
def test_the_top_is_that_of_float32(unembed: nn.Linear, states: Tensor, count: int, top: int) -> None:
    with torch.no_grad():
        exact, found = unembed(states), Candidates(unembed, count, top)(states)
    expected, got = exact.topk(top, -1), found.topk(top, -1)
    assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.values, expected.values, rtol=0, atol=1e-4)
    # the rest is as good as bfloat16: the sum of products of inputs that are each rounded
    bound = 3 * HALF * (states.abs() @ unembed.weight.abs().T + 1)
    assert bool(((found - exact).abs() <= bound).all())


def test_bfloat16_alone_would_not_do(unembed: nn.Linear, states: Tensor) -> None:
    with torch.no_grad():
        exact = unembed(states).topk(5, -1).indices
        rough = nn.functional.linear(states.bfloat16(), unembed.weight.bfloat16()).topk(5, -1).indices
    assert not torch.equal(exact, rough)


def test_rows_whose_top_is_uncertain_are_unembedded_in_float32(states: Tensor) -> None:
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    linear.weight.data = 1 + 1e-5 * torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact, found = linear(states), Candidates(linear, 8, 2)(states)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)  # bfloat16 cannot tell any two tokens apart


def test_the_unembedding_comes_back() -> None:
    model = wrap(FAMILIES["gemma2"].build())
    ids = torch.randint(3, 101, (1, 6), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = model.module(input_ids=ids).logits
        with unembedding_by(candidates(model, 16, 3)):
            within = model.module(input_ids=ids).logits
        with pytest.raises(RuntimeError, match="on purpose"), unembedding_by(candidates(model, 16, 3)):
            raise RuntimeError("on purpose")
        after = model.module(input_ids=ids).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, within)
    assert torch.equal(before.topk(3).indices, within.topk(3).indices)  # soft caps come after, and keep order


@pytest.mark.parametrize("count", [5, 102])
def test_a_number_of_candidates_that_cannot_serve_is_refused(count: int) -> None:
    with pytest.raises(BadInput, match=f"candidates={count}: take more than the 5 top tokens"):
        candidates(wrap(FAMILIES["llama"].build()), count, 5)


def resids(seed: int) -> Tensor:
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "linear"),
    [("llama", True), ("gpt2", True), ("gptj", True), ("gemma2", False), ("granite", False)],
)  # a bias; soft caps; a scale
def test_changes_of_states_map_to_those_of_logits(kind: str, linear: bool) -> None:
    blocks = Blocks(wrap(FAMILIES[kind].build()))
    found = Unembedding.of(blocks, resids(1)[:2])
    assert (found.linear is not None) == linear
    before, after = blocks.readout(resids(1)), blocks.readout(resids(2))
    changes = found.states(resids(2)) - found.states(resids(1))
    assert torch.equal(blocks.readout(resids(1)), before)  # the unembedding has come back
    whole = before.clone()
    for start in range(0, whole.shape[1], 40):
        part = whole[:, start : start + 40].contiguous()
        with torch.no_grad():
            found.add_changes(part, changes, start)
        whole[:, start : start + 40] = part
    torch.testing.assert_close(whole, after, rtol=0, atol=1e-5 * float(after.abs().max()))
    p = before.softmax(-1)
    with torch.no_grad():
        mean = (changes * found.mean_map(p)).sum(-1)
    torch.testing.assert_close(mean, (p * (after - before)).sum(-1), rtol=0, atol=1e-5)


def test_what_hooks_do_to_the_logits_is_not_passed_by() -> None:
    model = wrap(FAMILIES["llama"].build())
    handle = model.parts.unembed.register_forward_hook(lambda _, __, output: 2 * output)
    assert Unembedding.of(Blocks(model), resids(1)).linear is None
    handle.remove()
    assert Unembedding.of(Blocks(model), resids(1)).linear is model.parts.unembed
