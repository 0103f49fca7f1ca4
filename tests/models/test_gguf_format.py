"""GGUF: the container and every encoding."""

from pathlib import Path

import numpy as np
import pytest

import assay
from assay.errors import BadInput
from assay.models.gguf_format import read_gguf
from assay.models.gguf_quants import dequantise, encoding
from reference.gguf_slow import SLOW, random_blocks, slow_dequantise
from reference.gguf_writer import Packed, Typed, plain, write_gguf


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
