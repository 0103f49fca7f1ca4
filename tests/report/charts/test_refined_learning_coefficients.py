"""The chart of refined learning coefficients: its table, and what is said of the extremes."""

import numpy as np
import pytest
import xarray as xr

from assay.report.charts import refined_learning_coefficients as charts


@pytest.fixture
def dataset() -> xr.Dataset:
    parts = {"part": ["one", "two", "three"], "parameters": ("part", [10, 20, 4])}
    llc = {
        f"llc{end}": ("part", np.array([4.0, 2.0, np.nan]) + add)
        for end, add in (("", 0), ("_low", -1), ("_high", 1))
    }
    random = {f"baseline_{name}": values for name, values in llc.items()}
    return xr.Dataset({**llc, **random, "parameters": parts["parameters"]}, {"part": parts["part"]})


def test_a_row_is_a_part_with_its_share_of_half_its_weights(dataset: xr.Dataset) -> None:
    table = charts.frame(dataset)
    assert table["kind"].tolist() == ["part"] * 3 + ["random weights"] * 3
    np.testing.assert_allclose(table["share"][:3], [0.8, 0.2, np.nan])
    np.testing.assert_allclose(table["share_high"][:2], [1.0, 0.3])


def test_without_random_parts_there_are_no_rows_of_them(dataset: xr.Dataset) -> None:
    alone = dataset.drop_vars([name for name in dataset if str(name).startswith("baseline")])
    assert set(charts.frame(alone)["kind"]) == {"part"}
    (figure,) = charts.figures(alone)
    assert "none" in figure.caption


def test_extremes_are_ranked_by_size_and_withheld_parts_are_not(dataset: xr.Dataset) -> None:
    most, least = (finding.text for finding in charts.findings(dataset))
    assert most.startswith("Most degenerate for its size: two, 2 [1, 3] of 10")
    assert least.startswith("Least degenerate for its size: one, 4 [3, 5] of 5")
    assert charts.findings(dataset.isel(part=[0, 2])) == []


def test_it_can_be_drawn(dataset: xr.Dataset) -> None:
    drawn = charts.chart(dataset).to_dict()
    assert len(drawn["hconcat"]) == 2
