"""Commands that look at models and runs, each with its twin in JSON."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from assay.models.model import Model
from assay.runs.result import Result
from cli.terminal import PROMPT, Outcome

Assay = Callable[..., Outcome]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder with two finished runs that differ in one setting; read only."""
    from assay.cli import main

    out = tmp_path_factory.mktemp("kept") / "runs"
    for top_k in ("3", "4"):
        assert main(["lens", str(folder), PROMPT, "--out", str(out), "--top-k", top_k, "--quiet"]) == 0
    return out


@pytest.fixture
def two_runs(kept: Path, tmp_path: Path) -> list[Path]:
    """A copy of the two runs, that with the smaller setting first."""
    copy = Path(shutil.copytree(kept, tmp_path / "runs"))
    return sorted(copy.iterdir(), key=lambda run: Result.load(run).manifest["settings"]["top_k"])


def test_a_healthy_model_is_found_healthy(assay: Assay, folder: Path) -> None:
    said, document = assay("doctor", folder), assay("doctor", folder, "--json").document
    assert said.code == 0
    assert [line[:6] for line in said.lines[:9]] == [f"✓ D{number}" for number in range(101, 110)]
    assert any(line.startswith("sites   embed resid_pre") for line in said.lines)
    assert {check["verdict"] for check in document["checks"]} == {"pass"}
    assert document["figures"]["layers"] == 3
    assert document["sites"]["pattern"] == 3


def test_a_model_with_something_off_is_told_and_ends_with_1(
    assay: Assay, make_tiny_llama: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_tiny_llama()
    with torch.no_grad():
        model.module.lm_head.weight.mul_(1e38)  # finite weights, infinite logits
    model.module.save_pretrained(tmp_path)
    outcome = assay("doctor", tmp_path, "--quiet")
    assert outcome.code == 1
    assert outcome.lines[0].startswith("✗ D101 not finite: ")
    assert len(outcome.lines) == 2  # the verdict and its remedy
    assert assay("doctor", tmp_path, "--json").code == 1


def test_runs_are_listed_the_latest_first(assay: Assay, two_runs: list[Path]) -> None:
    out = two_runs[0].parent
    said, document = assay("runs", out), assay("runs", out, "--json").document
    assert said.lines[0].split() == ["started", "status", "units", "measurement", "model", "run"]
    assert {Path(line.split()[-1]) for line in said.lines[1:]} == set(two_runs)
    assert {run["path"] for run in document} == set(map(str, two_runs))
    assert {(run["measurement"], run["status"]) for run in document} == {("logit_lens", "finished")}


def test_a_folder_without_runs_is_no_mistake(assay: Assay, tmp_path: Path) -> None:
    assert assay("runs", tmp_path).out == f"No runs below {tmp_path}.\n"
    assert assay("runs", tmp_path, "--json").document == []


def test_a_comparison_tells_numbers_and_settings(assay: Assay, two_runs: list[Path]) -> None:
    said, document = assay("compare", *two_runs), assay("compare", *two_runs, "--json").document
    assert said.code == 0
    assert document["settings"] == {"top_k": [3, 4]}
    entropy = next(line for line in document["summary"] if line["variable"] == "entropy")
    assert (entropy["equal"], entropy["largest"]) == (entropy["cells"], 0)
    assert any(
        line.split()[:3] == ["entropy", str(entropy["cells"]), str(entropy["equal"])] for line in said.lines
    )
    assert any(line.split() == ["top_k", "3", "4"] for line in said.lines)
    assert set(document["differences"]["variables"]) >= {"entropy", "kl_to_final"}


def test_a_rerun_is_the_same_to_the_last_bit(assay: Assay, two_runs: list[Path], tmp_path: Path) -> None:
    said = assay("rerun", two_runs[0])
    document = assay("rerun", two_runs[0], "--out", tmp_path / "other", "--json").document
    assert said.code == 0
    assert said.lines[0] == "The same to the last bit."
    assert Path(said.lines[-1]).parent.parent == two_runs[0].parent
    assert document["identical"] is True
    assert document["differing"] == []
    assert Path(document["run"]).parent == tmp_path / "other"


def test_a_rerun_that_differs_says_where_and_ends_with_1(
    assay: Assay, two_runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.runs.rerun._same", lambda old, new, name: name != "entropy")
    outcome = assay("rerun", two_runs[0])
    assert outcome.code == 1
    assert outcome.lines[0] == "Differing: entropy"


def test_a_report_of_one_run_lies_in_it(assay: Assay, two_runs: list[Path]) -> None:
    page = two_runs[0] / "report.html"
    page.unlink()
    assert assay("report", two_runs[0]).lines == [str(page)]
    assert page.is_file()


def test_a_report_of_several_runs_is_one_page(assay: Assay, two_runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    document = assay("report", *two_runs, "--out", page, "--json").document
    assert document == {"files": [str(page)]}
    assert page.read_text().count("<h2") >= 2


@pytest.mark.parametrize(
    ("kind", "begins"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG"), ("csv", b"")]
)
def test_figures_are_written_as_files(
    kind: str, begins: bytes, assay: Assay, two_runs: list[Path], tmp_path: Path
) -> None:
    document = assay(
        "report", two_runs[0], "--format", kind, "--out", tmp_path / "figures", "--json"
    ).document
    files = [Path(file) for file in document["files"]]
    assert files
    assert all(file.parent == tmp_path / "figures" and file.suffix == f".{kind}" for file in files)
    assert all(file.read_bytes().startswith(begins) and file.stat().st_size for file in files)


def test_figures_of_several_runs_do_not_overwrite_each_other(
    assay: Assay, two_runs: list[Path], tmp_path: Path
) -> None:
    document = assay("report", *two_runs, "--format", "csv", "--out", tmp_path / "all", "--json").document
    assert {Path(file).parent for file in document["files"]} == {
        tmp_path / "all" / run.name for run in two_runs
    }
    beside = assay("report", *two_runs, "--format", "csv", "--json").document
    assert {Path(file).parent for file in beside["files"]} == {run / "figures" for run in two_runs}


def test_one_name_for_a_page_and_a_folder_is_refused(
    assay: Assay, two_runs: list[Path], tmp_path: Path
) -> None:
    outcome = assay("report", two_runs[0], "--format", "html", "csv", "--out", tmp_path / "x")
    assert outcome.code == 2
    assert "both a page and a folder" in outcome.err
    assert not (tmp_path / "x").exists()


def test_a_truncated_result_is_refused_and_mended_by_its_command(
    assay: Assay, two_runs: list[Path], folder: Path
) -> None:
    numbers = two_runs[0] / "result.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:-1])
    outcome = assay("report", two_runs[0])
    assert outcome.code == 2
    assert "Issue the command that made it again" in outcome.err
    again = assay("lens", folder, PROMPT, "--out", two_runs[0].parent, "--top-k", "3", "--quiet")
    assert Path(again.lines[-1]).parent == two_runs[0]
    assert assay("report", two_runs[0]).code == 0
