import numpy as np
import pytest
import xarray as xr

from assay.report.charts import learning_coefficient as page


@pytest.fixture
def dataset() -> xr.Dataset:
    loss = np.linspace(1, 2, 2 * 300).reshape(2, 300)
    scalars = {
        "llc": 5.0,
        "llc_low": 4.0,
        "llc_high": 6.0,
        "llc_bias": 0.25,
        "n_beta": 4.0,
        "anchor_loss": 0.5,
    }
    return xr.Dataset(
        {"loss": (("chain", "draw"), loss), **scalars},
        {"chain": [0, 1], "draw": np.arange(-100, 200)},
        {"parameters": 12},
    )


def test_the_traces_are_in_units_of_the_estimate(dataset: xr.Dataset) -> None:
    rows = page.frame(dataset)
    assert set(rows["chain"]) == {0, 1}
    assert rows["excess"].iloc[-1] == pytest.approx(4 * (2 - 0.5), rel=0.01)
    # a first group is the mean of its steps: 300 steps in 250 groups, so of the first two
    assert rows["excess"].iloc[0] == pytest.approx(4 * (float(dataset["loss"][0, :2].mean()) - 0.5))


def rules(drawn) -> dict[str, dict[str, float]]:
    tables = drawn.to_dict()["datasets"].values()
    return {row["kind"]: row for table in tables for row in table if "kind" in row}


def test_burn_in_estimate_and_truth_are_drawn(dataset: xr.Dataset) -> None:
    drawn = page.chart(dataset, truth=5.5)
    marks = rules(drawn)
    assert (marks["burn-in"]["start"], marks["burn-in"]["stop"]) == (-100, 0)
    assert (marks["estimate"]["low"], marks["estimate"]["value"], marks["estimate"]["high"]) == (4, 5, 6)
    tables = drawn.to_dict()["datasets"].values()
    assert any(row.get("truth") == 5.5 for table in tables for row in table)
    assert "dashed: the truth, 5.5" in drawn.title.subtitle
    without = page.chart(dataset).to_dict()["datasets"].values()
    assert not any("truth" in row for table in without for row in table)


def test_the_report_has_the_figure(dataset: xr.Dataset) -> None:
    (figure,) = page.figures(dataset)
    assert "5 [4, 6] of 12 parameters" in figure.caption
    assert figure.chart().to_dict()["datasets"][figure.name]


def test_the_estimate_is_a_finding_and_what_is_withheld_is_none(dataset: xr.Dataset) -> None:
    assert [finding.text for finding in page.findings(dataset)] == ["λ̂ = 5 [4, 6] of 12 parameters."]
    assert page.findings(dataset.assign(llc=np.nan)) == []
