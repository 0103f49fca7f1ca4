"""Layer surgery: each layer's loss by its place, operations on the middle, and random ones by how many and how far."""

from typing import Any

import altair as alt
import pandas as pd
import xarray as xr

from assay.activations.depth.operations import SCANS, SPANS
from assay.report.charts.effects import TITLES, VARIANTS, data_set, require_metric, tabled, tooltip
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "layer_surgery"
_TOOLTIP = tooltip(
    "surgery",
    alt.Tooltip("random_effect:Q", title="random change", format="+.4f"),
    alt.Tooltip("kendall_tau:Q", title="Kendall's tau", format=".2f"),
)
_COLOURS = alt.Scale(domain=list(SCANS), range=["#4c78a8", "#d1762b", "#2e8b6b"])
_ACROSS = {
    "drop": ("size", "layers dropped at random"),
    "reorder": ("kendall_tau", "Kendall's tau with the usual order"),
}


def chart(dataset: xr.Dataset, *, metric: str = "kl_from_clean") -> alt.VConcatChart:
    """Draw layer surgery, ready to show or save.

    Args:
        dataset: result of `assay.layer_surgery`.
        metric: ``"kl_from_clean"``, ``"loss_difference"``, ``"top1_agreement"`` or ``"logit_difference"``.

    Returns:
        An Altair chart in the light theme, one panel for each kind of operation there is.

    Raises:
        BadInput: when `metric` is not known.
    """
    require_metric(metric)
    cells = frame(dataset)
    return finished(panel(cells, metric=metric), {_TABLE: cells})


def panel(cells: pd.DataFrame, *, metric: str) -> alt.VConcatChart:
    """Draw one metric from the table, without a configuration, to be put beside others."""
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.metric === '{metric}'")
    present = set(cells["operation"])
    rows: list[Any] = []
    if scans := [operation for operation in SCANS if operation in present]:
        rows.append(_scan(base, metric, scans))
    lower = [_random(base, metric, operation) for operation in _ACROSS if operation in present]
    if present & set(SPANS):
        lower.insert(0, _spans(base, metric))
    if lower:
        rows.append(alt.hconcat(*lower))
    return alt.vconcat(*rows)


def _scan(base: alt.Chart, metric: str, present: list[str]) -> Any:
    """One line an operation, by layer, with intervals; ticks for random changes of the stream."""
    own = base.transform_filter(alt.FieldOneOfPredicate(field="operation", oneOf=list(SCANS)))
    colour = alt.Color("operation:N", scale=_COLOURS, legend=alt.Legend(title=None, values=present))
    across = alt.X(
        "layer:Q",
        title="layer (the first of a pair)",
        axis=alt.Axis(tickMinStep=1),
        scale=alt.Scale(nice=False, padding=8),
    )
    up = alt.Y("effect:Q", title=TITLES[metric], scale=alt.Scale(zero=True))
    spread = own.mark_rule(opacity=0.6).encode(x=across, y="effect_low:Q", y2="effect_high:Q", color=colour)
    line = own.mark_line(strokeWidth=1).encode(x=across, y=up, color=colour)
    points = own.mark_point(filled=True, size=36, opacity=1).encode(
        x=across, y=up, color=colour, tooltip=_TOOLTIP
    )
    compared = own.transform_filter("isValid(datum.random_effect)")
    random = compared.mark_tick(orient="horizontal", thickness=1.5, size=9).encode(
        x=across, y="random_effect:Q", color=colour
    )
    return alt.layer(line, spread, points, random).properties(
        width=560,
        height=220,
        title=alt.TitleParams(
            "One layer or pair at a time",
            subtitle="line: 95% interval; tick: a random change of the stream by as much",
        ),
    )


def _spans(base: alt.Chart, metric: str) -> Any:
    own = base.transform_filter(alt.FieldOneOfPredicate(field="operation", oneOf=list(SPANS)))
    rows = alt.Y("surgery:N", sort=None, title=None, axis=alt.Axis(labelLimit=220))
    axis = alt.X("effect:Q", title=TITLES[metric], scale=alt.Scale(zero=True))
    spread = own.mark_rule(color="#4c78a8").encode(y=rows, x="effect_low:Q", x2="effect_high:Q")
    points = own.mark_point(filled=True, size=36, color="#4c78a8").encode(y=rows, x=axis, tooltip=_TOOLTIP)
    compared = own.transform_filter("isValid(datum.random_effect)")
    random = compared.mark_tick(style="accent", thickness=2, size=10).encode(y=rows, x="random_effect:Q")
    return alt.layer(spread, points, random).properties(
        width=200, height=alt.Step(16), title="Many layers at once"
    )


def _random(base: alt.Chart, metric: str, operation: str) -> Any:
    """One point a draw, and the mean of the draws of a size."""
    field, title = _ACROSS[operation]
    own = base.transform_filter(f"datum.operation === '{operation}'")
    across = alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=False))
    up = alt.Y("effect:Q", title=TITLES[metric], scale=alt.Scale(zero=True))
    draws = own.mark_point(filled=True, size=18, opacity=0.5, color="#4c78a8").encode(
        x=across, y=up, tooltip=_TOOLTIP
    )
    means = own.transform_aggregate(effect="mean(effect)", at=f"mean({field})", groupby=["size"])
    line = means.mark_line(color="#d1762b", point=alt.OverlayMarkDef(color="#d1762b")).encode(
        x=alt.X("at:Q", title=title), y=up
    )
    heading = "Dropped at random" if operation == "drop" else "Order shuffled"
    return alt.layer(draws, line).properties(
        width=200, height=180, title=alt.TitleParams(heading, subtitle="points: draws; line: their mean")
    )


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the result as a figure of a report, one variant for each metric."""
    cells, told = frame(dataset), dataset.attrs
    return [
        Figure(
            name=_TABLE,
            title="Layer surgery",
            caption=(
                f"{len(dataset['surgery'])} courses through {told['n_layers']} layers; {data_set(dataset)}. "
                f"Layers side by side are {told['together']}. Lines are bootstrap intervals over inputs; ticks show "
                "what changing the stream by as much in a random direction does."
            ),
            draw=lambda metric: panel(cells, metric=metric),
            frame=cells,
            choice="metric",
            variants=VARIANTS,
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the result out as one row for each metric and surgery."""
    coordinates = ("operation", "layer", "size", "draw", "kendall_tau")
    return tabled(dataset, "surgery", coordinates, ("effect", "effect_low", "effect_high"))


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which layer the model can least do without, and how many it can do without."""
    cells = frame(dataset)
    found = []
    for operation, what in (
        ("delete", "Leaving out"),
        ("swap", "Exchanging with the next"),
        ("repeat", "Repeating"),
    ):
        own: Any = cells[(cells["metric"] == "kl_from_clean") & (cells["operation"] == operation)]
        if own.empty:
            continue
        row = own.loc[own["effect"].idxmax()]
        agreement: Any = cells[(cells["metric"] == "top1_agreement") & (cells["operation"] == operation)]
        text = (
            f"{what} layer {int(row['layer'])} changes the model most, by {row['effect']:.3g} nats a token (KL); the "
            f"median layer by {own['effect'].median():.3g}, which keeps {agreement['effect'].median():.0%} of the "
            "most probable tokens."
        )
        found.append(Finding(text, position=0, block=int(row["layer"])))
    return found
