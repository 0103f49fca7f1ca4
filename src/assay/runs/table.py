"""A labelled dataset as one tidy table, and the checks as a short list."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from assay.estimates.checks import Check

COMPANIONS = ("stderr", "low", "high")
OWN_COLUMNS = ("variable", "value", *COMPANIONS, "text")
SIGNS = {"pass": "✓", "warn": "!", "fail": "✗"}


def tidy(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay out a dataset as one row per number.

    Args:
        dataset: variables over any dims; ``x_stderr``, ``x_low``, ``x_high`` join the rows of ``x``.

    Returns:
        Columns ``variable``, the dims and coordinates that vary, ``value``, ``stderr``, ``low``, ``high`` and
        ``text`` (for variables that hold words). A column a variable does not have is empty in its rows. A
        coordinate called like one of these columns becomes ``text_label`` and the like.
    """
    names = [str(name) for name in dataset.data_vars]
    frames = [_rows(dataset, name) for name in names if not is_companion(dataset, name)]
    columns = ["variable", *map(_column_name, _label_columns(dataset)), *OWN_COLUMNS[1:]]
    if not frames:
        return pd.DataFrame(columns=columns)
    table = pd.concat(frames, ignore_index=True)
    return table.reindex(columns=[column for column in columns if column in table])


def is_companion(dataset: xr.Dataset, name: str) -> bool:
    """Tell whether a variable is the standard error or an end of the interval of another one."""
    base, _, kind = name.rpartition("_")
    return kind in COMPANIONS and base in dataset.data_vars and dataset[base].dims == dataset[name].dims


def _label_columns(dataset: xr.Dataset) -> list[str]:
    dims = [str(dim) for dim in dataset.dims]
    return dims + [str(name) for name in dataset.coords if name not in dataset.dims]


def _column_name(label: str) -> str:
    return f"{label}_label" if label in OWN_COLUMNS else label


def _rows(dataset: xr.Dataset, name: str) -> pd.DataFrame:
    """Give the rows of one variable, its companions beside it."""
    variable = dataset[name]
    columns: dict[str, Any] = {"variable": np.full(variable.size, name, dtype=object)}
    for label in _label_columns(dataset):
        if label in variable.dims and label not in dataset.coords:
            labels = xr.DataArray(np.arange(variable.sizes[label]), dims=label)
        elif (
            label in dataset.coords and set(dataset[label].dims) <= set(variable.dims) and dataset[label].ndim
        ):
            labels = dataset[label].variable
        else:
            continue
        spread = xr.DataArray(labels.data, dims=labels.dims).broadcast_like(_blank(variable))
        columns[_column_name(label)] = _column(spread.transpose(*variable.dims).to_numpy().ravel())
    if variable.dtype.kind in "biuf":
        columns["value"] = variable.to_numpy().ravel().astype(np.float64)
    else:
        columns["text"] = _column(variable.to_numpy().ravel())
    for companion in COMPANIONS:
        if f"{name}_{companion}" in dataset.data_vars and is_companion(dataset, f"{name}_{companion}"):
            columns[companion] = dataset[f"{name}_{companion}"].to_numpy().ravel()
    return pd.DataFrame(columns)


def _column(values: np.ndarray[Any, Any]) -> pd.Series:
    """Give labels in a type that stays itself where other variables have no such label."""
    return pd.Series(values, dtype="Int64" if values.dtype.kind in "iu" else object)


def _blank(variable: xr.DataArray) -> xr.DataArray:
    """Give an array of the same dims without coordinates, to spread labels over."""
    return xr.DataArray(np.empty(variable.shape, dtype=bool), dims=variable.dims)


def checks_html(checks: Sequence[Check]) -> str:
    """List the checks as HTML, those that do not pass first; every text is escaped."""
    order = {"fail": 0, "warn": 1, "pass": 2}
    rows: list[str] = []
    for check in sorted(checks, key=lambda check: order[check.verdict]):
        words = f"{SIGNS[check.verdict]} {check.code} {check.title}: {check.message} {check.remedy}".strip()
        rows.append(f"<li>{html.escape(words)}</li>")
    return f"<ul>{''.join(rows)}</ul>"
