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
        {**{name: (plane, value) for name, value in values.items()}, "plateau": (plane, llc < 6)},
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
    assert "4 of 6 settings are on the plateau, with estimates from 4 to 5.1" in drawn["title"]["subtitle"]
    tables = drawn["datasets"].values()
    assert any(row.get("truth") == 4.5 for table in tables for row in table)
    (figure,) = page.figures(dataset)
    assert "plateau" in figure.caption


def test_nothing_on_the_plateau_is_said(dataset: xr.Dataset) -> None:
    nowhere = dataset.assign(plateau=dataset["plateau"] & False)
    assert "No setting" in page.chart(nowhere).to_dict()["title"]["subtitle"]
