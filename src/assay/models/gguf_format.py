"""The GGUF container: header, metadata and tensor table, read once through a memory map.

Layout (GGUF versions 2 and 3, little-endian): magic, version, tensor count, metadata count; then the metadata
as (key, type, value); then the tensor table as (name, dimensions, type, offset); then, at the next multiple
of the alignment, the tensor data. Strings are a 64-bit length and UTF-8 bytes.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.errors import BadInput
from assay.models.gguf_quants import Encoding, encoding

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table.

    Attributes:
        name: as the file spells it, for example ``"blk.0.attn_q.weight"``.
        shape: in torch order (slowest dimension first).
        encoding: how a row of values is packed.
        start: byte at which the tensor begins, counted from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    start: int

    @property
    def n_bytes(self) -> int:
        """Bytes the tensor takes in the file."""
        return math.prod(self.shape) // self.encoding.block * self.encoding.n_bytes


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """A parsed GGUF file; tensor data stays on disk until asked for."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    data: mmap.mmap

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """The packed bytes of one tensor.

        Args:
            name: a key of ``tensors``.

        Returns:
            A read-only view ``(row, byte)``; a one-dimensional tensor is one row.
        """
        entry = self.tensors[name]
        packed = np.frombuffer(self.data, np.uint8, entry.n_bytes, entry.start)
        return packed.reshape(math.prod(entry.shape[:-1]), -1)


class _Cursor:
    """Reads values one after the other from the header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        return self._take(length).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.unpack(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"unknown metadata type {kind}")
        item, count = self.unpack("<IQ")
        if item in SCALARS:
            layout = np.dtype(SCALARS[item])
            return np.frombuffer(self._take(count * layout.itemsize), layout).tolist()
        return [self.value(item) for _ in range(count)]

    def _take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise struct.error("past the end of the file")
        taken = self.data[self.position : end]
        self.position = end
        return taken


def read_gguf(path: Path) -> GGUFFile:
    """Parse the header of a GGUF file and check that all tensor data is there.

    Args:
        path: a ``.gguf`` file.

    Returns:
        The parsed file, its data memory-mapped.

    Raises:
        BadInput: the file is missing, no GGUF, of an unknown version, damaged or truncated, or packs a tensor
            in a way that is not supported.
    """
    if not path.is_file():
        raise BadInput(f"There is no file {str(path)!r}. Check the path of the GGUF file.")
    if path.stat().st_size < 24:
        raise BadInput(f"{str(path)!r} has {path.stat().st_size} bytes: too short for a GGUF file.")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data)
    magic, version, n_tensors, n_metadata = cursor.unpack("<4sIQQ")
    if magic != b"GGUF":
        raise BadInput(f"{str(path)!r} is not a GGUF file: it starts with {magic!r} instead of b'GGUF'.")
    if version not in VERSIONS:
        raise BadInput(
            f"{str(path)!r} has GGUF version {version}; this reader knows {VERSIONS}, little-endian. "
            "Convert the model again with a current llama.cpp."
        )
    try:
        metadata = {cursor.string(): cursor.value(cursor.unpack("<I")[0]) for _ in range(n_metadata)}
        table = [_table_row(cursor) for _ in range(n_tensors)]
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise BadInput(
            f"The header of {str(path)!r} is damaged near byte {cursor.position} of {len(data)} ({error}). "
            "The download was probably cut short: download the file again."
        ) from error
    tensors = _locate(path, table, cursor.position, int(metadata.get("general.alignment", DEFAULT_ALIGNMENT)))
    _require_length(path, tensors, len(data))
    return GGUFFile(path, metadata, tensors, data)


def _table_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape in torch order, type number, offset from the start of the data section."""
    name = cursor.string()
    (n_dims,) = cursor.unpack("<I")
    shape = cursor.unpack(f"<{n_dims}Q")[::-1]
    kind, offset = cursor.unpack("<IQ")
    return name, shape, kind, offset


def _locate(
    path: Path, table: list[tuple[str, tuple[int, ...], int, int]], header_end: int, alignment: int
) -> dict[str, TensorEntry]:
    data_start = -(-header_end // alignment) * alignment
    tensors: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in table:
        packing = encoding(kind)
        if packing is None:
            raise BadInput(
                f"Tensor {name!r} of {str(path)!r} is packed as ggml type {kind}, which is not known here. "
                "Use another quantisation of the model (Q8_0, Q4_K_M, F16) or its safetensors folder."
            )
        if not shape or shape[-1] % packing.block:
            raise BadInput(
                f"Tensor {name!r} of {str(path)!r} has shape {shape}, whose last dimension is no multiple of "
                f"the {packing.block} values in a {packing.name} block. The file is damaged."
            )
        tensors[name] = TensorEntry(name, shape, packing, data_start + offset)
    return tensors


def _require_length(path: Path, tensors: Mapping[str, TensorEntry], found: int) -> None:
    expected = max((entry.start + entry.n_bytes for entry in tensors.values()), default=0)
    if found < expected:
        raise BadInput(
            f"{str(path)!r} is truncated: its tensor table asks for {expected} bytes, the file has {found}. "
            "Download it again."
        )
