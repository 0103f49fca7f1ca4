"""What is written: for people, for programs, and nothing that a terminal would obey."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from assay.cli.output import amount, check_lines, columns, dataset_document, duration, jsonable, printable
from assay.estimates.checks import Check


def test_json_holds_dataclasses_paths_and_numbers_that_are_none() -> None:
    check = Check("A001", "not finite", "pass", float("nan"), "fine")
    written = jsonable({"check": check, "path": Path("a/b"), 3: (1, True, -np.inf), "x": np.float64(0.5)})
    assert written["check"] == {**dataclasses.asdict(check), "figure": None}
    assert json.loads(json.dumps(written))["path"] == "a/b"
    assert written["3"] == [1, True, None]
    assert written["x"] == 0.5


def test_a_dataset_keeps_dims_and_words() -> None:
    dataset = xr.Dataset({"p": ("token", [0.5, np.nan])}, {"token": ["a", "</script>"]}, {"model": "tiny"})
    assert jsonable(dataset_document(dataset)) == {
        "sizes": {"token": 2},
        "coords": {"token": {"dims": ["token"], "data": ["a", "</script>"]}},
        "variables": {"p": {"dims": ["token"], "data": [0.5, None]}},
        "attrs": {"model": "tiny"},
    }


def test_checks_that_fail_come_first_and_say_what_to_do() -> None:
    passed = Check("B001", "bad", "pass", 0.0, "It is fine.")
    warned = Check("B002", "so so", "warn", 1.0, "It is so so.", "Mind it.")
    failed = Check("B003", "awful", "fail", 2.0, "It is \x1b[31mawful.", "Mend it.")
    assert check_lines([passed, warned, failed]) == [
        "✗ B003 awful: It is \\x1b[31mawful.",
        "       Mend it.",
        "! B002 so so: It is so so.",
        "       Mind it.",
        "✓ B001 It is fine.",
    ]


def test_verdicts_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    (line, _) = check_lines([Check("B003", "awful", "fail", 2.0, "It is awful.", "Mend it.")])
    assert line.startswith("\x1b[31m✗\x1b[0m B003")


def test_columns_line_up() -> None:
    assert columns([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]
    assert columns([]) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 東京\n", "café 東京\n"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("\t", "\\t"),
    ],
)
def test_what_could_act_on_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.1234, "0.12 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 01 min"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1000, "1000 B"), (1536, "1.5 KiB"), (513 * 2**20, "513 MiB"), (3 * 2**31, "6 GiB")],
)
def test_amounts(number: float, text: str) -> None:
    assert amount(number) == text
