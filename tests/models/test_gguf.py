"""GGUF files converted to a Hugging Face folder: the same numbers, kept in a cache."""

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
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

import assay
from assay.errors import BadInput
from assay.models import gguf
from assay.models.loading import _embedded_file
from assay.models.model import Model
from reference.gguf_slow import random_blocks, slow_dequantise
from reference.gguf_writer import Packed, gguf_metadata, gguf_tensors, plain, write_gguf


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions of a test stay in its own folder; the embedded model keeps its place."""
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))


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
