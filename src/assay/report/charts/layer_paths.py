"""Layer paths: how shallow the model can be beside how deep it must be, and the lengths that carry the gradient."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.charts.effects import TITLES, VARIANTS, data_set, require_metric, tabled, tooltip
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_DEPTHS, _BOUNDS, _LENGTHS = "layer_paths", "layer_paths_bounds", "layer_paths_lengths"
_TICKS = [0, 0.1, 0.3, 1, 3, 10, 30, 100]
_KINDS = alt.Scale(
    domain=["gradient", "untrained twin's gradient", "number of paths"],
    range=["#4c78a8", "#d1762b", "#8a919c"],
)


def chart(dataset: xr.Dataset, *, metric: str = "kl_from_clean") -> alt.HConcatChart:
    """Draw both sides of the argument about depth, ready to show or save.

    Args:
        dataset: result of `assay.layer_paths`.
        metric: ``"kl_from_clean"``, ``"loss_difference"``, ``"top1_agreement"`` or ``"logit_difference"``.

    Returns:
        An Altair chart in the light theme: the metric against how many blocks may work in a row, with the bounds that
        the horizon sets, and the share of the gradient that paths of each length carry.

    Raises:
        BadInput: when `metric` is not known.
    """
    require_metric(metric)
    tables = {_DEPTHS: frame(dataset), _BOUNDS: _bounds(dataset), _LENGTHS: _lengths(dataset)}
    drawn = alt.hconcat(panel(metric=metric), _length_panel()).resolve_scale(color="independent")
    return finished(drawn, tables)


def panel(*, metric: str) -> Any:
    """Draw one metric against the depth, and the bounds of the horizon, without a configuration."""
    base = alt.Chart(alt.NamedData(name=_DEPTHS)).transform_filter(f"datum.metric === '{metric}'")
    across = alt.X("depth:Q", title="blocks in a row, at most", scale=alt.Scale(nice=False, padding=8))
    kind: dict[str, Any] = (
        {"type": "symlog", "constant": 0.1} if metric == "kl_from_clean" else {"zero": True}
    )
    axis = (
        alt.Axis(values=_TICKS, format=".2~r", labelOverlap=False)
        if metric == "kl_from_clean"
        else alt.Axis()
    )
    up = alt.Y("effect:Q", title=TITLES[metric], scale=alt.Scale(**kind), axis=axis)
    band = base.mark_rule(color="#4c78a8", opacity=0.6).encode(x=across, y="effect_low:Q", y2="effect_high:Q")
    line = base.mark_line(color="#4c78a8", strokeWidth=1).encode(x=across, y=up)
    points = base.mark_point(color="#4c78a8", filled=True, size=30, opacity=1).encode(
        x=across, y=up, tooltip=tooltip("depth")
    )
    bounds = alt.Chart(alt.NamedData(name=_BOUNDS))
    rules = bounds.mark_rule(style="accent", strokeDash=[4, 3], strokeWidth=1.5).encode(x="bound:Q")
    labels = bounds.mark_text(align="left", dx=4, fontSize=9).encode(
        x="bound:Q", text="label:N", y=alt.value(10), yOffset=alt.value(0)
    )
    return alt.layer(band, line, points, rules, labels).properties(
        width=380,
        height=260,
        title=alt.TitleParams(
            "How deep it must be, how shallow it can", subtitle="dashed: at least so many, by the horizon"
        ),
    )


def _length_panel(width: int = 300) -> Any:
    base = alt.Chart(alt.NamedData(name=_LENGTHS))
    across = alt.X("length:Q", title="blocks on the path", scale=alt.Scale(nice=False, padding=8))
    up = alt.Y("share:Q", title="share")
    colour = alt.Color("kind:N", scale=_KINDS, legend=alt.Legend(title=None, columns=1))
    spread = base.mark_rule(opacity=0.6).encode(x=across, y="low:Q", y2="high:Q", color=colour)
    told = [
        alt.Tooltip("length:Q", title="blocks"),
        alt.Tooltip("share:Q", title="share", format="+.4f"),
        alt.Tooltip("kind:N", title="of"),
    ]
    line = base.mark_line(point=alt.OverlayMarkDef(size=16), strokeWidth=1).encode(
        x=across, y=up, color=colour, tooltip=told
    )
    return alt.layer(spread, line).properties(width=width, height=260, title="Paths by length")


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the result as two figures of a report: depth with one variant a metric, and paths by length."""
    bounds = _bounds(dataset)

    def draw(metric: str) -> Any:
        drawn = panel(metric=metric)
        drawn.datasets = {_BOUNDS: bounds.to_dict("records")}
        return drawn

    return [
        Figure(
            name=_DEPTHS,
            title="Depth that is enough, and depth that is needed",
            caption=(
                f"The model in which at most so many blocks work in a row; {data_set(dataset)}. Dashed: how many "
                "blocks a signal of the first block must pass if each reads no farther back than the layer horizon."
            ),
            draw=draw,
            frame=frame(dataset),
            choice="metric",
            variants=VARIANTS,
        ),
        Figure(
            name=_LENGTHS,
            title="Paths by length",
            caption="The size of the loss gradient at the embedding that paths of each length carry, of their sum.",
            draw=lambda: _length_panel(220),
            frame=_lengths(dataset),
        ),
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the shallow model out as one row for each metric and depth."""
    return tabled(dataset, "depth", (), ("effect", "effect_low", "effect_high"))


def _bounds(dataset: xr.Dataset) -> pd.DataFrame:
    """One row for each bound; tolerances that set the same one share it."""
    table = pd.DataFrame({"bound": dataset["lower_bound"].values, "within": dataset["within"].values})
    joined: Any = table.groupby("bound")["within"].apply(
        lambda some: " or ".join(f"{value:g}" for value in some)
    )
    return pd.DataFrame(
        {"bound": joined.index.to_numpy(), "label": [f"within {text} nats" for text in joined]}
    )


def _lengths(dataset: xr.Dataset) -> pd.DataFrame:
    tables = []
    for kind, name in (
        ("gradient", "gradient_share"),
        ("untrained twin's gradient", "baseline_gradient_share"),
        ("number of paths", "path_share"),
    ):
        if name in dataset:
            table: dict[str, Any] = {"length": dataset["length"].values, "kind": kind}
            table["share"] = dataset[name].values
            for end in ("low", "high"):
                known = f"{name}_{end}" in dataset
                table[end] = dataset[f"{name}_{end}"].values if known else np.nan
            tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say for each tolerance how many blocks in a row are needed and enough, and what carries the gradient."""
    found = []
    for within in dataset["within"].values:
        own = dataset.sel(within=within)
        found.append(
            Finding(
                f"To stay within {within:g} nats a token the horizon ({float(own['smallest_horizon']):.0f}) demands "
                f"{float(own['lower_bound']):.0f} blocks in a row or more; {float(own['depth_enough']):.0f} are "
                "enough.",
                position=0,
            )
        )
    mean, usual = (
        float((dataset["length"] * dataset[name]).sum()) for name in ("gradient_share", "path_share")
    )
    found.append(
        Finding(
            f"The gradient is carried by paths of {mean:.1f} blocks on average, where a path has {usual:g}; what the "
            f"lengths carry adds up to {float(dataset['cancellation']):,.1f} times what is left of it.",
            position=0,
        )
    )
    return found
