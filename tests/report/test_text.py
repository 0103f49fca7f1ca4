"""Token text is shown, never obeyed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.report.text import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" ley", "·ley"),
        ("\n", "↵"),
        ("\t\t", "⇥⇥"),
        ("", "∅"),
        ("\x1b[0m", "⟨U+001B⟩[0m"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("\u00a0", "⟨U+00A0⟩"),
        ("\u0301", "◌\u0301"),
        ("é", "é"),
        ("🙂", "🙂"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_what_is_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_long_text_ends_in_an_ellipsis() -> None:
    assert visible("x" * 300, limit=20) == "x" * 19 + "…"
    assert visible("x" * 20, limit=20) == "x" * 20


def test_phrases_keep_their_spaces() -> None:
    assert visible("Eiffel Tower", space=" ") == "Eiffel Tower"


@given(st.text())
def test_nothing_shown_is_invisible(text: str) -> None:
    assert visible(text).isprintable()
    assert 1 <= len(visible(text, limit=30)) <= 30
