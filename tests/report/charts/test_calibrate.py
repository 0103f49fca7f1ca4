import numpy as np
import pytest
import xarray as xr

from assay.report.charts import calibrate as page


@pytest.fixture
def dataset() -> xr.Dataset:
    plane = ("step_size", "n_beta")
    llc = np.array([[4.0, 5.0], [4.2, 5.1], [np.nan, 9.0]])
    values = {"llc": llc, "llc_low": llc - 1, "llc_high": llc + 1, "llc_raw": llc + 0.5, "r_hat": llc / llc}
    return xr.Dataset(
        {
            **{name: (plane, value) for name, value in values.items()},
            "plateau": (plane, llc < 6),
            "llc_plateau": ("n_beta", [4.1, 5.05]),
            "llc_plateau_low": ("n_beta", [3.1, 4.05]),
            "llc_plateau_high": ("n_beta", [5.1, 6.05]),
        },
        {"step_size": [1e-4, 1e-3, 1e-2], "n_beta": [10.0, 20.0]},
    )


def test_a_row_for_each_setting(dataset: xr.Dataset) -> None:
    rows = page.frame(dataset)
    assert len(rows) == 6
    first = rows[(rows["step_size"] == 1e-3) & (rows["n_beta"] == 20)]
    assert first["llc"].item() == 5.1
    assert list(rows["plateau"]) == [True, True, True, True, False, False]


def test_the_plateau_and_the_truth_are_drawn(dataset: xr.Dataset) -> None:
    drawn = page.chart(dataset, truth=4.5).to_dict()
    assert "4 of 6 settings are on the plateau: 4.1 at nβ = 10, 5.05 at nβ = 20" in drawn["title"]["subtitle"]
    tables = drawn["datasets"].values()
    assert any(row.get("truth") == 4.5 for table in tables for row in table)
    (figure,) = page.figures(dataset)
    assert "plateau" in figure.caption


def test_the_plateau_of_each_temperature_is_a_finding(dataset: xr.Dataset) -> None:
    one, two = (finding.text for finding in page.findings(dataset))
    assert one == (
        "At nβ = 10 the plateau lies at λ̂ = 4.1 [3.1, 5.1], with estimates from 4 to 4.2 at 2 step sizes from 0.0001 "
        "to 0.001."
    )
    assert two.startswith(
        "At nβ = 20 the plateau lies at λ̂ = 5.05 [4.05, 6.05], with estimates from 5 to 5.1"
    )
    nowhere = dataset.assign(plateau=dataset["plateau"] & (dataset["n_beta"] > 15))
    assert page.findings(nowhere)[0].text == "At nβ = 10 there is no plateau."


def test_no_mark_lies_on_the_edge_and_ticks_are_round(dataset: xr.Dataset) -> None:
    across = page.panel(dataset).to_dict()["layer"][0]["encoding"]["x"]
    low, high = across["scale"]["domain"]
    assert low < 1e-4 / 1.1
    assert high > 1e-2 * 1.1
    assert across["axis"]["values"] == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2])


def test_nothing_on_the_plateau_is_said(dataset: xr.Dataset) -> None:
    nowhere = dataset.assign(plateau=dataset["plateau"] & False)
    assert "No setting" in page.chart(nowhere).to_dict()["title"]["subtitle"]
