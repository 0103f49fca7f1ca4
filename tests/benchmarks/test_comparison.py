"""The benchmark's own machinery, on a model so small that only correctness is measured."""

import json
from pathlib import Path

import pytest
from benchmarks.cases import CASES, Case, Contestant
from benchmarks.comparison import compare, shares
from benchmarks.promises import Promise
from benchmarks.table import BEGIN, END, write_tables
from benchmarks.work import SHORT

import assay
from assay.models.model import Model


@pytest.mark.parametrize("name", ["trace", "late-trace"])
def test_a_peer_is_timed_on_every_cell_or_on_forty_spread_over_the_table(name: str) -> None:
    positions = 10 if name == "trace" else 60
    cells = [(layer, position) for layer in range(30) for position in range(positions)]
    peers = [contestant for contestant in CASES[name].contestants if contestant.every]
    assert len(peers) == 3
    for peer in peers:
        timed = [cell for share in shares(peer, cells, CASES[name].repetitions) for cell in share]
        assert len(timed) == len(set(timed))
        if name == "trace":
            assert set(timed) == set(cells)
        else:
            assert len(timed) >= 40
            assert len({layer for layer, _ in timed}) == 30
            assert len({position for _, position in timed}) >= 40


def test_every_promise_names_contestants_of_its_case() -> None:
    for case in CASES.values():
        labels = {contestant.label for contestant in case.contestants}
        assert {promise.of for promise in case.promises} <= labels
        assert {promise.to for promise in case.promises if promise.to} <= labels


@pytest.fixture
def tiny_folder_model(tiny_llama: Model, tmp_path: Path) -> Model:
    assert tiny_llama.tokenizer is not None
    tiny_llama.module.save_pretrained(tmp_path / "tiny")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "tiny")
    return assay.load(tmp_path / "tiny")


@pytest.mark.slow
def test_sides_in_processes_of_their_own_agree(tiny_folder_model: Model, tmp_path: Path) -> None:
    """Assay's trace against the loop written with bare hooks: each cell a forward pass of its own."""
    contestants = (Contestant("assay", "trace"), Contestant("hooks", "trace", every=1))
    promises = (Promise("ratio", "hooks trace", "assay trace", "at least", 0.0),)
    case = Case("a tiny trace", SHORT, contestants, promises, repetitions=2)
    said: list[str] = []
    record = compare("trace", case, tiny_folder_model, device="cpu", threads=1, say=said.append)
    assert len(said) == 4
    assert record["contestants"]["hooks trace"]["cells_timed"] == record["cells"]
    assert record["contestants"]["assay trace"]["peak_bytes"] > record["weight_bytes"]
    assert record["agreement"]["hooks trace"]["restored"] < 1e-6  # probabilities, float32
    assert record["figures"][0]["kept"]

    _check_tables(record, tmp_path)


def _check_tables(record: dict[str, object], folder: Path) -> None:
    (folder / "trace-cpu.json").write_text(json.dumps(record))
    page = folder / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    write_tables(folder, page)
    text = page.read_text()
    assert text.startswith("above") and text.endswith("below\n") and "old" not in text
    assert "| trace | time of hooks trace / assay trace |" in text and "| yes |" in text
    write_tables(folder, page)
    assert page.read_text() == text


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("no markers")
    with pytest.raises(ValueError, match="needs the lines"):
        write_tables(tmp_path, tmp_path / "page.md")
