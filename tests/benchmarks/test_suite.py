"""The accuracy suite, shortened: its smallest networks, estimated as the suite does; and how it sums up."""

import json

import pytest
from benchmarks.suite import estimate, summaries, summary
from benchmarks.suite_cases import SIZES, cases
from benchmarks.suite_figure import text


def row(llc: float, half: float, *, truth: float = 10.0, checks: dict[str, str] | None = None) -> dict:
    return {
        "family": "made up", "llc": llc, "llc_low": llc - half, "llc_high": llc + half, "truth": truth,
        "truth_stderr": 0.0, "checks": checks or {}, "cpu_s": 1.0,
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
    assert summaries({str(place): each for place, each in enumerate(rows)})["made up"] == found


def test_the_table_has_a_line_for_each_family_and_names_who_is_furthest_off() -> None:
    rows = [
        {**row(llc, 0.2), "name": f"number {place}", "parameters": 100 * 20**place}
        for place, llc in enumerate([10.1, 12.0])
    ]
    table, said = text(rows)
    _, _, line = table.splitlines()
    assert line == "| made up | 2 | 100 to 2,000 | 10.5% | 18.1% | 20.0% | 50% | 1 |"
    assert "2 s of one core. Furthest off are: made up number 1, 12 [11.8, 12.2] for 10;" in said


def test_small_networks_with_nothing_chosen() -> None:
    small = [
        place for place, case in enumerate(cases()) if case.family == "deep linear" and case.parameters < 700
    ]
    rows = [estimate(place)[1] for place in small[:3]]
    json.dumps(rows)
    found = summary(rows)
    assert found["median error"] <= 0.02
    assert found["largest error"] <= 0.06
    assert found["coverage"] >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("family", ["reduced rank", "normal crossing", "tanh", "quadratic"])
def test_other_families_with_nothing_chosen(family: str) -> None:
    places = [place for place, case in enumerate(cases()) if case.family == family]
    found = summary([estimate(place)[1] for place in places[:3]])
    assert found["median error"] <= 0.03
    assert found["wrong by 10 % without a failing check"] == 0
