"""Small GGUF files, written the way llama.cpp's converter goes, so that loading must undo it."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerFast as Tokenizer


class Packed(NamedTuple):
    """A tensor as a file holds it: shape in torch order, ggml's type number, bytes."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


class Typed(NamedTuple):
    """A metadata value with its GGUF type number, for the types Python does not tell apart."""

    kind: int
    value: Any


SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def plain(values: np.ndarray) -> Packed:
    """An array as an F32 tensor."""
    return Packed(values.shape, 0, np.ascontiguousarray(values, "<f4").tobytes())


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Packed],
    *,
    version: int = 3,
    alignment: int = 32,
) -> Path:
    """Write a small GGUF file."""
    if alignment != 32:
        metadata = {"general.alignment": alignment, **metadata}
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        typed = typed_value(value)
        head += text(key) + struct.pack("<I", typed.kind) + encode(typed)
    data = b""
    for name, tensor in tensors.items():
        head += text(name) + struct.pack(
            f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape)
        )
        head += struct.pack("<IQ", tensor.kind, len(data))
        data += tensor.data + b"\0" * (-len(tensor.data) % alignment)
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + data)
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed_value(value: Any) -> Typed:
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(7, value)
    if isinstance(value, int):
        return Typed(4, value)
    if isinstance(value, float):
        return Typed(6, value)
    if isinstance(value, str):
        return Typed(8, value)
    return Typed(9, value)


def encode(typed: Typed) -> bytes:
    if typed.kind == 8:
        return text(typed.value)
    if typed.kind != 9:
        return struct.pack(f"<{SCALARS[typed.kind]}", typed.value)
    items: Sequence[Typed] = [typed_value(item) for item in typed.value]
    head = struct.pack("<IQ", items[0].kind if items else 4, len(items))
    return head + b"".join(encode(item) for item in items)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to neighbouring pairs, as llama.cpp stores q and k of llama models."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def gguf_tensors(module: nn.Module, *, permute: bool) -> dict[str, Packed]:
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


def gguf_metadata(module: nn.Module, tokenizer: Tokenizer, architecture: str) -> dict[str, Any]:
    config = module.config
    settings = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": config.head_dim,
    }
    named = {f"{architecture}.{name}": value for name, value in settings.items()}
    return {"general.architecture": architecture} | named | tokenizer_metadata(tokenizer)


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a file says of a byte-level tokenizer that cuts text like GPT-2's."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ids = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(ids, key=lambda token: ids[token]),
        "tokenizer.ggml.token_type": [3 if index in special else 1 for index in range(len(ids))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
    }
