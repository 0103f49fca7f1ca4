"""GGUF: the container, every encoding, conversion to a Hugging Face folder, tokenizers, the cache."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

import assay
from assay.errors import BadInput
from assay.models import gguf
from assay.models.gguf_format import read_gguf
from assay.models.gguf_quants import dequantise, encoding
from assay.models.gguf_tokenizer import build_tokenizer
from assay.models.loading import _embedded_file
from assay.models.model import Model
from reference.gguf_slow import SLOW, Packed, Typed, plain, slow_dequantise, write_gguf

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


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions of a test stay in its own folder; the embedded model keeps its place."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))


def random_blocks(kind: int, n: int, seed: int) -> bytes:
    """Random bytes whose half-precision scales are finite."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, SLOW[kind].n_bytes), dtype=np.uint8)
    for start in SLOW[kind].halves:
        blocks[:, start : start + 2] = rng.normal(size=(n, 1)).astype("<f2").view(np.uint8)
    if kind in (0, 30):
        blocks[:, -1] &= 0xBF  # an exponent that is not all ones
    return blocks.tobytes()


@pytest.mark.parametrize("kind", SLOW)
def test_every_encoding_gives_the_bits_of_the_slow_twin(kind: int):
    packing = encoding(kind)
    assert packing is not None
    rows, n = 3, 4 * (1 if packing.block > 1 else 32)
    raw = random_blocks(kind, rows * n, seed=kind)
    fast = dequantise(np.frombuffer(raw, np.uint8).reshape(rows, -1), packing)
    slow = slow_dequantise(raw, kind)
    assert fast.shape == (rows, n * packing.block)
    assert fast.dtype == np.float32
    np.testing.assert_array_equal(fast.ravel().view(np.uint32), slow.view(np.uint32))


@pytest.mark.parametrize("kind", SLOW)
def test_every_encoding_gives_the_bits_of_the_gguf_package(kind: int):
    package = pytest.importorskip("gguf")
    packing = encoding(kind)
    raw = np.frombuffer(random_blocks(kind, 64, seed=kind), np.uint8).reshape(2, -1)
    theirs = package.quants.dequantize(raw, package.GGMLQuantizationType(kind)).astype(np.float32)
    np.testing.assert_array_equal(dequantise(raw, packing), theirs)


def test_a_damaged_scale_gives_nan_without_a_warning():
    block = np.zeros((1, 20), np.uint8)
    block[0, :2] = np.array([np.nan], "<f2").view(np.uint8)
    assert np.isnan(dequantise(block, encoding(3))).all()


@pytest.mark.parametrize(("version", "alignment"), [(3, 32), (2, 64)])
def test_metadata_and_tensors_come_back(tmp_path: Path, version: int, alignment: int):
    metadata = {
        "text": "naïve ▁ text",
        "empty": "",
        "flag": True,
        "count": 7,
        "ratio": 0.5,
        "big": Typed(10, 2**63),
        "negative": Typed(11, -(2**40)),
        "double": Typed(12, 0.1),
        "byte": Typed(1, -3),
        "short": Typed(2, 65535),
        "words": ["a", "ü", ""],
        "numbers": [Typed(5, -1), Typed(5, 2)],
        "flags": [True, False],
        "nothing": [],
    }
    first, second = np.arange(6.0).reshape(2, 3), np.arange(5.0)
    path = write_gguf(
        tmp_path / "x.gguf",
        metadata,
        {"a": plain(first), "b": plain(second)},
        version=version,
        alignment=alignment,
    )
    file = read_gguf(path)
    expected = {key: value.value if isinstance(value, Typed) else value for key, value in metadata.items()}
    expected["numbers"] = [-1, 2]
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.tensors["a"].shape == (2, 3)
    assert file.tensors["a"].start % alignment == 0
    np.testing.assert_array_equal(file.rows("a").view("<f4"), first)
    np.testing.assert_array_equal(file.rows("b").view("<f4"), second[None])


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"no file .*none\.gguf"):
        assay.load(tmp_path / "none.gguf")


def test_files_that_are_not_gguf_are_refused(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\3\4" + bytes(60))
    with pytest.raises(BadInput, match="not a GGUF file"):
        read_gguf(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="too short"):
        read_gguf(path)
    write_gguf(path, {}, {}, version=9)
    with pytest.raises(BadInput, match="version 9"):
        read_gguf(path)


def test_truncation_is_told_with_both_sizes(tmp_path: Path):
    path = write_gguf(tmp_path / "x.gguf", {"key": "value"}, {"a": plain(np.zeros((8, 8)))})
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(BadInput, match=rf"truncated.* {len(whole)} bytes.* {len(whole) - 100}"):
        read_gguf(path)
    path.write_bytes(whole[:40])
    with pytest.raises(BadInput, match="header .* is damaged"):
        read_gguf(path)


def test_unknown_encodings_and_odd_shapes_are_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "x.gguf", {}, {"a": Packed((32,), 99, bytes(32))})
    with pytest.raises(BadInput, match="'a' .* ggml type 99"):
        read_gguf(path)
    write_gguf(path, {}, {"a": Packed((33,), 3, bytes(40))})
    with pytest.raises(BadInput, match="no multiple of the 32 values"):
        read_gguf(path)


# Conversion. The writer below goes the way llama.cpp's converter goes, so loading must undo it.

GGUF_NAMES = {hf: name for name, hf in gguf.NAMES.items()}


def interleave(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to neighbouring pairs, as llama.cpp stores q and k of llama models."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def gguf_tensors(module: torch.nn.Module, *, permute: bool) -> dict[str, Packed]:
    config, tensors = module.config, {}
    for hf_name, weights in module.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        path, kind = hf_name.rsplit(".", 1)
        block = path.split(".")[2] if path.startswith("model.layers.") else None
        name = GGUF_NAMES[path.split(".", 3)[3] if block else path]
        values = weights.numpy()
        if permute and name in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
            values = interleave(values, heads)
        tensors[(f"blk.{block}." if block else "") + f"{name}.{kind}"] = plain(values)
    return tensors


def gguf_metadata(module: torch.nn.Module, tokenizer: Any, architecture: str) -> dict[str, Any]:
    config = module.config
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_ids)
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.attention.key_length": config.head_dim,
        f"{architecture}.rope.freq_base": config.rope_parameters["rope_theta"],
        f"{architecture}.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [Typed(5, 3 if i in special else 1) for i in range(len(vocab))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
    }


FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama-bias": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "head_dim": 4}),
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
}


def tiny(family: str, vocabulary: int) -> torch.nn.Module:
    config, kind, settings = FAMILIES[family]
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "vocab_size": vocabulary}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator only
        torch.manual_seed(3)
        module = kind(config(**sizes, **heads | settings, initializer_range=0.2)).eval()
        for name, weights in module.named_parameters():
            if (
                name.endswith("bias") or "norm" in name
            ):  # what is drawn as all zeros or ones would hide a mix-up
                torch.nn.init.normal_(weights, mean=1.0)
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_file_has_the_logits_of_the_original(
    family: str, tmp_path: Path, tiny_tokenizer: Tokenizer
):
    module = tiny(family, len(tiny_tokenizer))
    architecture = family.split("-")[0]
    path = write_gguf(
        tmp_path / "tiny.gguf",
        gguf_metadata(module, tiny_tokenizer, architecture),
        gguf_tensors(module, permute=architecture == "llama"),
    )
    model = assay.load(path)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, module(ids).logits)
    assert type(model.module) is type(module)
    assert model.module.config.rms_norm_eps == module.config.rms_norm_eps
    assert model.source == str(path)
    assert model.tokens("Mrs Dursley said 12") == tuple(tiny_tokenizer("Mrs Dursley said 12")["input_ids"])
    tied = model.module.get_input_embeddings().weight is model.module.get_output_embeddings().weight
    assert tied == module.config.tie_word_embeddings


def llama_file(path: Path, tokenizer: Any, metadata: dict[str, Any], tensors: dict[str, Packed]) -> Path:
    """A tiny llama file with some of its contents replaced."""
    module = tiny("llama", len(tokenizer))
    everything = gguf_metadata(module, tokenizer, "llama") | metadata
    return write_gguf(path, everything, gguf_tensors(module, permute=True) | tensors)


def test_half_precision_is_stored_as_it_is_and_quants_as_float32(tmp_path: Path, tiny_tokenizer: Tokenizer):
    rng = np.random.default_rng(0)
    gate = rng.normal(size=(56, 32)).astype("<f2")
    up = rng.normal(size=(56, 32)).astype("<f4").view("<u4") >> 16
    value = random_blocks(8, 16, seed=1)  # one block to a row of 32
    path = llama_file(
        tmp_path / "tiny.gguf",
        tiny_tokenizer,
        {},
        {
            "blk.0.ffn_gate.weight": Packed(gate.shape, 1, gate.tobytes()),
            "blk.0.ffn_up.weight": Packed(up.shape, 30, up.astype("<u2").tobytes()),
            "blk.1.attn_v.weight": Packed((16, 32), 8, value),
        },
    )
    folder = gguf.cached_folder(path)
    stored = load_file(folder / "model.safetensors")
    assert stored["model.layers.0.mlp.gate_proj.weight"].dtype == torch.float16
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert stored["model.layers.1.self_attn.v_proj.weight"].dtype == torch.float32
    layers = assay.load(path).module.model.layers
    np.testing.assert_array_equal(layers[0].mlp.gate_proj.weight.detach(), gate.astype(np.float32))
    np.testing.assert_array_equal(layers[0].mlp.up_proj.weight.detach(), (up << 16).view(np.float32))
    np.testing.assert_array_equal(
        layers[1].self_attn.v_proj.weight.detach(), slow_dequantise(value, 8).reshape(16, 32)
    )


def test_large_tensors_are_converted_in_chunks(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    path = llama_file(tmp_path / "tiny.gguf", tiny_tokenizer, {}, {})
    whole = (gguf.cached_folder(path) / "model.safetensors").read_bytes()
    monkeypatch.setattr(gguf, "CHUNK", 100)  # three rows of 32
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "other"))
    assert (gguf.cached_folder(path) / "model.safetensors").read_bytes() == whole


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """The divisors of Llama 3's frequencies, one at a time, as the model's authors describe them."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama3_rotary_factors_are_recognised(tmp_path: Path, tiny_tokenizer: Tokenizer):
    theta = {"llama.rope.freq_base": 500_000.0}
    factors = llama3_factors(8, 500_000.0, 32.0)
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, theta, {"rope_freqs.weight": plain(factors)})
    model = assay.load(path)
    rope = model.module.config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 32.0, 500_000.0)
    frequencies = 500_000.0 ** (-np.arange(0, 8, 2) / 8) / factors
    np.testing.assert_allclose(
        model.module.model.rotary_emb.inv_freq, frequencies, rtol=1e-5
    )  # float32 rounding
    odd = llama_file(tmp_path / "b.gguf", tiny_tokenizer, theta, {"rope_freqs.weight": plain(factors + 0.1)})
    with pytest.raises(BadInput, match="not those of Llama 3"):
        assay.load(odd)


def test_linear_rotary_scaling_is_kept(tmp_path: Path, tiny_tokenizer: Tokenizer):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    model = assay.load(llama_file(tmp_path / "a.gguf", tiny_tokenizer, scaling, {}))
    rope = model.module.config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.architecture": "mamba"}, {}, "architecture 'mamba'"),
        ({"llama.expert_count": 8}, {}, "mixtures of experts"),
        ({"llama.attention.sliding_window": 16}, {}, "sliding-window"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "'yarn'"),
        ({"llama.rope.dimension_count": 4}, {}, "part of a head"),
        ({}, {"blk.0.attn_sinks.weight": plain(np.zeros(4))}, r"'blk\.0\.attn_sinks\.weight'"),
        ({"tokenizer.ggml.pre": "mystery"}, {}, "pre-tokenizer 'mystery'"),
        ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer of kind 'bert'"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused(
    metadata: dict[str, Any],
    tensors: dict[str, Packed],
    message: str,
    tmp_path: Path,
    tiny_tokenizer: Tokenizer,
):
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, metadata, tensors)
    with pytest.raises(BadInput, match=message):
        assay.load(path)
    assert not [folder for folder in gguf.cache_root().iterdir() if not folder.name.startswith(".")]


def test_a_missing_setting_is_named(tmp_path: Path, tiny_tokenizer: Tokenizer):
    module = tiny("llama", len(tiny_tokenizer))
    metadata = gguf_metadata(module, tiny_tokenizer, "llama")
    del metadata["llama.feed_forward_length"]
    path = write_gguf(tmp_path / "a.gguf", metadata, gguf_tensors(module, permute=True))
    with pytest.raises(BadInput, match="feed_forward_length"):
        assay.load(path)


# The cache.


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert gguf.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("ASSAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert gguf.cache_root() == tmp_path / "shared" / "assay"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf.cache_root() == tmp_path / ".cache" / "assay"


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, tiny_tokenizer: Tokenizer):
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, {}, {})
    folder = gguf.cached_folder(path)
    written = (folder / "model.safetensors").stat()
    assert gguf.cached_folder(path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns
    assert (folder / "model.safetensors").stat().st_ino == written.st_ino
    os.utime(path, ns=(0, 1))
    assert gguf.cached_folder(path) != folder


def test_a_killed_conversion_leaves_nothing_that_is_used(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, {}, {})

    def killed(file: object, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert", killed)
        with pytest.raises(KeyboardInterrupt):
            gguf.cached_folder(path)
    assert [leftover.name[0] for leftover in gguf.cache_root().iterdir()] in ([".", "."], ["."])
    model = assay.load(path)
    assert model.n_layers == 2
    assert not list(gguf.cache_root().glob(".*.partial"))


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, {}, {})
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("ASSAY_CACHE", str(blocked / "cache"))
    with pytest.raises(BadInput, match="ASSAY_CACHE"):
        gguf.cached_folder(path)


def test_a_full_disk_is_told_before_writing(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    path = llama_file(tmp_path / "a.gguf", tiny_tokenizer, {}, {})
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match="GB are needed"):
        gguf.cached_folder(path)


# Tokenizers.


def byte_level_metadata(tokenizer: Any, pre: str, **extra: Any) -> dict[str, Any]:
    full = gguf_metadata(tiny("llama", len(tokenizer)), tokenizer, "llama")
    kept = {key: value for key, value in full.items() if key.startswith("tokenizer.")}
    kept["tokenizer.ggml.token_type"] = [item.value for item in kept["tokenizer.ggml.token_type"]]
    return kept | {"tokenizer.ggml.pre": pre} | {f"tokenizer.{key}": value for key, value in extra.items()}


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


# The embedded model.


@pytest.mark.smollm2
def test_smollm2_tokens_are_those_of_transformers(smollm2: Model):
    pytest.importorskip("gguf")
    from transformers import AutoTokenizer

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


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_weights_are_those_of_transformers(smollm2: Model):
    pytest.importorskip("gguf")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    state = smollm2.module.state_dict()
    theirs = load_gguf_checkpoint(str(_embedded_file()), return_tensors=True, model_to_load=smollm2.module)[
        "tensors"
    ]
    assert theirs.keys() | {"lm_head.weight"} == state.keys()
    for name, weights in theirs.items():
        assert torch.equal(weights, state[name]), name
