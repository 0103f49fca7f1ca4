"""Two results side by side: paired differences of the numbers they share, and what else differs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from assay.runs.result import Result
from assay.runs.table import COMPANIONS, is_companion, tidy


@dataclass(frozen=True, eq=False)
class Comparison:
    """What differs between two results.

    Attributes:
        differences: for every shared variable x its ``x`` = b - a, cell by cell, and where both sides have
            standard errors ``x_stderr``, ``x_low`` and ``x_high``.
        settings: settings that differ, as (a, b); None for one that a side does not have.
        versions: package versions and other parts of the environment that differ, as (a, b).
        skipped: shared variables that could not be paired, each with the reason.
        level: level of the intervals.
    """

    differences: xr.Dataset
    settings: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]
    skipped: dict[str, str]
    level: float

    def table(self) -> pd.DataFrame:
        """Give every difference as one row: variable, its coordinates, value, stderr, low, high."""
        return tidy(self.differences)

    def summary(self) -> pd.DataFrame:
        """Give one row per variable: cells, how many are equal, mean and largest difference, cells apart.

        ``apart`` counts the cells whose interval leaves out zero; of cells without a difference about one in
        twenty does so at level 0.95. It is empty where there is no standard error.
        """
        names = [str(name) for name in self.differences.data_vars]
        return pd.DataFrame([self._line(name) for name in names if not is_companion(self.differences, name)])

    def _line(self, name: str) -> dict[str, Any]:
        values = self.differences[name].to_numpy()
        known = values[np.isfinite(values)]
        apart = None
        if f"{name}_low" in self.differences:
            low, high = self.differences[f"{name}_low"], self.differences[f"{name}_high"]
            apart = int(((low > 0) | (high < 0)).sum())
        return {
            "variable": name,
            "cells": values.size,
            "equal": int((values == 0).sum()),
            "mean": float(known.mean()) if known.size else float("nan"),
            "largest": float(np.abs(known).max()) if known.size else float("nan"),
            "apart": apart,
        }


def compare(a: Result, b: Result, *, level: float = 0.95) -> Comparison:
    """Pair the cells that two results share, by label, and subtract: b - a.

    The standard error of a difference is sqrt(stderr_a^2 + stderr_b^2): the two results are taken to be
    independent given the cell. Results that share their noise samples have narrower true intervals.

    Args:
        a: the first result.
        b: the second.
        level: level of the intervals, normal approximation.

    Returns:
        The paired differences, and the settings and versions that differ.
    """
    differences: dict[str, xr.DataArray] = {}
    skipped: dict[str, str] = {}
    for name in (str(name) for name in a.dataset.data_vars if name in b.dataset.data_vars):
        if is_companion(a.dataset, name) or a.dataset[name].dtype.kind not in "biuf":
            continue
        if reason := _unpairable(a.dataset[name], b.dataset[name]):
            skipped[name] = reason
            continue
        differences |= _paired(a.dataset, b.dataset, name, level)
    return Comparison(
        differences=xr.Dataset(differences),
        settings=_differing(a.manifest["settings"], b.manifest["settings"]),
        versions=_differing(_environment(a.manifest), _environment(b.manifest)),
        skipped=skipped,
        level=level,
    )


def _unpairable(a: xr.DataArray, b: xr.DataArray) -> str:
    """Say why two variables cannot be paired; "" when they can."""
    if b.dtype.kind not in "biuf":
        return "numbers in one result, text in the other"
    if a.dims != b.dims:
        return f"dimensions {a.dims} and {b.dims}"
    for dim in a.dims:
        if (dim in a.indexes) != (dim in b.indexes):
            return f"only one result labels {dim!r}"
        if dim not in a.indexes and a.sizes[dim] != b.sizes[dim]:
            return f"{a.sizes[dim]} and {b.sizes[dim]} cells along {dim!r}, which has no labels"
        if dim in a.indexes and not len(a.indexes[dim].intersection(b.indexes[dim])):
            return f"no label of {dim!r} in common"
    return ""


def _paired(a: xr.Dataset, b: xr.Dataset, name: str, level: float) -> dict[str, xr.DataArray]:
    """Subtract one variable of ``a`` from that of ``b`` where both have the cell."""
    left, right = xr.align(a[name].astype(np.float64), b[name].astype(np.float64), join="inner")
    difference = (right - left).where(
        left.notnull() | right.notnull(), 0.0
    )  # no number is equal to no number
    error = f"{name}_{COMPANIONS[0]}"
    if not all(error in dataset and is_companion(dataset, error) for dataset in (a, b)):
        return {name: difference}
    left_error, right_error = xr.align(a[error], b[error], join="inner")
    stderr = (left_error**2 + right_error**2) ** 0.5
    reach = float(stats.norm.ppf((1 + level) / 2)) * stderr
    return {
        name: difference,
        error: stderr,
        f"{name}_low": difference - reach,
        f"{name}_high": difference + reach,
    }


def _environment(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give the environment of the last attempt as one flat mapping, with what identifies the model."""
    environment = dict(manifest["attempts"][-1]["environment"])
    model = {f"model {key}": value for key, value in manifest["model"].items()}
    return {**environment.pop("versions"), **environment, **model}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}
