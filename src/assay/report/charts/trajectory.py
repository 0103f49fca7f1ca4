"""Trajectory: loss and learning coefficient over training, with intervals, their changes, and the LLC around drops."""

from typing import Literal

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished, records

_CURVES, _AROUND = "trajectory", "trajectory_around"
_WIDTH, _HEIGHT = 560, 150
_LOG = (30.0, 1e6)  # a loss that spans a factor between these is drawn on a logarithmic scale
_BLUE, _GREY = "#0072b2", "#808080"


def chart(
    dataset: xr.Dataset, *, part: Literal["curves", "around"] = "curves"
) -> alt.VConcatChart | alt.LayerChart:
    """Draw a trajectory, ready to show or save.

    Args:
        dataset: result of `assay.trajectory`.
        part: ``"curves"`` for loss and LLC over training, ``"around"`` for the mean LLC around a drop in loss.

    Returns:
        An Altair chart in the light theme.
    """
    if part == "around":
        return finished(around(dataset), {_AROUND: around_frame(dataset)})
    return finished(curves(dataset), {_CURVES: frame(dataset)})


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give both pictures as figures of a report; that of drops only where there are some."""
    one = "run" not in dataset.sizes
    drawn = [
        Figure(
            name=_CURVES,
            title="Loss and learning coefficient over training",
            caption=(
                "Loss over all of the data, and the learning coefficient "
                f"{'with its 95% interval' if one else 'of every run (thin) with their median (thick)'}. Triangles: "
                f"change points, pointing the way the curve goes. {_minima(dataset, one)} "
                f"Dashed: known coefficients, where there are any. {_sentence(dataset)}"
            ),
            draw=lambda **_options: curves(dataset),
            frame=frame(dataset),
        )
    ]
    if int(dataset["drops"]):
        drawn.append(
            Figure(
                name=_AROUND,
                title="The learning coefficient around a drop in loss",
                caption=(
                    f"Mean over {'drops' if one else 'runs'} of the LLC less its level before the drop, with the 95% "
                    f"interval; grey: the same with {'shifted curves' if one else 'the LLC of other runs'}."
                ),
                draw=lambda **_options: around(dataset),
                frame=around_frame(dataset),
            )
        )
    return drawn


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say how drops in loss and rises of the LLC are aligned, beside chance."""
    return [Finding(_sentence(dataset), position=0)] if int(dataset["drops"]) else []


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay both curves out as one row for each run and step."""
    whole = dataset if "run" in dataset.sizes else dataset.expand_dims("run")
    runs, steps = (whole.sizes[dim] for dim in ("run", "step"))
    names = ("loss", "llc", "llc_low", "llc_high", "at_minimum", "loss_change", "llc_change")
    columns = {name: whole[name].transpose("run", "step").to_numpy().ravel() for name in names}
    return pd.DataFrame(
        {"run": np.repeat(np.arange(runs), steps), "step": np.tile(whole["step"].to_numpy(), runs), **columns}
    )


def around_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the mean courses around drops out as one row for each curve and lag."""
    kinds = {"llc_around_drop": "LLC", "baseline_llc_around_drop": "chance"}
    rows = [
        pd.DataFrame(
            {
                "curve": label,
                "lag": dataset["lag"].to_numpy(),
                **{part: dataset[f"{name}{part}"].to_numpy() for part in ("_low", "_high")},
                "value": dataset[name].to_numpy(),
            }
        )
        for name, label in kinds.items()
    ]
    return pd.concat(rows, ignore_index=True).rename(columns={"_low": "low", "_high": "high"})


def curves(dataset: xr.Dataset) -> alt.VConcatChart:
    """Draw the loss above the LLC, without a configuration; see `chart`."""
    table = frame(dataset)
    values = table["loss"].to_numpy()
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    # a loss that ends at zero to the last bit would leave its steps no room on a logarithmic scale
    wide = low > 0 and _LOG[0] < high / low < _LOG[1]
    scale = alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False)
    upper = _curve(dataset, "loss", "loss", scale)
    lower = _curve(dataset, "llc", "learning coefficient", alt.Scale(domain=_domain(dataset), clamp=True))
    title = alt.Title("Loss and learning coefficient over training", subtitle=_sentence(dataset))
    return alt.vconcat(upper, lower, spacing=8).properties(title=title)


def _domain(dataset: xr.Dataset) -> list[float]:
    """Give the range of the LLC's axis, without the outermost hundredths of its intervals."""
    known = dataset["known"].to_numpy() if "known" in dataset else np.zeros(0)
    lower, upper = (dataset[name].to_numpy().ravel() for name in ("llc_low", "llc_high"))
    finite = np.isfinite(lower) & np.isfinite(upper)
    if not finite.any():
        return [0.0, 1.0]
    low = float(np.append(known, np.quantile(lower[finite], 0.01)).min())
    high = float(np.append(known, np.quantile(upper[finite], 0.99)).max())
    margin = 0.05 * (high - low) or 1.0
    return [low - margin, high + margin]


def _curve(dataset: xr.Dataset, name: str, title: str, scale: alt.Scale) -> alt.LayerChart:
    """Draw one curve: band, line, points where the LLC can be read, change points, known values."""
    one = "run" not in dataset.sizes
    steps = dataset["step"].to_numpy()
    base = alt.Chart(alt.NamedData(name=_CURVES))
    x = alt.X(
        "step:Q",
        title="step of training" if name == "llc" else None,
        scale=alt.Scale(domain=[float(steps[0]), float(steps[-1])], nice=False),
    )
    y = alt.Y(f"{name}:Q", title=title, scale=scale, axis=alt.Axis(grid=True, minExtent=44))
    told = [alt.Tooltip(f"{each}:Q", format=".4g") for each in ("step", "loss", "llc", "llc_low", "llc_high")]
    layers: list[alt.Chart] = []
    if name == "llc":
        if "known" in dataset:
            rows = pd.DataFrame({"known": dataset["known"].to_numpy()})
            lines = alt.Chart(alt.InlineData(values=records(rows)))
            layers.append(
                lines.mark_rule(style="cursor", strokeDash=[6, 4]).encode(y=alt.Y("known:Q", scale=scale))
            )
        if one:
            layers.append(
                base.mark_area(opacity=0.25, color=_BLUE).encode(
                    x=x, y=alt.Y("llc_low:Q", scale=scale), y2="llc_high:Q"
                )
            )
    if one:
        marked = base.transform_filter(f"datum.{name}_change != 0")
        layers.append(marked.mark_rule(opacity=0.35, color=_GREY).encode(x=x))
    blue, grey = alt.value(_BLUE), alt.value(_GREY)
    if one:
        layers.append(base.mark_line(strokeWidth=1.4).encode(x=x, y=y, color=blue))
    else:
        thin = base.mark_line(strokeWidth=0.6, opacity=0.35)
        layers.append(thin.encode(x=x, y=y, color=grey, detail="run:N"))
        median = alt.Y(f"median({name}):Q", title=title, scale=scale)
        layers.append(base.mark_line(strokeWidth=1.6).encode(x=x, y=median, color=blue))
    if name == "llc" and one:
        read = base.mark_point(size=14, strokeWidth=1)
        fill = alt.condition("datum.at_minimum", blue, alt.value("transparent"))
        layers.append(read.encode(x=x, y=y, color=blue, fill=fill, tooltip=told))
    for sign, shape in (("<", "triangle-down"), (">", "triangle-up")):
        marked = base.transform_filter(f"datum.{name}_change {sign} 0")
        mark = marked.mark_point(shape=shape, style="accent", filled=True, size=60 if one else 22)
        layers.append(mark.encode(x=x, y=y, tooltip=[*told, alt.Tooltip(f"{name}_change:Q", format="+.3g")]))
    return alt.LayerChart(layer=layers).properties(
        width=_WIDTH, height=_HEIGHT if name == "loss" else 1.5 * _HEIGHT
    )


def around(dataset: xr.Dataset) -> alt.LayerChart:
    """Draw the mean course of the LLC around a drop beside chance, without a configuration; see `chart`."""
    base = alt.Chart(alt.NamedData(name=_AROUND))
    colour = alt.Color("curve:N", title=None, scale=alt.Scale(domain=["LLC", "chance"], range=[_BLUE, _GREY]))
    x = alt.X("lag:Q", title="checkpoints after the drop in loss", scale=alt.Scale(nice=False))
    band = base.mark_area(opacity=0.2).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    line = base.mark_line().encode(
        x=x,
        y=alt.Y("value:Q", title="LLC less its level before", axis=alt.Axis(grid=True)),
        color=colour,
        strokeDash=alt.StrokeDash(
            "curve:N", title=None, scale=alt.Scale(domain=["LLC", "chance"], range=[[1, 0], [4, 3]])
        ),
    )
    title = alt.Title("The learning coefficient around a drop in loss", subtitle=_sentence(dataset))
    return alt.LayerChart(layer=[band, line]).properties(width=_WIDTH, height=1.5 * _HEIGHT, title=title)


def _minima(dataset: xr.Dataset, one: bool) -> str:
    """Say at which checkpoints the number is no learning coefficient; of several runs only how many these are."""
    share = float((~dataset["at_minimum"]).mean())
    if not share:
        return "Every checkpoint is a minimum."
    which = "Hollow points" if one else "Not told apart here"
    return f"{which}: the {share:.0%} of checkpoints that are no minimum, where the number is no learning coefficient."


def _sentence(dataset: xr.Dataset) -> str:
    count = int(dataset["drops"])
    if not count:
        return "No drop in loss was found."
    share, low, high, chance, p = (
        float(dataset[name])
        for name in ("alignment", "alignment_low", "alignment_high", "baseline_alignment", "alignment_p")
    )
    aligned = f"{share:.0%} [{low:.0%}, {high:.0%}] of {count} drops in loss come with a rise in LLC"
    if "run" in dataset.sizes:
        return f"{aligned}; {chance:.0%} by chance (p = {p:.2g})."
    return f"{aligned}; one run is no test of chance."
