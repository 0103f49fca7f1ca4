"""The shared fixtures give what they promise."""

from collections.abc import Callable

import torch
from transformers import PreTrainedTokenizerFast

import assay
from assay.models.model import Model


def test_any_text_round_trips(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "A Dursley, naïve 日本 \N{GRINNING FACE}\t</script>\x00"
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_the_tiny_model_is_the_same_each_time_and_has_opinions(
    tiny_llama: Model, make_tiny_llama: Callable[..., Model]
) -> None:
    one, two = (
        assay.capture(model, "Mr Dursley", ["logits"])["logits"] for model in (tiny_llama, make_tiny_llama())
    )
    assert torch.equal(one, two)
    assert one.softmax(-1).max() > 2 / one.shape[-1]


def test_the_tiny_model_takes_settings(make_tiny_llama: Callable[..., Model]) -> None:
    assert make_tiny_llama(num_hidden_layers=5).n_layers == 5


def test_making_it_leaves_the_global_generator_alone(make_tiny_llama: Callable[..., Model]) -> None:
    before = torch.random.get_rng_state()
    make_tiny_llama()
    assert torch.equal(torch.random.get_rng_state(), before)
