"""What charts of effects on a data set share: titles of the metrics, the table behind them, and what a mark says."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput

TITLES = {
    "loss_difference": "loss difference (nats a token)",
    "kl_from_clean": "KL from clean (nats a token)",
    "top1_agreement": "top-1 agreement",
    "logit_difference": "change of the logit difference",
}
FADED = "; faded cells are those whose 95% interval over pairs includes zero"
"""Of a caption, where there are several pairs."""
VARIANTS = {name.replace("_", " "): {"metric": name} for name in TITLES}
"""Of a report's figure: one a metric."""


def require_metric(metric: str) -> None:
    """Refuse a metric that is not known.

    Raises:
        BadInput: it is not.
    """
    if metric not in TITLES:
        raise BadInput(f"metric={metric!r} is not known: choose from {', '.join(TITLES)}.")


def tabled(
    dataset: xr.Dataset, dim: str, coordinates: Sequence[str], statistics: Sequence[str]
) -> pd.DataFrame:
    """One row for each metric and edit.

    Args:
        dataset: effects by ``metric`` and edit.
        dim: what the axis of edits is called.
        coordinates: of the edits, columns of the same names.
        statistics: variables by metric and edit, likewise; the baseline's is added as ``random_effect`` where it is.
    """
    metrics, count = dataset.sizes["metric"], dataset.sizes[dim]
    table: dict[str, Any] = {"metric": np.repeat(dataset["metric"].values.astype(str), count)}
    for name in (dim, *coordinates):
        values = dataset[name].values
        table[name] = np.tile(values.astype(str) if values.dtype.kind in "OU" else values, metrics)
    named = {name: name for name in statistics}
    if "baseline_effect" in dataset:
        named["random_effect"] = "baseline_effect"
    for column, name in named.items():
        table[column] = dataset[name].transpose("metric", dim).values.ravel()
    return pd.DataFrame(table)


def tooltip(dim: str, *more: alt.Tooltip) -> list[alt.Tooltip]:
    """What a mark says: which edit, its effect and interval, and more."""
    return [
        alt.Tooltip(f"{dim}:N", title=dim),
        alt.Tooltip("effect:Q", title="effect", format="+.4f"),
        alt.Tooltip("effect_low:Q", title="from", format="+.4f"),
        alt.Tooltip("effect_high:Q", title="to", format="+.4f"),
        *more,
    ]


def data_set(dataset: xr.Dataset) -> str:
    """The inputs of a result, for its caption."""
    told = dataset.attrs
    return (
        f"{told['inputs']} inputs of {told['tokens']} tokens, whose clean loss is {float(dataset['clean_loss']):.3f} "
        "nats a token"
    )
