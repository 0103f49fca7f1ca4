"""One look for every chart: type, colours safe for colour-blind readers, light and dark."""

from collections.abc import Mapping
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd

Mode = Literal["light", "dark"]
MODES: tuple[Mode, Mode] = ("light", "dark")

FONT = "DejaVu Sans, Verdana, Segoe UI, sans-serif"
ACCENT = {"light": "#b84a00", "dark": "#ffb454"}
"""What a reader should look at: answers, subjects, surprises. Orange stays apart from blues and greens."""
CURSOR = {"light": "#d6006c", "dark": "#ff7ac2"}
"""The marked token and layer; darker or lighter than every neighbour in either ramp."""

# Monotone in lightness, so that they survive grey printing and every kind of colour blindness; the low end
# fades into the page in both modes.
_SEQUENTIAL = {
    "light": ["#f7fbf2", "#d3ead6", "#9ed3c7", "#5db1bf", "#3287b3", "#285a9c", "#20306e"],
    "dark": ["#1b1d2e", "#3b2f63", "#3b528b", "#2c7a8e", "#21a685", "#7ad151", "#fde725"],
}
_DIVERGING = {
    "light": ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbb5", "#ef8a3c", "#b35806"],
    "dark": ["#7cc0ff", "#3f7fc0", "#25456b", "#22252b", "#6b4420", "#c9792b", "#ffb454"],
}
_INK = {"light": "#1d2430", "dark": "#e4e8ef"}
_FAINT = {"light": "#6a7280", "dark": "#98a1b0"}
_EDGE = {"light": "#d8dde4", "dark": "#343a44"}
_PAGE = {"light": "#ffffff", "dark": "#14171c"}
_SIGNIFICANT_DIGITS = 6


def config(mode: Mode) -> dict[str, Any]:
    """Give the Vega-Lite configuration shared by all charts.

    Args:
        mode: ``"light"`` (also for paper) or ``"dark"``.

    Returns:
        A configuration object for ``chart.configure`` or for the page's embed options.
    """
    ink, faint, accent, cursor = _INK[mode], _FAINT[mode], ACCENT[mode], CURSOR[mode]
    return {
        "aria": False,  # a label on each of thousands of cells drowns a screen reader; figures have tables
        "background": _PAGE[mode],
        "font": FONT,
        "axis": {
            "labelColor": ink, "titleColor": faint, "labelFontSize": 9, "titleFontSize": 10,
            "titleFontWeight": "normal", "domain": False, "ticks": False, "grid": False, "labelPadding": 3,
        },
        "legend": {
            "labelColor": ink, "titleColor": faint, "labelFontSize": 9, "titleFontSize": 10,
            "titleFontWeight": "normal", "gradientThickness": 8, "gradientLength": 160,
            "orient": "bottom", "direction": "horizontal", "titleLimit": 320, "offset": 8,
        },
        "title": {
            "color": ink, "subtitleColor": faint, "fontSize": 13, "subtitleFontSize": 10,
            "anchor": "start", "fontWeight": "bold", "offset": 10,
        },
        "view": {"stroke": _EDGE[mode]},
        "concat": {"spacing": 28},
        "range": {"heatmap": _SEQUENTIAL[mode], "ramp": _SEQUENTIAL[mode], "diverging": _DIVERGING[mode]},
        "style": {
            "token": {"font": FONT, "fontSize": 9},
            "accent": {"color": accent, "opacity": 1},
            "accent-outline": {"color": accent, "strokeWidth": 1.6},
            "cursor": {"color": cursor, "strokeWidth": 1.8},
        },
    }  # fmt: skip


def finished(chart: Any, tables: Mapping[str, pd.DataFrame], mode: Mode = "light") -> Any:
    """Give the chart its rows and the shared look, ready to show or to save.

    Args:
        chart: an Altair chart whose marks name the tables they draw.
        tables: name -> rows.
        mode: ``"light"`` or ``"dark"``.

    Returns:
        A copy of the chart with rows and configuration.
    """
    dressed = chart.copy(deep=False)
    dressed.datasets = {name: records(frame) for name, frame in tables.items()}
    dressed.config = alt.Config(**config(mode))
    return dressed


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Write a table as JSON-safe rows: six significant digits, ``None`` for what is not a finite number."""
    columns = {str(name): plain_values(frame[name].to_numpy()) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def plain_values(values: np.ndarray) -> list[Any]:
    """Write one column as JSON-safe values: six significant digits, ``None`` for what is not finite."""
    if values.dtype.kind == "f":
        return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if np.isfinite(value) else None for value in values]
    return values.tolist()
