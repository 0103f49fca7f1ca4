import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from assay.report.charts import trajectory as page


def made(runs: int, *, top: float = 9.0) -> xr.Dataset:
    steps, lags = np.arange(0, 400, 10), np.arange(-6, 7)
    loss = np.where(steps < 200, top, 1.0) + 0.01 * np.arange(runs)[:, None]
    llc = np.where(steps < 200, 2.0, 5.0) + 0.1 * np.arange(runs)[:, None]
    change = np.where(steps == 200, 1.0, 0.0) + np.zeros((runs, 1))
    curve = ("run", "step")
    around = {
        f"{prefix}llc_around_drop{part}": ("lag", np.where(lags < 0, 0.0, 3.0) + offset)
        for prefix in ("", "baseline_")
        for part, offset in (("", 0), ("_low", -0.5), ("_high", 0.5))
    }
    dataset = xr.Dataset(
        {
            "loss": (curve, loss),
            "llc": (curve, llc),
            "llc_low": (curve, llc - 0.3),
            "llc_high": (curve, llc + 0.3),
            "at_minimum": (curve, np.broadcast_to(steps >= 200, llc.shape)),
            "loss_change": (curve, (1.0 - top) * change),
            "llc_change": (curve, 3.0 * change),
            "drops": runs,
            "alignment": 1.0,
            "alignment_low": 0.4,
            "alignment_high": 1.0,
            "baseline_alignment": 0.25,
            "alignment_p": 0.03 if runs > 1 else np.nan,
            "known": ("level", np.array([2.0, 5.0, 7.5])),
            **around,
        },
        {"run": np.arange(runs), "step": steps, "lag": lags},
    )
    return dataset.isel(run=0, drop=True) if runs == 1 else dataset


def spec(drawn: Any) -> dict[str, Any]:
    return json.loads(drawn.to_json())


def marks(drawn: dict[str, Any]) -> list[str]:
    return [layer["mark"]["type"] for panel in drawn["vconcat"] for layer in panel["layer"]]


@pytest.mark.parametrize("runs", [1, 3])
def test_there_is_a_row_for_each_run_and_step(runs: int) -> None:
    rows = page.frame(made(runs))
    assert len(rows) == runs * 40
    last = rows.iloc[-1]
    assert (last["run"], last["step"]) == (runs - 1, 390)
    assert last["llc"] == pytest.approx(5 + 0.1 * (runs - 1))
    assert set(rows["step"][rows["loss_change"] != 0]) == {200}
    around = page.around_frame(made(runs))
    assert around.columns.tolist() == ["curve", "lag", "low", "high", "value"]
    assert len(around) == 26


def test_one_run_has_a_band_and_marks_and_the_known_lines() -> None:
    drawn = spec(page.chart(made(1)))
    assert "area" in marks(drawn)
    assert marks(drawn).count("rule") == 3  # the changes of both curves, and the known values
    known = [rows for rows in drawn["datasets"].values() if "known" in rows[0]]
    inline = [
        layer["data"]["values"] for layer in drawn["vconcat"][1]["layer"] if "values" in layer.get("data", {})
    ]
    assert [row["known"] for row in (known or inline)[0]] == [2.0, 5.0, 7.5]
    subtitle = drawn["title"]["subtitle"]
    assert "100% [40%, 100%] of 1 drops" in subtitle and subtitle.endswith("one run is no test of chance.")
    assert spec(page.chart(made(3)))["title"]["subtitle"].endswith("25% by chance (p = 0.03).")


def test_several_runs_are_thin_lines_with_their_median_on_top() -> None:
    drawn = spec(page.chart(made(3)))
    assert "area" not in marks(drawn)
    thin, median = (layer for layer in drawn["vconcat"][1]["layer"] if layer["mark"]["type"] == "line")
    assert thin["encoding"]["detail"]["field"] == "run"
    assert median["encoding"]["y"]["aggregate"] == "median"
    assert median["mark"]["strokeWidth"] > thin["mark"]["strokeWidth"]
    assert "detail" not in median["encoding"]


@pytest.mark.parametrize("runs", [1, 3])
def test_the_caption_says_at_how_many_checkpoints_there_is_no_minimum(runs: int) -> None:
    caption = page.figures(made(runs))[0].caption
    assert "50% of checkpoints that are no minimum" in caption
    assert ("Hollow points" in caption) == (runs == 1)
    everywhere = made(runs)
    everywhere["at_minimum"] = everywhere["at_minimum"] | True
    assert "Every checkpoint is a minimum." in page.figures(everywhere)[0].caption


@pytest.mark.parametrize(("top", "kind"), [(9.0, None), (90.0, "log"), (1e9, None)])
def test_the_loss_is_logarithmic_where_that_shows_more(top: float, kind: str | None) -> None:
    upper = spec(page.chart(made(1, top=top)))["vconcat"][0]
    scales = [layer["encoding"].get("y", {}).get("scale", {}).get("type") for layer in upper["layer"]]
    assert (kind in scales) if kind else set(scales) == {None}


def test_the_axis_of_the_coefficient_holds_its_intervals_and_the_known_values() -> None:
    lower = spec(page.chart(made(1)))["vconcat"][1]
    low, high = next(
        layer["encoding"]["y"]["scale"]["domain"]
        for layer in lower["layer"]
        if layer["mark"]["type"] == "line"
    )
    assert low < 1.8
    assert high > 7.5


def test_the_course_around_a_drop_is_beside_chance() -> None:
    drawn = spec(page.chart(made(3), part="around"))
    assert [layer["mark"]["type"] for layer in drawn["layer"]] == ["area", "line"]
    (rows,) = (rows for rows in drawn["datasets"].values())
    assert {row["curve"] for row in rows} == {"LLC", "chance"}


def test_a_report_has_the_second_figure_and_the_finding_only_with_drops() -> None:
    assert [figure.name for figure in page.figures(made(3))] == ["trajectory", "trajectory_around"]
    assert len(page.findings(made(1))) == 1
    none = made(1).assign(drops=0)
    assert [figure.name for figure in page.figures(none)] == ["trajectory"]
    assert page.findings(none) == []
    assert "No drop" in spec(page.chart(none))["title"]["subtitle"]
    assert isinstance(page.figures(made(1))[0].frame, pd.DataFrame)


def test_a_coefficient_that_could_not_be_had_is_left_out() -> None:
    dataset = made(1)
    for name in ("llc", "llc_low", "llc_high"):
        dataset[name] = dataset[name] * np.nan
    whole, drawn = io.StringIO(), io.StringIO()
    page.chart(made(1)).save(whole, format="svg")
    page.chart(dataset.drop_vars("known")).save(drawn, format="svg")
    # the same but for the 40 points of the LLC
    assert whole.getvalue().count("<path") - drawn.getvalue().count("<path") >= 40
    assert "NaN" not in drawn.getvalue()
