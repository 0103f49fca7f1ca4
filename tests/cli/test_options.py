"""Texts from arguments, files and stdin."""

import io
from pathlib import Path

import pytest

from assay.cli.options import require_utf8, text_of
from assay.errors import BadInput


@pytest.mark.parametrize(
    ("argument", "text"),
    [("plain", "plain"), ("", ""), ("@@handle", "@handle"), ("-5 degrees", "-5 degrees"), ("a\n", "a\n")],
)
def test_an_argument_is_its_own_text(argument: str, text: str) -> None:
    assert text_of(argument) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [("café\n", "café"), ("one\r\n", "one"), ("one\n\n", "one\n"), ("no end", "no end"), ("", "")],
)
def test_a_file_gives_its_text_without_the_last_line_end(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "prompt.txt").write_bytes(content.encode())
    assert text_of(f"@{tmp_path / 'prompt.txt'}") == text


def test_a_dash_stands_for_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("naïve\n".encode())))
    assert text_of("-") == "naïve"


def test_bytes_that_are_no_text_are_refused_wherever_they_stand() -> None:
    mangled = b"caf\xe9".decode("utf-8", "surrogateescape")
    require_utf8(("café", 3, None))
    for argument in (mangled, ("fine", mangled)):
        with pytest.raises(BadInput, match="not UTF-8"):
            require_utf8(argument)
