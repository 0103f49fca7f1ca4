"""Comparing, repeating, listing and forecasting runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from torch import nn

from assay.errors import BadInput
from assay.runs.compare import compare
from assay.runs.forecast import forecast
from assay.runs.listing import list_runs
from assay.runs.perform import perform
from assay.runs.rerun import rerun
from assay.runs.result import Result
from runs.toy import Toy, ToyModel


def test_differences_are_paired_by_label():
    a = perform(Toy(units=4), ToyModel())
    b = perform(Toy(units=6, seed=0, scale=2.0), ToyModel())
    found = compare(a, b, level=0.9)
    difference = found.differences["x"]
    assert difference.sizes["step"] == 4
    expected = b.dataset["x"].to_numpy()[:4].astype(float) - a.dataset["x"].to_numpy().astype(float)
    assert np.array_equal(difference.to_numpy(), expected)
    # stderr 0.5 on both sides; normal quantile of 0.95
    assert found.differences["x_stderr"].to_numpy() == pytest.approx(np.sqrt(0.5), rel=1e-12)
    reach = (found.differences["x_high"] - difference).to_numpy()
    assert reach == pytest.approx(1.6448536269514722 * np.sqrt(0.5), rel=1e-9)
    assert found.settings == {"units": (4, 6), "scale": (1.0, 2.0)}
    assert found.versions == {}
    assert found.skipped == {}
    assert list(found.table()["variable"].unique()) == ["x", "total"]


def test_the_summary_counts_cells_apart():
    a = perform(Toy(), ToyModel())
    b = replace(
        a, dataset=a.dataset.assign(x=a.dataset["x"] + xr.DataArray([0.0, 0.1, 9.0, -9.0], dims="step"))
    )
    lines = compare(a, b).summary().set_index("variable")
    assert lines.loc["x", ["cells", "equal", "apart"]].to_list() == [12, 3, 6]
    assert lines.loc["x", "largest"] == pytest.approx(9, rel=1e-6)
    assert lines.loc["x", "mean"] == pytest.approx(0.025, rel=1e-4)  # of float32 numbers near 9
    assert lines.loc["total", "equal"] == 1
    assert np.isnan(lines.loc["total", "apart"])


def test_versions_and_weights_that_differ_are_told():
    a, b = perform(Toy(), ToyModel()), perform(Toy(), ToyModel(weight=2.0))
    b.manifest["attempts"][-1]["environment"]["versions"]["torch"] = "1.0"
    hashes = a.manifest["model"]["weight_hash"], b.manifest["model"]["weight_hash"]
    torch_versions = a.manifest["attempts"][-1]["environment"]["versions"]["torch"], "1.0"
    assert compare(a, b).versions == {"torch": torch_versions, "model weight_hash": hashes}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.assign(x=d["x"].T), "dimensions"),
        (lambda d: d.isel(place=slice(2)), "'place', which has no labels"),
        (lambda d: d.assign_coords(place=[1, 2, 3]), "only one result labels 'place'"),
        (lambda d: d.assign_coords(step=d["step"] + 100), "no label of 'step' in common"),
        (lambda d: d.assign(x=(("step", "place"), np.full((4, 3), "t", dtype=object))), "text in the other"),
    ],
)
def test_what_cannot_be_paired_is_skipped_with_the_reason(change: Callable[[Any], Any], reason: str):
    a = perform(Toy(), ToyModel())
    found = compare(a, replace(a, dataset=change(a.dataset)))
    assert reason in found.skipped["x"]
    assert list(found.differences.data_vars) == ["total"]


def test_a_rerun_is_identical_and_lies_beside_the_run(tmp_path: Path):
    first = perform(Toy(), ToyModel(), out=tmp_path)
    before = (first.path / "run.json").read_bytes()
    again = rerun(first.path, model=ToyModel())
    assert (again.identical, again.differing) == (True, ())
    assert again.result.path == tmp_path / f"{first.path.name}-rerun-1"
    assert rerun(first.path, model=ToyModel(), out=tmp_path / "b").result.path.parent == tmp_path / "b"
    assert rerun(first.path, model=ToyModel()).result.path.name.endswith("-rerun-2")
    assert (first.path / "run.json").read_bytes() == before


def test_a_rerun_that_differs_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = perform(Toy(), ToyModel(), out=tmp_path)
    combine = Toy.combine

    def nudged(self: Toy, model: Any, pieces: Any) -> xr.Dataset:
        dataset = combine(self, model, pieces)
        return dataset.assign(x=np.nextafter(dataset["x"], np.float32(9)), total=dataset["total"])

    monkeypatch.setattr(Toy, "combine", nudged)
    again = rerun(first.path, model=ToyModel())
    assert (again.identical, again.differing) == (False, ("x",))


def test_a_rerun_needs_the_same_weights(tmp_path: Path):
    first = perform(Toy(), ToyModel(), out=tmp_path)
    with pytest.raises(BadInput, match="needs the same weights"):
        rerun(first.path, model=ToyModel(weight=2.0))
    with pytest.raises(BadInput, match="measured a model of architecture_hash"):
        rerun(first.path, model=ToyModel(module=nn.Tanh()))
    assert list(tmp_path.iterdir()) == [first.path]


def test_a_rerun_of_more_than_a_model_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = perform(Toy(), ToyModel(), out=tmp_path)
    with pytest.raises(
        BadInput, match=r"the model is a Linear: pass model=assay.load\(source\) or assay.wrap"
    ):
        rerun(plain.path, model=nn.Linear(2, 2))
    monkeypatch.setattr(Toy, "made_by", "somewhere.toy(module)")
    with pytest.raises(
        BadInput, match=r"measured what no record holds: pass model=somewhere.toy\(module\).$"
    ):
        rerun(plain.path)
    with pytest.raises(BadInput, match=r"the model is a Linear: pass model=somewhere.toy\(module\)"):
        rerun(plain.path, model=nn.Linear(2, 2))
    said = perform(Toy(seed=5), ToyModel(), out=tmp_path, origin={"subject": "toy.py:make"})
    assert said.manifest["origin"] == {"subject": "toy.py:make"}
    with pytest.raises(BadInput, match="`assay rerun` makes it again"):
        rerun(said.path)
    again = rerun(said.path, model=ToyModel())
    assert again.result.manifest["origin"] == said.manifest["origin"]
    assert (
        perform(Toy(seed=5), ToyModel(), out=tmp_path).path == said.path
    )  # which says where from, and not what


def test_a_list_of_runs(tmp_path: Path):
    finished = perform(Toy(), ToyModel(), out=tmp_path)
    with pytest.raises(ArithmeticError):
        perform(Toy(broken="unit-02"), ToyModel(source="elsewhere"), out=tmp_path / "deeper")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    runs = {run.status: run for run in list_runs(tmp_path)}
    assert set(runs) == {"finished", "failed", "unreadable"}
    assert (runs["finished"].path, runs["finished"].units_done) == (finished.path, 4)
    assert (runs["failed"].source, runs["failed"].units_done, runs["failed"].units) == ("elsewhere", 2, 4)
    assert runs["failed"].measurement == "toy"


def test_runs_are_listed_latest_first(tmp_path: Path):
    for scale, started in ((1.0, "2026-01-01"), (2.0, "2026-03-01"), (3.0, "2026-02-01")):
        path = perform(Toy(scale=scale), ToyModel(), out=tmp_path).path
        record = json.loads((path / "run.json").read_bytes())
        (path / "run.json").write_text(json.dumps({**record, "started": started}))
    assert [run.started for run in list_runs(tmp_path)] == ["2026-03-01", "2026-02-01", "2026-01-01"]


def test_a_list_needs_a_folder(tmp_path: Path):
    assert list_runs(tmp_path) == []
    with pytest.raises(BadInput, match="not a folder"):
        list_runs(tmp_path / "none")


def test_a_forecast_measures_only_the_unit_of_middle_cost(tmp_path: Path):
    journal = tmp_path / "journal"
    expected = forecast(Toy(units=3, sleep=0.05, journal=str(journal)), ToyModel())
    assert journal.read_text().split() == ["unit-01"]
    assert (expected.units, expected.cost, expected.memory) == (3, 6.0, None)
    # three times the 0.05 s of a unit of cost 2, at the least; a busy machine may sleep longer
    assert 0.15 <= expected.seconds < 1.5


def test_a_forecast_from_a_known_rate_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Toy, "memory", lambda self, model: 1024)
    journal = tmp_path / "journal"
    expected = forecast(Toy(units=3, journal=str(journal)), ToyModel(), seconds_per_cost=2.0)
    assert not journal.exists()
    assert (expected.seconds, expected.memory) == (12.0, 1024)


def test_a_loaded_result_compares_like_the_one_in_memory(tmp_path: Path):
    result = perform(Toy(), ToyModel(), out=tmp_path)
    lines = compare(result, Result.load(result.path)).summary()
    assert (lines["cells"] == lines["equal"]).all()


def test_no_number_is_equal_to_no_number():
    a = perform(Toy(), ToyModel())
    x = a.dataset["x"].astype(float)
    place = xr.DataArray(np.arange(x.size).reshape(x.shape), dims=x.dims)
    a = replace(a, dataset=a.dataset.assign(x=x.where(place > 1)))
    b = replace(a, dataset=a.dataset.assign(x=x.where(place > 2)))
    difference = compare(a, b).differences["x"].to_numpy().ravel()
    assert difference[:2].tolist() == [0.0, 0.0]
    assert np.isnan(difference[2])
    assert not np.isnan(difference[3:]).any()
