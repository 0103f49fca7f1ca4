"""The calibration plane: the estimate at every step size and temperature, the plateau marked."""

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.charts.learning_coefficient import truth_line
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_PLANE = "calibrate"
_WIDTH, _HEIGHT = 460, 240
_ROOM = 0.03  # of the axis of step sizes, beside the outermost marks


def chart(dataset: xr.Dataset, *, truth: float | None = None) -> alt.LayerChart:
    """Draw the estimate over step size, a line for each temperature, ready to show or save.

    Args:
        dataset: result of `assay.calibrate`.
        truth: a known learning coefficient, drawn as a dashed line.

    Returns:
        An Altair chart in the light theme.
    """
    return finished(panel(dataset, truth=truth), {_PLANE: frame(dataset)})


def panel(dataset: xr.Dataset, *, truth: float | None = None) -> alt.LayerChart:
    """Draw the plane from its table without a configuration; see `chart`."""
    llc = dataset["llc"].to_numpy()
    steady = llc[dataset["plateau"].to_numpy()]
    shown = steady if steady.size else llc[np.isfinite(llc)]
    top = 1.5 * float(shown.max()) if shown.size else 1.0
    x = _across(dataset["step_size"].to_numpy())
    scale = alt.Scale(domain=[0, max(top, 0.0 if truth is None else 1.2 * truth)], clamp=True)
    y = alt.Y("llc:Q", title="estimate", scale=scale, axis=alt.Axis(titlePadding=12))
    color = alt.Color("n_beta:O", title="nβ", scale=alt.Scale(scheme="viridis"))
    base = alt.Chart(alt.NamedData(name=_PLANE)).transform_filter("isValid(datum.llc)")
    tips = [
        alt.Tooltip(name, format=".4g") for name in ("step_size:Q", "n_beta:Q", "llc:Q", "raw:Q", "r_hat:Q")
    ]
    layers = [
        base.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=color),
        base.mark_line(strokeWidth=1, strokeDash=[2, 3], opacity=0.7).encode(
            x=x, y=alt.Y("raw:Q", scale=scale), color=color
        ),
        base.transform_filter("datum.plateau")
        .mark_rule(strokeWidth=1.5)
        .encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color),
        base.transform_filter("!datum.plateau")
        .mark_point(size=35)
        .encode(x=x, y=y, color=color, tooltip=tips),
        base.transform_filter("datum.plateau")
        .mark_point(size=60, filled=True, opacity=1)
        .encode(x=x, y=y, color=color, tooltip=tips),
        *truth_line(truth, scale),
    ]
    title = alt.Title("Calibration plane", subtitle=_sentence(dataset))
    return alt.LayerChart(layer=layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def _across(steps: Any) -> alt.X:
    """The axis of step sizes: with room for a mark at either end, and ticks at 1, 2 and 5 times powers of ten."""
    low, high = float(steps.min()), float(steps.max())
    room = max(1.15, (high / low) ** _ROOM)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return alt.X(
        "step_size:Q",
        title="step size ε",
        scale=alt.Scale(type="log", nice=False, domain=[low / room, high * room]),
        axis=alt.Axis(format="~e", values=[tick for tick in ticks if low / room <= tick <= high * room]),
    )


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the plane as a figure of a report."""
    return [
        Figure(
            name=_PLANE,
            title="Calibration plane",
            caption=(
                "The estimate at every step size, a line for each temperature; dotted: before the bias of the step "
                f"size is subtracted. Filled points with intervals are on the plateau. {_sentence(dataset)}."
            ),
            draw=lambda **_options: panel(dataset),
            frame=frame(dataset),
        )
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say for each temperature where its plateau lies."""
    found: list[Finding] = []
    for n_beta in dataset["n_beta"].values:
        own = dataset.sel(n_beta=n_beta)
        on = own["step_size"].values[own["plateau"].values]
        if not len(on):
            found.append(Finding(f"At nβ = {n_beta:.4g} there is no plateau."))
            continue
        value, low, high = (float(own[f"llc_plateau{part}"]) for part in ("", "_low", "_high"))
        steady = own["llc"].values[own["plateau"].values]
        between = f"with estimates from {steady.min():.4g} to {steady.max():.4g}"
        found.append(
            Finding(
                f"At nβ = {n_beta:.4g} the plateau lies at λ̂ = {value:.4g} [{low:.4g}, {high:.4g}], {between} at "
                f"{len(on)} step sizes from {on[0]:.2g} to {on[-1]:.2g}."
            )
        )
    return found


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the plane out as one row for each setting."""
    names = {
        "llc": "llc",
        "low": "llc_low",
        "high": "llc_high",
        "raw": "llc_raw",
        "r_hat": "r_hat",
        "plateau": "plateau",
    }
    steps, betas = (dataset[name].to_numpy() for name in ("step_size", "n_beta"))
    columns = {
        name: dataset[variable].transpose("step_size", "n_beta").to_numpy().ravel()
        for name, variable in names.items()
    }
    return pd.DataFrame(
        {
            "step_size": np.repeat(steps, len(betas)),
            "n_beta": np.tile(np.round(betas, 1), len(steps)),
            **columns,
        }
    )


def _sentence(dataset: xr.Dataset) -> str:
    steady = dataset["plateau"]
    if not bool(steady.any()):
        return "No setting is on the plateau"
    levels = dataset["llc_plateau"].dropna("n_beta")
    said = f"{int(steady.sum())} of {steady.size} settings are on the plateau"
    ends = [levels.isel(n_beta=place) for place in (0, -1)]
    each = [f"{float(level):.4g} at nβ = {float(level['n_beta']):.4g}" for level in ends]
    return f"{said}: {each[0]}" if len(levels) == 1 else f"{said}: {each[0]}, {each[1]}"
