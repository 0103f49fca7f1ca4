"""Prompts become batches; what cannot is refused."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch

from assay.errors import BadInput
from assay.models.inputs import Batch, batch
from assay.models.intervention import capture
from assay.models.model import Model, wrap
from families import FAMILIES

PADDED = 1e-4  # float32: the promise for prompts in a padded batch


@pytest.mark.parametrize(
    "inputs",
    [
        [5, 6, 7],
        (5, 6, 7),
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6, 7]]),
        [[5, 6, 7]],
        [torch.tensor([5, 6, 7])],
    ],
)
def test_one_prompt_in_any_form(tiny_llama: Model, inputs: Any) -> None:
    made = batch(tiny_llama, inputs)
    assert made.input_ids.tolist() == [[5, 6, 7]]
    assert made.attention_mask is None
    assert list(made.arguments(tiny_llama)) == ["input_ids"]


def test_texts_are_tokenized(tiny_llama: Model) -> None:
    texts = ["Mrs Dursley", "Harry had seen the old gate"]
    made = batch(tiny_llama, texts)
    lengths = [len(tiny_llama.tokens(text)) for text in texts]
    assert made.attention_mask is not None
    assert made.attention_mask.sum(-1).tolist() == lengths
    assert made.input_ids[0, : lengths[0]].tolist() == list(tiny_llama.tokens(texts[0]))
    assert batch(tiny_llama, texts[1]).input_ids.tolist() == [list(tiny_llama.tokens(texts[1]))]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stands_on_the_side_asked_for(tiny_llama: Model, side: Literal["left", "right"]) -> None:
    made = batch(tiny_llama, [[5, 6], [7, 8, 9, 10]], padding_side=side)
    assert made.attention_mask is not None and made.position_ids is not None
    place = slice(2, 4) if side == "left" else slice(0, 2)
    assert made.input_ids[0, place].tolist() == [5, 6]
    assert made.attention_mask[0, place].tolist() == [1, 1]
    assert int(made.attention_mask[0].sum()) == 2
    assert made.position_ids[0, place].tolist() == [0, 1]
    assert made.position_ids[1].tolist() == [0, 1, 2, 3]


def test_rows_of_a_batch(tiny_llama: Model) -> None:
    made = batch(tiny_llama, [[5, 6], [7, 8, 9], [4, 4, 4]])
    part = made.rows(0, 2)
    assert part.input_ids.tolist() == made.input_ids[:2].tolist()
    assert part.attention_mask is not None and made.attention_mask is not None
    assert torch.equal(part.attention_mask, made.attention_mask[:2])
    assert Batch(made.input_ids).rows(1, 2).attention_mask is None


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bloom"])
def test_a_batch_with_a_mask_alone_is_read_as_its_prompts(kind: str) -> None:
    """A mask a user made, without positions: it is not dropped, and the positions follow from it."""
    model = wrap(FAMILIES[kind].build())
    ids, mask = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    logits = capture(model, Batch(ids, mask), ["logits"])["logits"]
    alone = capture(model, [5, 6, 7], ["logits"])["logits"][0]
    torch.testing.assert_close(logits[0, 2:], alone, rtol=0, atol=PADDED)


def test_a_batch_is_passed_on_as_it_is(tiny_llama: Model) -> None:
    made = Batch(torch.tensor([[5, 6]]))
    assert batch(tiny_llama, made) is made


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no prompt was given: the list is empty"),
        ([[]], "the prompt is empty"),
        ([[5], []], "the prompt is empty"),
        ("", "the prompt is empty"),
        ([5, 100_000], "token ids run from 5 to 100000"),
        ([-1, 5], "token ids run from -1"),
        (torch.zeros(1, 200, dtype=torch.long), "has 200 tokens, more than the context of 128"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "token ids are whole numbers"),
        (torch.tensor([0.5, 1.0]), "token ids are whole numbers"),
    ],
)
def test_what_is_no_prompt_is_refused(tiny_llama: Model, inputs: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        batch(tiny_llama, inputs)


def test_a_tokenizers_own_output_is_refused_with_the_way_out(tiny_llama: Model) -> None:
    encoded: Mapping[str, Any] = {"input_ids": torch.tensor([[5, 6]])}
    with pytest.raises(BadInput, match="inputs came as a mapping; pass its input_ids"):
        capture(tiny_llama, encoded, ["logits"])
