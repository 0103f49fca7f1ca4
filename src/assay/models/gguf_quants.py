"""From packed GGUF blocks to float32, many blocks at a time.

A block is a run of values along a row that share a scale. With ``d`` and ``m`` half-precision numbers and
``q`` small integers, the plain formats hold ``x = d q`` or ``x = d q + m``. The K formats hold 256 values in
groups with scales of their own, themselves small integers: ``x = (d s) q - (m t)``.

Every function here takes ``blocks (block, byte)`` and returns ``(block, value)`` in float32, rounded once per
operation in the order above, so that results are bit-equal to ggml's reference de-quantiser.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block layouts)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoding:
    """How values are packed.

    Attributes:
        name: ggml's name, for example ``"Q4_K"``.
        block: values per block.
        n_bytes: bytes per block.
        decode: ``(block, byte)`` to ``(block, value)``.
    """

    name: str
    block: int
    n_bytes: int
    decode: Callable[[Bytes], Floats]


def encoding(kind: int) -> Encoding | None:
    """The encoding with ggml's type number ``kind``; ``None`` where it is not supported."""
    return _ENCODINGS.get(kind)


def dequantise(packed: Bytes, encoding: Encoding) -> Floats:
    """Unpack rows of one tensor.

    Args:
        packed: ``(row, byte)``.
        encoding: how each row is packed.

    Returns:
        ``(row, value)`` in float32.
    """
    blocks = packed.reshape(-1, encoding.n_bytes)
    with np.errstate(invalid="ignore", over="ignore"):  # loading names the parameters that hold NaN
        return encoding.decode(blocks).reshape(len(packed), -1)


def _half(blocks: Bytes, start: int) -> Floats:
    """The half-precision number at byte ``start`` of every block, ``(block, 1)``."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _fields(packed: Bytes, bits: int, run: int) -> Bytes:
    """Unsigned integers of ``bits`` bits, ``(block, value)``.

    Each run of ``run`` bytes holds first the lowest field of every byte, then the next field, and so on.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run)
    return ((runs >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _bits(packed: Bytes) -> Bytes:
    """The bits of consecutive bytes, lowest first, ``(block, 8 * byte)``."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def _signed(values: Integers, zero: int) -> Integers:
    """Unsigned integers with ``zero`` as their origin."""
    return values.view(np.int8) - np.int8(zero)


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _signed(_fields(blocks[:, 2:], 4, 16), 8)


def _q4_1(blocks: Bytes) -> Floats:
    values = _half(blocks, 0) * _fields(blocks[:, 4:], 4, 16)
    values += _half(blocks, 2)
    return values


def _q5_0(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, 6:], 4, 16) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * _signed(q, 16)


def _q5_1(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, 8:], 4, 16) | _bits(blocks[:, 4:8]) << 4
    values = _half(blocks, 0) * q
    values += _half(blocks, 2)
    return values


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _grouped(q: Integers, scale: Floats, offset: Floats | None = None) -> Floats:
    """``scale q - offset`` with one scale, and one offset, per group of a block, ``(block, group)``."""
    values = scale[:, :, None] * q.reshape(*scale.shape, -1)
    if offset is not None:
        values -= offset[:, :, None]
    return values.reshape(len(q), -1)


def _q2_k(blocks: Bytes) -> Floats:
    scales, q = blocks[:, :16], _fields(blocks[:, 16:80], 2, 32)
    return _grouped(q, _half(blocks, 80) * (scales & 15), _half(blocks, 82) * (scales >> 4))


def _q3_k(blocks: Bytes) -> Floats:
    low, high = _fields(blocks[:, 32:96], 2, 32), _fields(blocks[:, :32], 1, 32)
    scales = _fields(blocks[:, 96:104], 4, 8) | _fields(blocks[:, 104:108], 2, 4) << 4
    return _grouped(_signed(low | high << 2, 4), _half(blocks, 108) * _signed(scales, 32))


def _k_scales(packed: Bytes) -> tuple[Integers, Integers]:
    """The eight 6-bit scales and eight 6-bit offsets that Q4_K and Q5_K share, ``(block, group)`` each.

    The first four of each lie in the low bits of bytes 0 to 3 and 4 to 7; the last four have their low
    nibbles in bytes 8 to 11 and their top two bits above the first four.
    """
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.hstack([first & 63, rest & 15 | first >> 6 << 4])
    offsets = np.hstack([second & 63, rest >> 4 | second >> 6 << 4])
    return scales, offsets


def _q4_k(blocks: Bytes) -> Floats:
    scales, offsets = _k_scales(blocks[:, 4:16])
    q = _fields(blocks[:, 16:], 4, 32)
    return _grouped(q, _half(blocks, 0) * scales, _half(blocks, 2) * offsets)


def _q5_k(blocks: Bytes) -> Floats:
    scales, offsets = _k_scales(blocks[:, 4:16])
    q = _fields(blocks[:, 48:], 4, 32) | _fields(blocks[:, 16:48], 1, 32) << 4
    return _grouped(q, _half(blocks, 0) * scales, _half(blocks, 2) * offsets)


def _q6_k(blocks: Bytes) -> Floats:
    q = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4
    return _grouped(_signed(q, 32), _half(blocks, 208) * blocks[:, 192:208].view(np.int8))


_ENCODINGS = {
    0: Encoding("F32", 1, 4, _f32),
    1: Encoding("F16", 1, 2, _f16),
    2: Encoding("Q4_0", 32, 18, _q4_0),
    3: Encoding("Q4_1", 32, 20, _q4_1),
    6: Encoding("Q5_0", 32, 22, _q5_0),
    7: Encoding("Q5_1", 32, 24, _q5_1),
    8: Encoding("Q8_0", 32, 34, _q8_0),
    10: Encoding("Q2_K", 256, 84, _q2_k),
    11: Encoding("Q3_K", 256, 110, _q3_k),
    12: Encoding("Q4_K", 256, 144, _q4_k),
    13: Encoding("Q5_K", 256, 176, _q5_k),
    14: Encoding("Q6_K", 256, 210, _q6_k),
    30: Encoding("BF16", 1, 2, _bf16),
}
