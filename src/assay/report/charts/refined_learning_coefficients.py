"""Refined learning coefficients: one row a part, beside as many weights at random."""

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "refined_learning_coefficients"
_ROW = 26
_PANELS = {"value": "refined learning coefficient", "share": "share of the part's weights / 2"}
_KINDS = alt.Scale(domain=["part", "random weights"], range=["#4c78a8", "#d1762b"])


def chart(dataset: xr.Dataset) -> alt.HConcatChart:
    """Draw the estimate of each part, and what share it is of half the part's weights, ready to show or save.

    Args:
        dataset: result of `assay.refined_learning_coefficients`.

    Returns:
        An Altair chart in the light theme.
    """
    cells = frame(dataset)
    return finished(panel(cells), {_TABLE: cells})


def panel(cells: pd.DataFrame) -> alt.HConcatChart:
    """Draw both panels from the table, without a configuration, to be put beside others."""
    parts = list(dict.fromkeys(cells["part"]))
    return alt.hconcat(*(_dots(name, parts, first=name == "value") for name in _PANELS), spacing=12)


def _dots(name: str, parts: list[str], *, first: bool) -> alt.LayerChart:
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"isValid(datum.{name})")
    down = alt.Y("part:N", sort=parts, title=None, axis=alt.Axis(labels=first, labelLimit=220))
    apart = alt.YOffset("kind:N", sort=["part", "random weights"])
    colour = alt.Color("kind:N", scale=_KINDS, legend=alt.Legend(title=None) if first else None)
    scale, title = alt.Scale(zero=True), _PANELS[name]
    tooltip = [
        alt.Tooltip("part:N"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("value:Q", title="LLC", format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("parameters:Q", title="weights", format=","),
    ]
    low, high = ("low", "high") if name == "value" else ("share_low", "share_high")
    bars = base.mark_rule().encode(
        x=alt.X(f"{low}:Q", title=title, scale=scale), x2=f"{high}:Q", y=down, yOffset=apart, color=colour
    )
    dots = base.mark_point(filled=True, size=36, opacity=1).encode(
        x=alt.X(f"{name}:Q", title=title, scale=scale), y=down, yOffset=apart, color=colour, tooltip=tooltip
    )
    layers: list[alt.Chart] = [bars, dots]
    return alt.LayerChart(layer=layers).properties(width=300, height=_ROW * len(parts))


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give both panels as one figure of a report."""
    cells = frame(dataset)
    beside = "as many weights at random, drawn from the whole module" if "baseline_llc" in dataset else "none"
    return [
        Figure(
            name=_TABLE,
            title="Refined learning coefficients",
            caption=(
                "The learning coefficient in the weights of one part, the others held, with its 95% interval; and what "
                "share it is of half the number of its weights, which it would be if no direction were degenerate. "
                f"Beside each part: {beside}. A part without a point is one in whose weights the anchor is no minimum."
            ),
            draw=lambda: panel(cells),
            frame=cells,
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the estimates out as one row for each part, and for the weights at random beside it."""
    tables = list[pd.DataFrame]()
    for prefix, kind in (("", "part"), ("baseline_", "random weights")):
        if f"{prefix}llc" not in dataset:
            continue
        size = dataset["parameters"].values
        value, low, high = (dataset[f"{prefix}llc{end}"].values for end in ("", "_low", "_high"))
        columns = {"part": dataset["part"].values.astype(str), "kind": kind, "parameters": size}
        columns |= {"value": value, "low": low, "high": high}
        columns |= {"share": 2 * value / size, "share_low": 2 * low / size, "share_high": 2 * high / size}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which part is the most and which the least degenerate for its size."""
    cells = frame(dataset)
    own = [row for row in cells.to_dict("records") if row["kind"] == "part" and np.isfinite(row["share"])]
    own.sort(key=lambda row: row["share"])
    if len(own) < 2:
        return []
    return [
        Finding(
            f"{extreme} degenerate for its size: {row['part']}, {row['value']:.3g} "
            f"[{row['low']:.3g}, {row['high']:.3g}] of {row['parameters'] / 2:g} at most."
        )
        for extreme, row in (("Most", own[0]), ("Least", own[-1]))
    ]
