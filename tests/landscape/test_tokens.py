import pytest
import torch
from safetensors.torch import save_file

import assay
from assay.errors import BadInput
from assay.landscape.tokens import token_rows

TEXT = "The Eiffel Tower is located in the city of Paris. " * 40


def test_a_text_is_cut_into_rows_without_overlap(tiny_llama, tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    rows = token_rows(tiny_llama, path, context=16)
    ids = tiny_llama.tokenizer(TEXT, verbose=False)["input_ids"]
    assert rows.shape == (len(ids) // 16, 16)
    assert rows.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert token_rows(tiny_llama, str(path)).shape[1] == 128  # its own context is shorter than the default


def test_token_files_keep_their_rows_unless_cut_anew(tiny_llama, tmp_path) -> None:
    path = tmp_path / "ids.safetensors"
    save_file({"tokens": torch.arange(60, dtype=torch.int32).view(6, 10)}, path)
    assert token_rows(tiny_llama, path).tolist() == torch.arange(60).view(6, 10).tolist()
    assert token_rows(tiny_llama, path).dtype == torch.int64
    assert token_rows(tiny_llama, path, context=25).tolist() == torch.arange(50).view(2, 25).tolist()
    save_file({"tokens": torch.arange(300)}, path)
    assert token_rows(tiny_llama, path).shape == (2, 128)


def stored(ids: torch.Tensor):
    return lambda path: save_file({"tokens": ids}, path)


@pytest.mark.parametrize(
    ("name", "write", "context", "message"),
    [
        ("none.txt", lambda path: None, None, "cannot be read: No such file"),
        ("bytes.txt", lambda path: path.write_bytes(b"\xff\xfe\xff"), None, "is not UTF-8: byte 0"),
        ("short.txt", lambda path: path.write_text("A"), 16, "less than one row of 16"),
        ("text.txt", lambda path: path.write_text(TEXT), 1, "expected 2 to 128 tokens"),
        ("text.txt", lambda path: path.write_text(TEXT), 129, "expected 2 to 128 tokens"),
        ("none.safetensors", lambda path: None, None, "cannot be read"),
        ("bad.safetensors", lambda path: path.write_text("no tensors"), None, "cannot be read"),
        ("float.safetensors", stored(torch.zeros(40)), 4, "expected whole numbers"),
        ("deep.safetensors", stored(torch.zeros(2, 2, 2, dtype=torch.int64)), 4, "expected whole numbers"),
        ("long.safetensors", stored(torch.zeros(2, 200, dtype=torch.int64)), None, "context has 128"),
        (
            "other.safetensors",
            stored(torch.tensor([[1, 9999]])),
            None,
            "from 1 to 9999, the vocabulary from 0",
        ),
        (
            "two.safetensors",
            lambda path: save_file({"a": torch.ones(2), "b": torch.ones(2)}, path),
            None,
            "expected one tensor",
        ),
    ],
)
def test_what_is_no_data_is_refused(tiny_llama, tmp_path, name, write, context, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(BadInput, match=message):
        token_rows(tiny_llama, tmp_path / name, context=context)


def test_a_text_needs_a_tokenizer(tiny_llama, tmp_path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(BadInput, match="has no tokenizer"):
        token_rows(assay.wrap(tiny_llama.module), tmp_path / "text.txt")
