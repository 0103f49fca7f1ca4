"""GGUF files, converted once into a Hugging Face folder that loads by memory map.

The converted folder holds ``config.json``, ``model.safetensors`` and the tokenizer. Quantised tensors are
stored as the float32 numbers they stand for, half-precision ones as they are, tied embeddings once.

Folders live in ``$ASSAY_CACHE``, else ``$XDG_CACHE_HOME/assay``, else ``~/.cache/assay``, under the file's
name and a hash of its size, time of change and first mebibyte. A folder is written under another name and
renamed when it is complete, so an interrupted conversion leaves nothing that looks finished.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from transformers import AutoConfig, PretrainedConfig

from assay.errors import BadInput
from assay.models.gguf_format import GGUFFile, TensorEntry, read_gguf
from assay.models.gguf_quants import dequantise
from assay.models.gguf_tokenizer import build_tokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
CONVERSION = 1  # raise when the converted folder changes, so that older ones are made anew
CHUNK = 1 << 22  # values unpacked at a time; bounds memory whatever the size of a tensor
HEAD = 1 << 20  # bytes of the file that enter its hash
ROTARY_FACTORS = "rope_freqs.weight"

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache_root() -> Path:
    """The folder converted models are kept in; see the module's text for how it is chosen."""
    if chosen := os.environ.get("ASSAY_CACHE"):
        return Path(chosen).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "assay"
    return Path.home() / ".cache" / "assay"


def cached_folder(path: Path) -> Path:
    """The Hugging Face folder of a GGUF file, converting the file where that has not been done.

    Args:
        path: a ``.gguf`` file.

    Returns:
        A complete folder in the cache.

    Raises:
        BadInput: the file cannot be read (see ``read_gguf``), its architecture or tokenizer is not supported,
            or the cache cannot be written.
    """
    if not path.is_file():
        raise BadInput(f"There is no file {str(path)!r}. Check the path of the GGUF file.")
    folder = cache_root() / f"{path.stem}-{_fingerprint(path)}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The lock dies with its holder: what lies in the partial folder is left from a killed conversion.
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                partial = folder.with_name(f".{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                convert(read_gguf(path), partial)
                partial.rename(folder)
    except OSError as error:
        raise BadInput(
            f"The converted model cannot be written to {str(folder)!r}: {error}. "
            "Make room there, or set ASSAY_CACHE to a folder that can be written."
        ) from error
    return folder


def convert(file: GGUFFile, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder.

    Args:
        file: the parsed file.
        folder: an existing, empty folder.
    """
    config = build_config(file)
    build_tokenizer(file.metadata).save_pretrained(folder)
    config.save_pretrained(folder)
    _write_safetensors(file, folder / "model.safetensors")


def build_config(file: GGUFFile) -> PretrainedConfig:
    """The Hugging Face configuration of a GGUF file.

    Args:
        file: the parsed file.

    Raises:
        BadInput: the architecture, or an option the file uses, is not supported.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise BadInput(
            _unsupported(file, f"the architecture {architecture!r} (known: {', '.join(ARCHITECTURES)})")
        )
    options = {
        key.removeprefix(f"{architecture}."): value
        for key, value in file.metadata.items()
        if key.startswith(f"{architecture}.")
    }
    if options.get("expert_count"):
        raise BadInput(_unsupported(file, "mixtures of experts"))
    if options.get("attention.sliding_window"):
        raise BadInput(_unsupported(file, "sliding-window attention"))
    try:
        heads, width = options["attention.head_count"], options["embedding_length"]
        head_dim = options.get("attention.key_length", width // heads)
        fields = {
            "vocab_size": file.tensors["token_embd.weight"].shape[0],
            "hidden_size": width,
            "intermediate_size": options["feed_forward_length"],
            "num_hidden_layers": options["block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": options.get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": options["context_length"],
            "rms_norm_eps": _decimal(options["attention.layer_norm_rms_epsilon"]),
        }
    except (KeyError, TypeError) as error:
        raise BadInput(
            _unsupported(file, f"a header where {error} is missing or differs between layers")
        ) from error
    if options.get("rope.dimension_count", head_dim) != head_dim:
        raise BadInput(_unsupported(file, "rotary embeddings over part of a head"))
    if architecture == "llama":
        fields["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    roles = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return AutoConfig.for_model(
        architecture,
        architectures=[ARCHITECTURES[architecture]],
        rope_parameters=_rotary(file, options, head_dim),
        tie_word_embeddings="output.weight" not in file.tensors,
        **fields,
        **{field: file.metadata.get(f"tokenizer.ggml.{role}_token_id") for field, role in roles.items()},
    )


def _unsupported(file: GGUFFile, what: str) -> str:
    return (
        f"{str(file.path)!r} uses {what}, which the GGUF reader does not support. "
        "Load the model from its safetensors folder or hub id instead."
    )


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to the float32 ``value``: what the original configuration said."""
    return float(str(np.float32(value)))


def _rotary(file: GGUFFile, options: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """The rotary embedding: base, and how it is stretched for long contexts."""
    theta = _decimal(options.get("rope.freq_base", 10_000.0))
    scaling = options.get("rope.scaling.type", "none")
    if ROTARY_FACTORS in file.tensors:
        factors = dequantise(file.rows(ROTARY_FACTORS), file.tensors[ROTARY_FACTORS].encoding)[0]
        return _llama3_rotary(file, factors, theta, head_dim)
    if scaling == "linear":
        factor = _decimal(options["rope.scaling.factor"])
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if scaling != "none":
        raise BadInput(_unsupported(file, f"rotary scaling of type {scaling!r}"))
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rotary(
    file: GGUFFile, factors: npt.NDArray[np.float32], theta: float, head_dim: int
) -> dict[str, Any]:
    """Llama 3's stretched frequencies, recognised by the divisors the file lists for them.

    A wavelength longer than ``original / low`` is stretched by ``factor``, one shorter than
    ``original / high`` not at all, and between the two the frequency is interpolated. All published Llama 3
    models have ``original = 8192, low = 1, high = 4``.

    Raises:
        BadInput: the divisors are others, which cannot be written as a configuration.
    """
    original, low, high, factor = 8192, 1.0, 4.0, _decimal(float(factors.max()))
    turns = original * theta ** (-np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    if factors.shape != kept.shape or not np.allclose(factors, 1 / ((1 - kept) / factor + kept), rtol=1e-4):
        raise BadInput(_unsupported(file, "rotary factors that are not those of Llama 3"))
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _hf_name(file: GGUFFile, name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in NAMES:
        raise BadInput(_unsupported(file, f"the tensor {name!r}"))
    block = f"model.layers.{match[1]}." if match[1] else ""
    return f"{block}{NAMES[match[2]]}.{match[3]}"


def _write_safetensors(file: GGUFFile, path: Path) -> None:
    """Stream the tensors into one safetensors file, a chunk of rows in memory at a time."""
    entries = [entry for name, entry in file.tensors.items() if name != ROTARY_FACTORS]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in sorted(entries, key=_item_size, reverse=True):  # wide items first keeps every tensor aligned
        end = position + _item_size(entry) * int(np.prod(entry.shape))
        header[_hf_name(file, entry.name)] = {
            "dtype": _stored_dtype(entry),
            "shape": entry.shape,
            "data_offsets": [position, end],
        }
        position = end
    if (free := shutil.disk_usage(path.parent).free) < position:
        raise OSError(f"{position / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    head = json.dumps(header).encode()
    head += b" " * (-(len(head) + 8) % 64)
    with path.open("wb") as output:
        output.write(len(head).to_bytes(8, "little") + head)
        for entry in sorted(entries, key=_item_size, reverse=True):
            for chunk in _values(file, entry):
                output.write(chunk.tobytes())


def _stored_dtype(entry: TensorEntry) -> str:
    return entry.encoding.name if entry.encoding.name in ("F16", "BF16") else "F32"


def _item_size(entry: TensorEntry) -> int:
    return 4 if _stored_dtype(entry) == "F32" else 2


def _values(file: GGUFFile, entry: TensorEntry) -> Iterator[npt.NDArray[Any]]:
    """A tensor's rows as they are stored, in chunks: float32, or the bytes of half-precision numbers."""
    packed = file.rows(entry.name)
    if (heads := _interleaved_heads(file, entry)) is not None:
        packed = packed.reshape(entry.shape[0], -1)[_rotary_order(entry.shape[0], heads)]
    step = max(1, CHUNK // entry.shape[-1])
    for start in range(0, len(packed), step):
        rows = packed[start : start + step]
        yield dequantise(rows, entry.encoding) if _stored_dtype(entry) == "F32" else rows


def _interleaved_heads(file: GGUFFile, entry: TensorEntry) -> int | None:
    """The number of heads of a tensor whose rows the file interleaves; ``None`` for any other tensor.

    The llama architecture rotates neighbouring pairs of a head's dimensions in GGUF, the first half against
    the second half in Hugging Face's implementation.
    """
    if file.metadata["general.architecture"] != "llama":
        return None
    heads = file.metadata["llama.attention.head_count"]
    if re.search(r"\.attn_q\.", entry.name):
        return heads
    if re.search(r"\.attn_k\.", entry.name):
        return file.metadata.get("llama.attention.head_count_kv", heads)
    return None


def _rotary_order(n_rows: int, heads: int) -> npt.NDArray[np.int64]:
    """Row numbers that put each head's even dimensions before its odd ones."""
    return np.arange(n_rows).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _fingerprint(path: Path) -> str:
    stat = path.stat()
    with path.open("rb") as file:
        head = file.read(HEAD)
    digest = hashlib.sha256(f"{CONVERSION} {stat.st_size} {stat.st_mtime_ns} ".encode() + head)
    return digest.hexdigest()[:16]
