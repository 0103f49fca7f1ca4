"""Tokenizers of GGUF files: the same tokens as the tokenizers they were written from."""

from typing import Any

import pytest
from transformers import AutoTokenizer, LlamaTokenizer
from transformers import PreTrainedTokenizerFast as Tokenizer

from assay.models.gguf_tokenizer import build_tokenizer
from assay.models.loading import _embedded_file
from assay.models.model import Model
from reference.gguf_writer import tokenizer_metadata

VARIED = [
    "Mr Dursley's café — “naïve” quotes",
    "中文字符 日本語 한국어 🙂👩‍👩‍👧",
    "\n\n  def f(x):\n\treturn x**y  # done\r\n",
    "don't we'll I'VE",
    " leading and trailing   ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\u200b\u202e\x00\x01",
]
DIGITS = ["x 12345 7", "  12", "½ of ² and ٣٤", "3.14\n  15"]


def byte_level_metadata(tokenizer: Tokenizer, pre: str, **extra: Any) -> dict[str, Any]:
    more = {f"tokenizer.{key}": value for key, value in extra.items()}
    return tokenizer_metadata(tokenizer) | {"tokenizer.ggml.pre": pre} | more


def pieces(tokenizer: Any, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["It", "'s", "Ġ1234", "!", "ĊĊ", "Ġok"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "!", "ĊĊ", "Ġok"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "4", "!ĊĊ", "Ġok"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "!ĊĊ", "Ġok"]),
    ],
)
def test_text_is_cut_as_the_file_asks(pre: str, expected: list[str], tiny_tokenizer: Tokenizer):
    tokenizer = build_tokenizer(byte_level_metadata(tiny_tokenizer, pre))
    assert pieces(tokenizer, "It's 1234!\n\n ok") == expected


def test_byte_level_round_trips_and_keeps_special_tokens_whole(tiny_tokenizer: Tokenizer):
    tokenizer = build_tokenizer(byte_level_metadata(tiny_tokenizer, "gpt-2"))
    for text in (*VARIED, *DIGITS):
        assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("a</s>b")["input_ids"].count(tiny_tokenizer.eos_token_id) == 1
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")


def test_bookends_and_chat_template_are_those_of_the_file(tiny_tokenizer: Tokenizer):
    plain_ids = tiny_tokenizer("Mary")["input_ids"]
    bos, eos = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    both = build_tokenizer(
        byte_level_metadata(
            tiny_tokenizer, "gpt-2", **{"ggml.add_bos_token": True, "ggml.add_eos_token": True}
        )
    )
    assert both("Mary")["input_ids"] == [bos, *plain_ids, eos]
    assert both("Mary", add_special_tokens=False)["input_ids"] == plain_ids
    by_default = build_tokenizer(byte_level_metadata(tiny_tokenizer, "llama-bpe"))
    assert by_default("Mary")["input_ids"][0] == bos
    chat = build_tokenizer(
        byte_level_metadata(
            tiny_tokenizer, "gpt-2", chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}"
        )
    )
    assert chat.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "[hi]"


def test_user_defined_tokens_stay_whole_but_are_not_special(tiny_tokenizer: Tokenizer):
    metadata = byte_level_metadata(tiny_tokenizer, "gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    tokenizer = build_tokenizer(metadata)
    ids = tokenizer("a<think>b")["input_ids"]
    assert len(tiny_tokenizer) in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"


def sentencepiece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    pieces = ["▁t", "he", "▁the", "▁c", "at", "▁cat", "in", "ing"]
    letters = sorted({*"▁thecaing"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [-100.0] * len(letters)
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))
    return tokens, scores, kinds


def test_sentencepiece_agrees_with_the_llama_tokenizer_of_transformers():
    tokens, scores, kinds = sentencepiece_vocabulary()
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = build_tokenizer(metadata)
    merges = [
        ("▁t", "he"),
        ("a", "t"),
        ("▁c", "at"),
        ("h", "e"),
        ("▁", "t"),
        ("▁", "c"),
        ("i", "n"),
        ("in", "g"),
    ]
    merges.sort(key=lambda pair: -scores[tokens.index("".join(pair))])
    theirs = LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    for text in ("the cat", " the  cat", "éating the", "thing\nin"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert ids[1:] == theirs(text, add_special_tokens=False)["input_ids"]
        # Llama's own pre-tokenizer, too, adds no space where one is, and decoding takes one away.
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.removeprefix(" ")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the cat")["input_ids"]) == ["<s>", "▁the", "▁cat"]
    unprefixed = build_tokenizer(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert unprefixed.tokenize("cat") == ["c", "at"]


@pytest.mark.smollm2
def test_smollm2_tokens_are_those_of_transformers(smollm2: Model):
    pytest.importorskip("gguf")
    path = _embedded_file()
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = smollm2.tokenizer
    assert len(ours) == len(theirs) == 49152
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    for text in VARIED:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    # transformers passes over the pre-tokenizer this file names; given its single digits, the two agree.
    theirs.backend_tokenizer.pre_tokenizer = ours.backend_tokenizer.pre_tokenizer
    for text in DIGITS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.smollm2
def test_smollm2_digits_stand_alone(smollm2: Model):
    assert smollm2.tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert smollm2.token_texts(smollm2.tokens("in 1984")) == ["in", " ", "1", "9", "8", "4"]
    for text in (*VARIED, *DIGITS):
        assert smollm2.tokenizer.decode(smollm2.tokens(text)) == text
