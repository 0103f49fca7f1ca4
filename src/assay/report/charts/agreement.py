"""Predicted beside exact effects: the scatter that attributions of nodes and of edges share."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding

TABLE = "agreement"
_SIZE = 260
_NAMED = 3
"""Missed nodes that a sentence names."""


def agreement(dataset: xr.Dataset, table: pd.DataFrame, *, group: str) -> tuple[Any, pd.DataFrame]:
    """Draw exact against predicted effects.

    Args:
        dataset: holds ``rank_correlation``.
        table: one row for each node or edge that was patched exactly: name, predicted, exact, low, high, and ``group``.
        group: the column that colours tell apart.

    Returns:
        A chart over the table ``agreement``, and the table.
    """
    values = np.concatenate([table[name].to_numpy(dtype=float) for name in ("predicted", "exact")])
    ends = [float(values.min(initial=0.0)), float(values.max(initial=0.0))]
    base = alt.Chart(alt.NamedData(name=TABLE))
    x, y = alt.X("predicted:Q", title="predicted effect"), alt.Y("exact:Q", title="exact effect")
    line = (
        alt.Chart(alt.InlineData(values=[{"predicted": end, "exact": end} for end in ends]))
        .mark_line(strokeDash=[4, 4], opacity=0.6)
        .encode(x=x, y=y)
    )
    spread = base.transform_filter("isValid(datum.low)").mark_rule(opacity=0.5).encode(
        x=x, y=alt.Y("low:Q", title="exact effect"), y2="high:Q", color=alt.Color(f"{group}:N", title=None)
    )  # fmt: skip
    points = base.mark_circle(size=40, opacity=0.8).encode(
        x=x,
        y=y,
        color=alt.Color(f"{group}:N", title=None),
        tooltip=[
            alt.Tooltip("name:N", title="what"),
            alt.Tooltip("predicted:Q", format="+.4f"),
            alt.Tooltip("exact:Q", format="+.4f"),
        ],
    )
    title = alt.TitleParams("Exact effects", subtitle=f"dashed: as predicted; {_correlation(dataset)}")
    return alt.layer(line, spread, points).properties(width=_SIZE, height=_SIZE, title=title), table


def agreement_figure(dataset: xr.Dataset, table: pd.DataFrame, *, group: str) -> Figure:
    """Give the scatter as a figure of a report."""
    return Figure(
        name=TABLE,
        title="Predicted and exact effects",
        caption=(
            "Each point was patched exactly: half of them are those ranked first, the others drawn at random. On the "
            f"dashed line the prediction is exact; bars are 95% intervals over pairs. {_correlation(dataset)}."
        ),
        draw=lambda **_options: agreement(dataset, table, group=group)[0],
        frame=table,
    )


def agreement_findings(dataset: xr.Dataset, table: pd.DataFrame) -> list[Finding]:
    """Say how attributions agree with exact effects, and what they missed."""
    missed = table[table["missed"]].sort_values("exact", key=np.abs, ascending=False)  # type: ignore[call-overload]
    names = ", ".join(missed["name"].head(_NAMED))
    lost = f"; missed: {names}" if len(missed) else "; no random one was missed"
    text = f"Exact effects of {len(table)} of them: {_correlation(dataset)}{lost}."
    return [Finding(text, position=0)]


def _correlation(dataset: xr.Dataset) -> str:
    value, low, high = (float(dataset[f"rank_correlation{part}"]) for part in ("", "_low", "_high"))
    return f"rank correlation of sizes {value:.2f} [{low:.2f}, {high:.2f}]"
