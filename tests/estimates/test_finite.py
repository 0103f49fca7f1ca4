"""The check that numbers are finite where they should be."""

import numpy as np
import xarray as xr

from assay.estimates.finite import finite_check


def test_unexpected_values_are_counted_and_named():
    dataset = xr.Dataset(
        {
            "fine": ("x", [1.0, 2.0]),
            "nan": ("x", [np.nan, np.inf]),
            "announced": ("x", [np.nan, 1.0], {"allow_nan": True}),
            "text": ("x", np.array(["a", "b"], dtype=object)),
            "whole": ("x", [1, 2]),
        }
    )
    check = finite_check(dataset)
    assert (check.code, check.verdict, check.figure) == ("A001", "fail", 2.0)
    assert "nan (2)" in check.message
    assert "announced" not in check.message
    assert check.remedy


def test_infinity_is_never_announced():
    dataset = xr.Dataset({"announced": ((), -np.inf, {"allow_nan": True})})
    assert finite_check(dataset).verdict == "fail"


def test_finite_numbers_pass():
    check = finite_check(xr.Dataset({"x": ((), np.float32(1)), "nan": ((), np.nan, {"allow_nan": True})}))
    assert (check.verdict, check.figure, check.remedy) == ("pass", 0.0, "")
