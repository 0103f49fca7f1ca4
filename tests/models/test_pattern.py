"""The pattern of one kernel call is the kernel's own, whatever its arguments."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.models.edits import at
from assay.models.intervention import capture, intervene
from assay.models.model import Model
from assay.models.pattern import attention_pattern

SUM = 1e-6  # float32: sums of 7 products of probabilities and values of size 1


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QUERY, KEY, VALUE = drawn(2, 4, 7, 8, seed=0), drawn(2, 4, 7, 8, seed=1), drawn(2, 4, 7, 5, seed=2)
ALLOWED = (drawn(2, 1, 7, 7, seed=3) > 0) | torch.eye(7, dtype=torch.bool)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": ALLOWED},
        {"attn_mask": drawn(7, 7, seed=4), "scale": 1.0},
    ],
)
def test_the_pattern_mixes_the_values_as_the_kernel_does(arguments: dict[str, Any]) -> None:
    pattern = attention_pattern(QUERY, KEY, VALUE, **arguments)
    expected = F.scaled_dot_product_attention(QUERY, KEY, VALUE, **arguments)
    torch.testing.assert_close(pattern @ VALUE, expected, rtol=0, atol=SUM)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 7), rtol=0, atol=SUM)


def test_shared_key_heads_serve_their_group_of_queries() -> None:
    key, value = KEY[:, :2], VALUE[:, :2]
    pattern = attention_pattern(QUERY, key, value, is_causal=True, enable_gqa=True)
    expected = F.scaled_dot_product_attention(QUERY, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(pattern @ value.repeat_interleave(2, 1), expected, rtol=0, atol=SUM)


def test_dropout_is_no_part_of_a_pattern() -> None:
    assert torch.equal(
        attention_pattern(QUERY, KEY, VALUE, dropout_p=0.9), attention_pattern(QUERY, KEY, VALUE)
    )


def test_a_forbidden_key_has_no_weight() -> None:
    pattern = attention_pattern(QUERY, KEY, VALUE, attn_mask=ALLOWED)
    assert (pattern[(~ALLOWED).expand_as(pattern)] == 0).all()


def test_an_edited_pattern_is_what_the_values_are_mixed_with(tiny_llama: Model) -> None:
    """One head told to look at the first token alone gives that token's value."""
    onto_first = torch.zeros(6)
    onto_first[0] = 1
    edit = {"pattern.1": at(onto_first, heads=2, positions=[3, 5])}
    captured = intervene(tiny_llama, [5, 6, 7, 8, 9, 10], edit, capture=["z.1", "v.1", "pattern.1"])
    value = captured["v.1"][0, 0, 1]  # four query heads share two key heads
    for position in (3, 5):
        torch.testing.assert_close(captured["z.1"][0, position, 2], value, rtol=0, atol=SUM)
        assert torch.equal(captured["pattern.1"][0, 2, position], onto_first)
    before = capture(tiny_llama, [5, 6, 7, 8, 9, 10], ["z.1"])["z.1"]
    torch.testing.assert_close(captured["z.1"][0, 4], before[0, 4], rtol=0, atol=SUM)


def test_patterns_of_two_layers_are_told_apart(tiny_llama: Model) -> None:
    ids = [5, 6, 7, 8]
    together = capture(tiny_llama, ids, ["pattern.0", "pattern.2"])
    for site, value in together.items():
        assert torch.equal(value, capture(tiny_llama, ids, [site])[site])
    assert not torch.equal(*together.values())


def test_heads_that_look_elsewhere_leave_other_attention_alone(tiny_llama: Model) -> None:
    """Functions watched inside one attention are not watched outside it."""
    with torch.no_grad():
        bare = tiny_llama.module(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(intervene(tiny_llama, [5, 6, 7], {}, capture=["pattern.0", "logits"])["logits"], bare)
