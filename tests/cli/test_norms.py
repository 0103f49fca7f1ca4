"""`assay norms`: the report of a model as it is, and of one whose norms are switched off."""

import json
from collections.abc import Callable
from pathlib import Path

import assay as library
from assay.models.model import Model
from assay.runs.result import Result
from cli.terminal import PROMPT, Outcome


def test_norms_reports_what_is_exact(assay: Callable[..., Outcome], folder: Path, tmp_path: Path) -> None:
    words = ("--length", 8, "--resamples", 20, "--special", 0, 1, "--out", tmp_path)
    done = assay("norms", folder, PROMPT + " " + PROMPT, *words)
    assert done.code == 0, done.err
    assert "Exact for this model, up to rounding: fold and freeze." in done.out
    result = Result.load(next(tmp_path.glob("norm_report-*")))
    assert result.dataset.attrs["special"] == [0, 1]
    assert (result.path / "report.html").is_file()


def test_norms_identity_is_for_models_without_norms(
    assay: Callable[..., Outcome], folder: Path, make_tiny_llama: Callable[..., Model], tmp_path: Path
) -> None:
    refused = assay("norms", folder, PROMPT, "--norms", "identity", "--out", tmp_path)
    assert refused.code == 2 and "7 of 7 norms are live" in refused.err
    model = make_tiny_llama()
    free = library.norms.scale(model, PROMPT, special=())
    library.norms.export(free, tmp_path / "free")
    words = ("--length", 8, "--norms", "identity", "--no-by-kind", "--resamples", 20)
    for ways in ((), ("--ways", "fold", "remove")):  # what is possible, and what the report's page shows
        done = assay("norms", tmp_path / "free", PROMPT, *words, *ways, "--out", tmp_path, "--json")
        assert done.code == 0, done.err
        assert "norms removed" in json.loads(done.out)["model"]["source"]
