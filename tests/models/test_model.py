"""A model's tokens, texts, hash and sites."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from assay.errors import BadInput
from assay.models.model import Model, wrap
from families import FAMILIES


def test_tokens_are_the_tokenizers_and_ids_pass_through(tiny_llama: Model) -> None:
    text = "Mrs Dursley had seen Harry"
    ids = tuple(tiny_llama.tokenizer(text)["input_ids"])
    assert tiny_llama.tokens(text) == ids
    for given in (list(ids), ids, torch.tensor(ids)):
        assert tiny_llama.tokens(given) == ids


@pytest.mark.parametrize("text", ["naïve café", "东京は", "👩‍👩‍👧 family", "a\u0301", "tab\tand\nline"])
def test_token_texts_lose_nothing(tiny_llama: Model, text: str) -> None:
    """Whole characters are shown as they are; a token that holds part of one, as its bytes."""
    shown = tiny_llama.token_texts(tiny_llama.tokens(text))
    encoded = b"".join(
        bytes.fromhex(part.replace("<", "").replace(">", "")) if part.startswith("<") else part.encode()
        for part in shown
    )
    assert encoded.decode() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in shown)


def test_without_a_tokenizer_tokens_are_shown_as_numbers() -> None:
    model = wrap(FAMILIES["llama"].build())
    assert model.token_texts([5, 17]) == ["5", "17"]
    assert model.tokens(torch.tensor([5, 17])) == (5, 17)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "the prompt is empty: it has no tokens"),
        ([], "the prompt is empty"),
        ([5] * 129, "the prompt has 129 tokens, more than the context of 128"),
        ([5, 100_000], "token ids run from 5 to 100000, the vocabulary from 0 to"),
        ([-1], "token ids run from -1 to -1"),
        (torch.tensor([[5, 6]]), "token ids are whole numbers, one a token; this was given: tensor"),
        (torch.tensor([5.0]), "token ids are whole numbers"),
    ],
)
def test_what_is_no_prompt_is_refused(tiny_llama: Model, given: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tiny_llama.tokens(given)


def test_a_text_needs_a_tokenizer() -> None:
    with pytest.raises(BadInput, match="has no tokenizer: pass token ids"):
        wrap(FAMILIES["llama"].build()).tokens("text")


def test_the_weight_hash_knows_names_shapes_types_and_entries() -> None:
    def hashed(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return wrap(module).weight_hash()

    x = torch.arange(6.0)
    hashes = [
        hashed(a=x), hashed(b=x), hashed(a=x.view(2, 3)), hashed(a=x.double()), hashed(a=x.bfloat16()),
        hashed(a=x + 1), hashed(a=x, b=x), hashed(a=x.view(torch.int32)),
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    assert hashed(a=x.clone()) == hashes[0]
    assert hashed(a=x.view(2, 3).T.contiguous().T) == hashes[2]  # strides are no part of a weight


def test_the_weight_hash_follows_the_weights(tiny_llama: Model) -> None:
    """A model that is trained on, or edited, is another model: no finished run of it may be taken for this one's."""
    before = tiny_llama.weight_hash()
    assert tiny_llama.weight_hash() == before
    weight = tiny_llama.module.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 4] += 1
    changed = tiny_llama.weight_hash()
    tiny_llama.module.model.layers[1].mlp.up_proj.weight = nn.Parameter(2 * weight)
    assert len({before, changed, tiny_llama.weight_hash()}) == 3


def test_a_decoder_says_what_it_is(make_tiny_llama: Callable[..., Model]) -> None:
    model = make_tiny_llama(num_hidden_layers=2)
    assert (model.n_layers, model.d_model, model.context_length) == (2, 32, 128)
    assert (model.dtype, str(model.device)) == (torch.float32, "cpu")
    assert model.source == "LlamaForCausalLM"
    assert not model.module.training


def test_sites_may_be_asked_by_name(tiny_llama: Model) -> None:
    assert tiny_llama.sites("resid_post") == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert tiny_llama.sites("logits") == ["logits"]
    assert tiny_llama.sites("nothing") == []
    assert tiny_llama.sites()[0] == "embed"


def test_a_plain_module_is_no_decoder() -> None:
    model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    assert model.anatomy is None
    assert model.sites() == ["0", "1"]
    assert model.context_length is None
    with pytest.raises(BadInput):
        _ = model.n_layers


def test_wrapping_takes_the_module_itself() -> None:
    module = FAMILIES["gpt2"].build().train()
    model = wrap(module)
    assert model.module is module
    assert not module.training
