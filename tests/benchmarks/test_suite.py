"""The accuracy suite, shortened: its smallest networks, estimated as the suite does; and how it sums up."""

import json
import math
import sys
from pathlib import Path

import pytest
from benchmarks.suite import RESULTS, SILENT, covered, estimate, summaries, summary, work
from benchmarks.suite_cases import LARGE, LARGE_SIZES, SIZES, Case, Oracle, cases, large_linear
from benchmarks.suite_figure import text

from benchmarks import suite


def row(llc: float, half: float, *, truth: float = 10.0, checks: dict[str, str] | None = None) -> dict:
    return {
        "family": "made up", "llc": llc, "llc_low": llc - half, "llc_high": llc + half, "truth": truth,
        "truth_stderr": 0.0, "truth_freedom": None, "checks": checks or {}, "cpu_s": 1.0,
    }  # fmt: skip


def test_the_networks_are_as_many_and_as_large_as_said() -> None:
    linear = [case for case in cases() if case.family == "deep linear"]
    assert len(linear) == sum(count for _, _, count in SIZES) >= 60
    assert len({case.name for case in cases()}) == len(cases())
    assert 100 <= min(case.parameters for case in linear) < 300
    assert 80_000 < max(case.parameters for case in linear) <= 100_000
    assert {len(case.name.split()[0].split("-")) - 1 for case in linear} == {2, 3, 4, 5, 6}
    assert [case.name for case in cases()] == [case.name for case in cases()]


def test_errors_coverage_and_silent_failures_are_counted() -> None:
    rows = [row(10.1, 0.2), row(9.0, 0.1), row(12.0, 0.1), row(15.0, 1.0, checks={"L203": "fail"})]
    found = summary(rows)
    assert found["median error"] == pytest.approx(0.15)
    assert found["largest error"] == pytest.approx(0.5)
    assert found["coverage"] == pytest.approx(0.25)
    assert found["wrong by 10 % without a failing check"] == 1
    assert found["kept"] == {
        "median error": False,
        "90th percentile": False,
        "coverage": False,
        SILENT: False,
    }
    assert summaries({str(place): each for place, each in enumerate(rows)})["made up"] == found


def test_the_table_has_a_line_for_each_family_and_names_who_is_furthest_off() -> None:
    rows = [
        {**row(llc, 0.2), "name": f"number {place}", "parameters": 100 * 20**place}
        for place, llc in enumerate([10.1, 12.0])
    ]
    table, said = text(rows)
    _, _, line = table.splitlines()
    assert line.startswith("| made up | 2 | 100 to 2,000 | 10.5% | 18.1% | 20.0% | 50% | 1 |")
    assert line.endswith("| not median error, 90th percentile, coverage |")
    assert "2 s of one core. Furthest off are: made up number 1, 12 [11.8, 12.2] for 10 ± 0;" in said


def test_a_withheld_estimate_is_counted_and_leaves_the_other_figures_alone() -> None:
    nothing = math.nan
    withheld, silent = row(nothing, nothing, checks={"L201": "fail"}), row(nothing, nothing)
    found = summary([row(10.1, 0.2), withheld])
    assert found["median error"] == pytest.approx(0.01)
    assert (found["withheld"], found["coverage"], found[SILENT]) == (1, 1.0, 0)
    assert all(found["kept"].values())
    assert summary([row(10.1, 0.2), silent])[SILENT] == 1
    assert not any(summary([silent])["kept"].values())


def test_a_sampled_truth_widens_the_interval_by_student_s_law() -> None:
    """Six chains: 2.57 standard errors to either side."""
    sampled = {**row(10.25, 0.0), "truth_stderr": 0.1, "truth_freedom": 5}
    assert covered(sampled)
    assert not covered({**sampled, "truth_freedom": None})
    assert not covered({**sampled, "llc": 10.26})


def test_what_is_recorded_keeps_the_promises() -> None:
    record = json.loads(RESULTS.read_text())
    assert record["families"] == summaries(record["cases"])
    assert {(row["family"], row["name"]) for row in record["cases"].values()} == {
        (case.family, case.name) for case in cases() if case.family != LARGE
    }
    assert all(row["commit"] for row in record["cases"].values())
    assert all(record["families"]["deep linear"]["kept"].values())
    for family in ("normal crossing", "reduced rank", "tanh"):
        assert all(record["families"][family]["kept"].values()), family
    assert not any(figures[SILENT] for figures in record["families"].values())


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["suite", "--jobs", "1", "--results", str(path), *arguments])
    suite.main()
    return json.loads(path.read_text())


def test_only_what_is_asked_for_is_forgotten_and_where_nothing_is_run_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "suite.json"
    path.write_text(RESULTS.read_text())
    before = path.read_text()
    run(monkeypatch, path)
    assert path.read_text() == before
    arguments = ("--family", "quadratic", "--largest", "1")
    key, rows = "quadratic: 1 directions", json.loads(before)["cases"]
    rows[key]["truth"] = 7.0
    path.write_text(json.dumps({"cases": rows}))
    after = run(monkeypatch, path, "--truths", *arguments)["cases"]
    assert after[key] == json.loads(before)["cases"][key]  # its truth is found again, its estimate left
    assert {name: row for name, row in after.items() if name != key} == {
        name: row for name, row in rows.items() if name != key
    }


def test_large_networks_are_as_large_as_said_and_asked_for_by_name() -> None:
    large = [case for case in cases() if case.family == LARGE]
    assert len(large) == sum(count for _, _, count in LARGE_SIZES)
    assert all(1e6 <= case.parameters <= 1e8 for case in large)
    assert all(case.oracle().truth <= case.parameters / 2 for case in large)


def test_a_large_network_made_small_is_estimated_like_the_others() -> None:
    case = large_linear((12, 10, 12), 4, 0)
    row = estimate(case)
    assert abs(row["llc"] / case.oracle().truth - 1) < 0.05
    assert row["name"] == "12-10-12 rank 4"
    assert isinstance(case, Case)
    assert case.oracle() == Oracle(case.oracle().truth, 0.0, None)


def estimated(place: int) -> dict:
    """Estimate a network, and set it beside the truth that is recorded."""
    key, row = work(place, False, True)
    return {**json.loads(RESULTS.read_text())["cases"][key], **row}


def test_small_networks_with_nothing_chosen() -> None:
    small = [
        place for place, case in enumerate(cases()) if case.family == "deep linear" and case.parameters < 700
    ]
    rows = [estimated(place) for place in small[:3]]
    json.dumps(rows)
    found = summary(rows)
    assert found["median error"] <= 0.02
    assert found["largest error"] <= 0.06
    assert found["coverage"] >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("family", ["reduced rank", "normal crossing", "tanh", "quadratic"])
def test_other_families_with_nothing_chosen(family: str) -> None:
    places = [place for place, case in enumerate(cases()) if case.family == family]
    found = summary([estimated(place) for place in places[:3]])
    assert found["median error"] <= 0.03
    assert found["wrong by 10 % without a failing check"] == 0
