"""Performing: in memory and in a folder, progress, resume, damage, and what is refused."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from assay.errors import BadInput
from assay.models.identity import architecture
from assay.runs import files
from assay.runs.files import locked
from assay.runs.perform import perform
from assay.runs.progress import Progress
from assay.runs.result import Result
from runs.toy import Toy, ToyModel


def lines(journal: Path) -> list[str]:
    return journal.read_text().split() if journal.exists() else []


def result_bytes(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in ("result.safetensors", "result.json")}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse files above a size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_memory_and_folder_give_the_same_bytes(tmp_path: Path):
    in_memory = perform(Toy(), ToyModel())
    in_folder = perform(Toy(), ToyModel(), out=tmp_path)
    assert in_memory.path is None
    saved = in_memory.save(tmp_path / "saved")
    assert result_bytes(saved) == result_bytes(in_folder.path)
    assert in_memory.dataset.identical(in_folder.dataset)


def test_the_folder_is_named_by_measurement_settings_and_weights(tmp_path: Path):
    runs = [
        perform(Toy(), ToyModel(), out=tmp_path),
        perform(Toy(scale=2.0), ToyModel(), out=tmp_path),
        perform(Toy(), ToyModel(weight=2.0), out=tmp_path),
        perform(Toy(), ToyModel(source="elsewhere"), out=tmp_path),
        perform(replace(Toy(), scale=1), ToyModel(), out=tmp_path),
        perform(Toy(), ToyModel(module=nn.Tanh()), out=tmp_path),
    ]
    first, scaled, other_weights, same_weights, same_number, other_module = [run.path for run in runs]
    assert first.parent == tmp_path
    assert first.name.startswith("toy-")
    assert len(first.name) == len("toy-") + 12
    assert len({first, scaled, other_weights, other_module}) == 4
    assert first == same_weights == same_number


def test_a_higher_revision_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = perform(Toy(), ToyModel(), out=tmp_path).path
    monkeypatch.setattr(Toy, "revision", 2)
    assert perform(Toy(), ToyModel(), out=tmp_path).path != first


def test_other_data_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = perform(Toy(), ToyModel(), out=tmp_path).path
    monkeypatch.setattr(Toy, "data_hash", lambda self: "other data")
    second = perform(Toy(), ToyModel(), out=tmp_path)
    assert second.path != first
    assert second.manifest["data_hash"] == "other data"


def test_a_finished_run_is_read_not_repeated(tmp_path: Path):
    toy = Toy(journal=str(tmp_path / "journal"))
    first = perform(toy, ToyModel(), out=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = perform(toy, ToyModel(), out=tmp_path)
    assert len(lines(tmp_path / "journal")) == 4
    assert second.dataset.identical(first.dataset)
    assert second.checks == first.checks
    assert second.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before


def test_finished_units_are_not_measured_again(tmp_path: Path):
    journal = tmp_path / "journal"
    toy = Toy(units=5, journal=str(journal))
    undisturbed = perform(toy, ToyModel(), out=tmp_path / "a")
    journal.unlink()

    def stop_after_three(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(toy, ToyModel(), out=tmp_path / "b", progress=stop_after_three)
    path = tmp_path / "b" / undisturbed.path.name
    record = json.loads((path / "run.json").read_bytes())
    assert (record["status"], record["error"]) == ("interrupted", None)
    assert len(list((path / "units").iterdir())) == 3

    seen: list[Progress] = []
    resumed = perform(toy, ToyModel(), out=tmp_path / "b", progress=seen.append)
    assert lines(journal) == [f"unit-{index:02d}" for index in range(5)]
    assert [progress.done for progress in seen] == [3, 4, 5]
    assert result_bytes(resumed.path) == result_bytes(undisturbed.path)
    assert len(resumed.manifest["attempts"]) == 2
    assert resumed.manifest["started"] == record["started"]
    assert resumed.manifest["status"] == "finished"


def test_a_unit_that_fails_leaves_a_failed_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    toy = Toy(broken="unit-02", journal=str(tmp_path / "journal"))
    with pytest.raises(ArithmeticError, match="no such number"):
        perform(toy, ToyModel(), out=tmp_path)
    (path,) = tmp_path.glob("toy-*")
    record = json.loads((path / "run.json").read_bytes())
    assert (record["status"], record["error"]) == ("failed", "ArithmeticError: no such number")
    measure = Toy.measure
    monkeypatch.setattr(
        Toy,
        "measure",
        lambda self, model, unit, shared: measure(replace(self, broken=None), model, unit, shared),
    )
    assert perform(toy, ToyModel(), out=tmp_path).manifest["status"] == "finished"
    assert lines(tmp_path / "journal") == ["unit-00", "unit-01", "unit-02", "unit-02", "unit-03"]


def without_result(path: Path) -> None:
    """Put a run folder back to the moment before its result was written."""
    (path / "result.json").unlink()
    record = json.loads((path / "run.json").read_bytes())
    (path / "run.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "header", "other run", "other detail"])
def test_a_damaged_unit_file_is_measured_again(tmp_path: Path, damage: str):
    journal = tmp_path / "journal"
    toy = Toy(journal=str(journal))
    run = perform(toy, ToyModel(), out=tmp_path)
    expected = result_bytes(run.path)
    journal.unlink()
    without_result(run.path)
    file = run.path / "units" / "unit-01.safetensors"
    whole = file.read_bytes()
    broken = {
        "truncated": whole[:-3],
        "empty": b"",
        "garbage": b"\xff" * 64,
        "header": whole[:20],
        "other run": whole.replace(run.manifest["id"].encode(), b"toy-" + b"0" * 12),
        "other detail": whole.replace(b'{\\"index\\": 1}', b'{\\"index\\": 7}'),
    }[damage]
    assert broken != whole
    file.write_bytes(broken)
    assert result_bytes(perform(toy, ToyModel(), out=tmp_path).path) == expected
    assert lines(journal) == ["unit-01"]


@pytest.mark.parametrize("name", ["result.safetensors", "result.json"])
def test_a_truncated_result_is_put_together_again_from_the_units(tmp_path: Path, name: str):
    journal = tmp_path / "journal"
    toy = Toy(journal=str(journal))
    run = perform(toy, ToyModel(), out=tmp_path)
    expected = result_bytes(run.path)
    (run.path / name).write_bytes(expected[name][:-10])
    with pytest.raises(BadInput, match="cannot be read"):
        Result.load(run.path)
    assert result_bytes(perform(toy, ToyModel(), out=tmp_path).path) == expected
    assert len(lines(journal)) == 4


def test_half_written_files_of_a_killed_process_are_cleared_away(tmp_path: Path):
    run = perform(Toy(), ToyModel(), out=tmp_path)
    without_result(run.path)
    leftovers = [run.path / ".run.json.1.tmp", run.path / "units" / ".unit-01.safetensors.1.tmp"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    perform(Toy(), ToyModel(), out=tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)


def test_progress_counts_units_cost_and_time():
    seen: list[Progress] = []
    perform(Toy(units=3, sleep=0.02), ToyModel(), progress=seen.append)
    assert [(p.done, p.total, p.cost_done, p.cost_total, p.unit) for p in seen] == [
        (0, 3, 0.0, 6.0, ""),
        (1, 3, 1.0, 6.0, "unit-00"),
        (2, 3, 3.0, 6.0, "unit-01"),
        (3, 3, 6.0, 6.0, "unit-02"),
    ]
    assert seen[0].eta is None
    assert seen[2].eta == pytest.approx(seen[2].elapsed, rel=1e-9)  # 3 of 6 done: as long again
    assert seen[3].eta == 0
    assert seen[3].elapsed >= 0.06


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path):
    run = perform(Toy(), ToyModel(), out=tmp_path)
    without_result(run.path)
    with locked(run.path), pytest.raises(BadInput, match=f"in use by process {os.getpid()} on"):
        perform(Toy(), ToyModel(), out=tmp_path)
    perform(Toy(), ToyModel(), out=tmp_path)


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "measure", lambda *_: {"large": torch.zeros(10_000)})
        with largest_file(20_000), pytest.raises(BadInput, match=r"unit-00\.safetensors: File too large"):
            perform(Toy(), ToyModel(), out=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert perform(Toy(), ToyModel(), out=tmp_path).manifest["status"] == "finished"


def test_a_disk_that_fills_up_during_the_record_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(BadInput, match="No space left on device"):
        perform(Toy(), ToyModel(), out=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(BadInput, match="cannot use .*file/toy-"):
        perform(Toy(), ToyModel(), out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_wrong_settings_write_nothing(tmp_path: Path):
    with pytest.raises(BadInput, match="'units'"):
        perform(replace(Toy(), units="x"), ToyModel(), out=tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_plan_names_every_unit_once(monkeypatch: pytest.MonkeyPatch):
    plan = Toy.plan
    monkeypatch.setattr(Toy, "plan", lambda self, model: [*plan(self, model), *plan(self, model)])
    with pytest.raises(ValueError, match="8 units with 4 names"):
        perform(Toy(), ToyModel())


def test_numbers_that_are_not_finite_are_reported(tmp_path: Path):
    result = perform(Toy(), ToyModel(weight=float("nan")), out=tmp_path)
    found = {check.code: check.verdict for check in result.checks}
    assert found == {"A001": "fail", "A002": "pass", "T001": "warn"}
    # a check's figure may be NaN as well, and JSON has no NaN
    assert str(Result.load(result.path).checks) == str(result.checks)


def test_an_attempt_in_another_environment_is_reported(tmp_path: Path):
    toy = Toy(units=2)
    run = perform(toy, ToyModel(), out=tmp_path)
    without_result(run.path)
    record = json.loads((run.path / "run.json").read_bytes())
    record["attempts"][0]["environment"]["versions"]["torch"] = "1.0"
    (run.path / "run.json").write_text(json.dumps(record))
    (check,) = (check for check in perform(toy, ToyModel(), out=tmp_path).checks if check.code == "A002")
    assert (check.verdict, check.figure) == ("warn", 2.0)


def test_the_record_says_how_the_numbers_came_about(tmp_path: Path):
    record = perform(Toy(seed=7), ToyModel(), out=tmp_path).manifest
    assert record == json.loads((tmp_path / record["id"] / "run.json").read_bytes())
    assert record["schema_version"] == 1
    assert record["settings"]["words"] == ["a", "b", "c"]
    assert record["seeds"] == {"seed": 7}
    assert record["model"] == {
        "source": "toy",
        "weight_hash": ToyModel().weight_hash(),
        "architecture_hash": architecture(nn.Identity()),
        "device": "cpu",
        "dtype": "float32",
    }
    assert record["units"][2] == {"name": "unit-02", "detail": {"index": 2}, "cost": 3.0}
    environment = record["attempts"][0]["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert record["started"] <= record["finished"]


def test_pieces_may_be_views_of_one_tensor(tmp_path: Path):
    run = perform(Toy(), ToyModel(), out=tmp_path)
    with safe_open(run.path / "units" / "unit-00.safetensors", "pt") as file:
        assert file.get_tensor("sums").shape == (3,)


def test_a_mistyped_setting_is_named_with_the_one_meant():
    with pytest.raises(BadInput, match="no setting 'scales'. Did you mean 'scale'"):
        perform(Toy(), ToyModel(), scales=2.0)
    with pytest.raises(BadInput, match="no setting 'temperature'. It has: units, .*executor"):
        perform(Toy(), ToyModel(), temperature=1.0)
