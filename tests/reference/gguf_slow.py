"""Slow twin of the GGUF de-quantiser: one block at a time in plain Python.

The loops follow the block structures of ggml-common.h value by value. Arithmetic is in float32, each
operation rounded once, so the vectorised decoder must give the same bits.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

F32 = np.float32


def half(block: bytes, start: int) -> np.float32:
    return F32(struct.unpack_from("<e", block, start)[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def f32(block: bytes) -> list[np.float32]:
    return [F32(struct.unpack("<f", block)[0])]


def f16(block: bytes) -> list[np.float32]:
    return [half(block, 0)]


def bf16(block: bytes) -> list[np.float32]:
    return [F32(struct.unpack("<f", b"\0\0" + block)[0])]


def q4_0(block: bytes) -> list[np.float32]:
    quants = block[2:]
    low = [(byte & 15) - 8 for byte in quants]
    high = [(byte >> 4) - 8 for byte in quants]
    return [half(block, 0) * F32(q) for q in low + high]


def q4_1(block: bytes) -> list[np.float32]:
    quants = block[4:]
    values = [byte & 15 for byte in quants] + [byte >> 4 for byte in quants]
    return [half(block, 0) * F32(q) + half(block, 2) for q in values]


def fifth_bits(block: bytes, start: int) -> list[int]:
    word = struct.unpack_from("<I", block, start)[0]
    return [(word >> i & 1) << 4 for i in range(32)]


def q5_0(block: bytes) -> list[np.float32]:
    quants, fifth = block[6:], fifth_bits(block, 2)
    four = [byte & 15 for byte in quants] + [byte >> 4 for byte in quants]
    return [half(block, 0) * F32((q | bit) - 16) for q, bit in zip(four, fifth, strict=True)]


def q5_1(block: bytes) -> list[np.float32]:
    quants, fifth = block[8:], fifth_bits(block, 4)
    four = [byte & 15 for byte in quants] + [byte >> 4 for byte in quants]
    return [half(block, 0) * F32(q | bit) + half(block, 2) for q, bit in zip(four, fifth, strict=True)]


def q8_0(block: bytes) -> list[np.float32]:
    return [half(block, 0) * F32(signed(byte)) for byte in block[2:]]


def q2_k(block: bytes) -> list[np.float32]:
    scales, d, dmin = block[:16], half(block, 80), half(block, 82)
    values, group = [], 0
    for quants in (block[16:48], block[48:80]):
        for shift in (0, 2, 4, 6):
            for part in (quants[:16], quants[16:]):
                scale, offset = d * F32(scales[group] & 15), dmin * F32(scales[group] >> 4)
                values += [scale * F32(byte >> shift & 3) - offset for byte in part]
                group += 1
    return values


def q3_k(block: bytes) -> list[np.float32]:
    mask, packed, d = block[:32], block[96:108], half(block, 108)
    low = [packed[i] & 15 for i in range(8)] + [packed[i] >> 4 for i in range(8)]
    scales = [low[i] + 16 * (packed[8 + i % 4] >> 2 * (i // 4) & 3) - 32 for i in range(16)]
    values, group, bit = [], 0, 1
    for quants in (block[32:64], block[64:96]):
        for shift in (0, 2, 4, 6):
            for part in (range(16), range(16, 32)):
                for i in part:
                    q = (quants[i] >> shift & 3) - (0 if mask[i] & bit else 4)
                    values.append(d * F32(scales[group]) * F32(q))
                group += 1
            bit <<= 1
    return values


def scale_and_offset(packed: bytes, group: int) -> tuple[np.float32, np.float32]:
    if group < 4:
        return F32(packed[group] & 63), F32(packed[group + 4] & 63)
    scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
    offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
    return F32(scale), F32(offset)


def q4_k(block: bytes) -> list[np.float32]:
    values = []
    for group in range(8):
        scale, offset = scale_and_offset(block[4:16], group)
        quants = block[16 + 32 * (group // 2) :][:32]
        for byte in quants:
            q = byte >> 4 if group % 2 else byte & 15
            values.append(half(block, 0) * scale * F32(q) - half(block, 2) * offset)
    return values


def q5_k(block: bytes) -> list[np.float32]:
    values = []
    for group in range(8):
        scale, offset = scale_and_offset(block[4:16], group)
        quants = block[48 + 32 * (group // 2) :][:32]
        for i, byte in enumerate(quants):
            q = (byte >> 4 if group % 2 else byte & 15) + 16 * (block[16 + i] >> group & 1)
            values.append(half(block, 0) * scale * F32(q) - half(block, 2) * offset)
    return values


def q6_k(block: bytes) -> list[np.float32]:
    d, values = half(block, 208), [F32(0)] * 256
    for part in (0, 1):
        low, high = block[64 * part :][:64], block[128 + 32 * part :][:32]
        scales = [signed(byte) for byte in block[192 + 8 * part :][:8]]
        for i in range(32):
            quants = (
                low[i] & 15 | (high[i] & 3) << 4,
                low[i + 32] & 15 | (high[i] >> 2 & 3) << 4,
                low[i] >> 4 | (high[i] >> 4 & 3) << 4,
                low[i + 32] >> 4 | high[i] >> 6 << 4,
            )
            for quarter, q in enumerate(quants):
                scale = F32(scales[2 * quarter + i // 16])
                values[128 * part + 32 * quarter + i] = d * scale * F32(q - 32)
    return values


class Slow(NamedTuple):
    """Bytes per block, where its half-precision scales lie, and the decoder."""

    n_bytes: int
    halves: tuple[int, ...]
    decode: Callable[[bytes], list[np.float32]]


SLOW = {
    0: Slow(4, (), f32),
    1: Slow(2, (0,), f16),
    2: Slow(18, (0,), q4_0),
    3: Slow(20, (0, 2), q4_1),
    6: Slow(22, (0,), q5_0),
    7: Slow(24, (0, 2), q5_1),
    8: Slow(34, (0,), q8_0),
    10: Slow(84, (80, 82), q2_k),
    11: Slow(110, (108,), q3_k),
    12: Slow(144, (0, 2), q4_k),
    13: Slow(176, (0, 2), q5_k),
    14: Slow(210, (208,), q6_k),
    30: Slow(2, (), bf16),
}


def slow_dequantise(packed: bytes, kind: int) -> np.ndarray:
    """Unpack consecutive blocks, one after the other."""
    slow = SLOW[kind]
    blocks = [packed[start : start + slow.n_bytes] for start in range(0, len(packed), slow.n_bytes)]
    return np.array([value for block in blocks for value in slow.decode(block)], np.float32)


def random_blocks(kind: int, n: int, seed: int) -> bytes:
    """Random bytes whose half-precision scales are finite."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, SLOW[kind].n_bytes), dtype=np.uint8)
    for start in SLOW[kind].halves:
        blocks[:, start : start + 2] = rng.normal(size=(n, 1)).astype("<f2").view(np.uint8)
    if kind in (0, 30):
        blocks[:, -1] &= 0xBF  # an exponent that is not all ones
    return blocks.tobytes()
