"""The comparison of learning coefficients: its work file, its promises, and one small run of it."""

from pathlib import Path

import pytest
import torch
from benchmarks.landscape import LEARNING, Contestant, LearningCase, sample
from benchmarks.peers.llc_worker import Work
from benchmarks.promises import Promise, figure


def test_every_promise_names_contestants_of_its_case() -> None:
    for case in LEARNING.values():
        labels = [contestant.label for contestant in case.contestants]
        assert len(labels) == len(set(labels))
        for promise in case.promises:
            assert {promise.of, promise.to} <= set(labels)


@pytest.mark.parametrize("name", ["llc-a", "llc-m"])
def test_every_side_reads_the_same_network_at_its_anchor(name: str, tmp_path: Path) -> None:
    LEARNING[name].write(tmp_path / "work.safetensors", None)
    work = Work.read(tmp_path / "work.safetensors", "a folder that a stack does not need")
    module = work.stack()
    assert work.model == ""
    assert sum(part.numel() for part in module.parameters()) == {"llc-a": 972, "llc-m": 203_530}[name]
    with torch.no_grad():
        loss = work.mean_loss(module(work.data[0]), work.data[1])
    # the linear network is at a minimum of no noise; the classifier starts near the loss of guessing among ten
    assert float(loss) < 1e-8 if name == "llc-a" else 2.0 < float(loss) < 3.0


def test_a_ratio_of_peaks_is_that_of_the_highest() -> None:
    turns = {
        "a": [{"whole_seconds": 1.0, "peak_bytes": peak} for peak in (300, 200)],
        "b": [{"whole_seconds": 1.0, "peak_bytes": peak} for peak in (100, 400)],
    }
    found = figure(Promise("memory ratio", "a", "b", "at most", 1.0), turns, 0)
    assert (found["value"], found["low"], found["kept"]) == (0.75, None, True)


@pytest.mark.slow
def test_a_small_comparison_ends_in_a_record() -> None:
    contestants = (Contestant("assay_llc", 2, 8, 20), Contestant("assay_llc", 3, 8, 20))
    promises = (Promise("memory ratio", "assay 3 chains", "assay 2 chains", "at most", 2.0),)
    case = LearningCase("a small one", LEARNING["llc-a"].write, contestants, promises, repetitions=2)
    said: list[str] = []
    record = sample("llc-a", case, None, threads=1, say=said.append)
    assert len(said) == 4
    assert record["figures"][0]["kept"]
    assert record["contestants"]["assay 2 chains"]["llc"] > 0
