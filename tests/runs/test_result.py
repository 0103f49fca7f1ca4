"""Results: the table, the two files, hostile text, damage, and how a result shows itself."""

import dataclasses
import html
import json
import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.runs.dataset_files import decode, encode
from assay.runs.perform import perform
from assay.runs.result import Result
from runs.toy import Toy, ToyModel

HOSTILE = [
    "</script><script>alert(1)</script>",
    "a\x00",
    "\u202egnp.exe",
    "\ud800",
    '"\\\n',
    "",
    "é🙂",
    "nan",
]


def test_the_table_has_one_row_per_number_with_its_interval():
    dataset = xr.Dataset(
        {
            "p": (("layer", "token"), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
            "p_stderr": (("layer", "token"), np.full((2, 3), 0.01)),
            "p_low": (("layer", "token"), np.full((2, 3), 0.05)),
            "p_high": (("layer", "token"), np.full((2, 3), 0.7)),
            "kl_low": ("layer", [7.0, 8.0]),  # no variable "kl": a number of its own
            "word": (("token", "layer"), np.array([["a", "b"]] * 3, dtype=object)),
            "total": ((), 9),
        },
        coords={"layer": [3, 4], "text": ("token", ["x", "y", "z"]), "model": "m"},
    )
    table = Result(dataset, [], {}, Toy()).table()
    assert list(table.columns) == [
        "variable",
        "layer",
        "token",
        "text_label",
        "value",
        "stderr",
        "low",
        "high",
        "text",
    ]
    assert table["variable"].value_counts().to_dict() == {"p": 6, "word": 6, "kl_low": 2, "total": 1}
    row = table[(table["variable"] == "p") & (table["layer"] == 4) & (table["token"] == 1)].iloc[0]
    assert row[["text_label", "value", "stderr", "low", "high"]].to_list() == ["y", 0.5, 0.01, 0.05, 0.7]
    assert table["layer"].dtype == pd.Int64Dtype()
    assert table[table["variable"] == "total"].iloc[0]["value"] == 9


def test_text_variables_have_a_column_of_their_own():
    table = perform(Toy(words=("a", "b", "c")), ToyModel()).table()
    words = table[table["variable"] == "word"]
    assert words["text"].to_list() == ["a", "b", "c"]
    assert words["value"].isna().all()


def test_a_dataset_without_variables_gives_an_empty_table():
    assert Result(xr.Dataset(), [], {}, Toy()).table().empty


def round_trip(dataset: xr.Dataset) -> xr.Dataset:
    return decode(*encode(dataset, {}))[0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_numbers_come_back_in_their_type(dtype: str):
    values = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    dataset = xr.Dataset({"x": (("a", "b"), values.T.copy().T), "scalar": ((), values[0, 1])})
    back = round_trip(dataset)
    assert back.identical(dataset)
    assert back["x"].dtype == back["scalar"].dtype == values.dtype


@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=6, max_size=6))
def test_any_text_comes_back(words: list[str]):
    values = np.empty(6, dtype=object)
    values[:] = words
    dataset = xr.Dataset({"word": (("a", "b"), values.reshape(2, 3))}, coords={"label": ("c", values)})
    assert round_trip(dataset).identical(dataset)


def test_hostile_text_comes_back_and_the_file_is_plain_ascii():
    dataset = xr.Dataset({"word": ("x", np.array(HOSTILE, dtype=object))}, attrs={"answer": HOSTILE[0]})
    _, description = encode(dataset, {})
    assert description.isascii()
    assert round_trip(dataset)["word"].to_numpy().tolist() == HOSTILE
    assert round_trip(dataset).attrs == dataset.attrs


def test_attributes_become_plain():
    dataset = xr.Dataset(
        attrs={"n": np.int64(3), "t": (1, 2), "a": np.arange(2), "none": None, "f": float("inf")}
    )
    assert round_trip(dataset).attrs == {"n": 3, "t": [1, 2], "a": [0, 1], "none": None, "f": "inf"}
    with pytest.raises(TypeError, match="object"):
        encode(xr.Dataset(attrs={"bad": object()}), {})


def test_other_types_are_refused_by_name():
    with pytest.raises(TypeError, match="'when'"):
        encode(xr.Dataset({"when": ("t", np.array(["2020-01-01"], dtype="datetime64[ns]"))}), {})


def test_the_files_can_be_read_without_assay(tmp_path: Path):
    """Follow docs/runs.md by hand: eight bytes of length, a JSON header, then the numbers."""
    result = perform(Toy(), ToyModel(), out=tmp_path)
    content = (result.path / "result.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    begin, end = header["x"]["data_offsets"]
    values = np.frombuffer(content[8 + length :][begin:end], "<f4").reshape(header["x"]["shape"])
    description = json.loads((result.path / "result.json").read_text())
    assert np.array_equal(values, result.dataset["x"].to_numpy())
    assert description["variables"]["x"]["dims"] == ["step", "place"]
    assert description["variables"]["word"]["text"] == ["a", "b", "c"]
    assert description["checks"][2]["code"] == "T001"


def test_save_and_load(tmp_path: Path):
    result = perform(Toy(words=tuple(HOSTILE[1:3])), ToyModel())
    path = result.save(tmp_path / "a" / "b")
    loaded = Result.load(path)
    assert loaded.dataset.identical(result.dataset)
    assert loaded.measurement == result.measurement
    assert (loaded.checks, loaded.manifest, loaded.path) == (result.checks, result.manifest, path)
    with pytest.raises(BadInput, match="not an empty folder"):
        result.save(path)


def test_what_is_not_a_run_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path, "no run.json"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / "x", "not exist"),
    ]:
        with pytest.raises(BadInput, match=message):
            Result.load(path)


def changed(key: str, value: Any) -> Any:
    return lambda content: json.dumps({**json.loads(content), key: value}).encode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("run.json", lambda content: content[:50], "damaged"),
        ("run.json", lambda _: b"[]", "damaged"),
        ("run.json", lambda _: b"\xff\xfe", "damaged"),
        ("run.json", changed("units", "many"), "units"),
        ("run.json", changed("schema_version", 2), "upgrade"),
        ("run.json", changed("measurement", "../evil"), "no measurement"),
        ("run.json", changed("settings", {"evil": 1}), "no setting 'evil'"),
        ("result.json", lambda content: content[:-5], "damaged or truncated"),
        ("result.json", lambda _: b"{}", "describes no result"),
        ("result.json", changed("schema_version", 2), "upgrade"),
        ("result.json", changed("variables", {"x": {}}), "do not make a data set"),
        ("result.json", changed("checks", [{"code": 1}]), "cannot be read"),
        ("result.safetensors", lambda content: content[:-1], "truncated or replaced"),
        ("result.safetensors", lambda _: b"", "truncated or replaced"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, change: Any, message: str):
    path = perform(Toy(), ToyModel(), out=tmp_path).path
    (path / name).write_bytes(change((path / name).read_bytes()))
    with pytest.raises(BadInput, match=message):
        Result.load(path)


@pytest.mark.parametrize("name", ["result.json", "result.safetensors"])
def test_a_missing_result_is_refused(tmp_path: Path, name: str):
    path = perform(Toy(), ToyModel(), out=tmp_path).path
    (path / name).unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        Result.load(path)


CHECKS = [
    Check("A001", "fine", "pass", None, "All well."),
    Check("A102", "<b>", "fail", 3.0, HOSTILE[0], "Do <i>this</i>."),
    Check("A103", "near", "warn", 2.0, "Nearly."),
]


def test_without_a_chart_it_shows_the_checks_and_then_the_table():
    result = Result(xr.Dataset({"word": ("x", np.array(HOSTILE[:1], dtype=object))}), CHECKS, {}, Toy())
    shown = result._repr_html_()
    places = [shown.index(code) for code in ("A102", "A103", "A001", "<table")]
    assert places == sorted(places)
    assert "<script>" not in shown
    assert html.escape("Do <i>this</i>.") in shown
    with pytest.raises(LookupError, match="toy has no chart"):
        result.chart()


def test_as_text_it_says_first_what_is_amiss() -> None:
    result = perform(Toy(), ToyModel())
    wrong = Check("T009", "something is off", "fail", 3.0, "It is 3.", "Make it 2.")
    right = [check for check in result.checks if check.verdict == "pass"]
    lines = repr(dataclasses.replace(result, checks=[*right, wrong])).splitlines()
    assert lines[0] == f"toy: {len(right)} of {len(right) + 1} checks passed"
    assert lines[1] == "FAIL T009 something is off: It is 3."
    assert all(name in lines[-1] for name in map(str, result.dataset.data_vars))
    assert len(repr(result)) < 1000


def test_with_a_chart_it_shows_the_checks_and_then_the_picture(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("assay.report.charts.toy")

    def chart(dataset: xr.Dataset, color: str = "black") -> alt.Chart:
        frame = pd.DataFrame({"x": dataset["x"].to_numpy()[0]})
        return alt.Chart(frame).mark_point(color=color).encode(x="x")

    module.chart = chart  # type: ignore[attr-defined]
    module.__spec__ = ModuleSpec("assay.report.charts.toy", None)
    monkeypatch.setitem(sys.modules, "assay.report.charts.toy", module)
    result = perform(Toy(), ToyModel())
    assert result.chart(color="red").to_dict()["mark"]["color"] == "red"
    shown = result._repr_html_()
    assert shown.index("T001") < shown.index("<svg")
    assert "<table" not in shown
