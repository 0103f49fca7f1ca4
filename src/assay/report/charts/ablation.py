"""Ablation: what is lost when one component at a time is replaced, layer by layer, and the strongest with intervals."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.charts.effects import TITLES, VARIANTS, data_set, require_metric, tabled, tooltip
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "ablation"
_FADED = 0.3
_DISCOVERY = 0.05
_STRONGEST = 20
_CELL = 16
_LINE = "#4c78a8"  # as the points: seen on light and on dark pages
_TOOLTIP = tooltip(
    "component",
    alt.Tooltip("q_value:Q", title="adjusted p", format=".2g"),
    alt.Tooltip("random_effect:Q", title="random direction", format="+.4f"),
)


def chart(dataset: xr.Dataset, *, metric: str = "loss_difference") -> alt.HConcatChart:
    """Draw an ablation scan, ready to show or save.

    Args:
        dataset: result of `assay.ablate`.
        metric: ``"loss_difference"``, ``"kl_from_clean"``, ``"top1_agreement"`` or ``"logit_difference"``.

    Returns:
        An Altair chart in the light theme: every component but single neurons by layer, and the strongest components
        with their intervals beside what a random direction does.

    Raises:
        BadInput: when `metric` is not known.
    """
    require_metric(metric)
    cells = frame(dataset)
    return finished(panel(cells, metric=metric), {_TABLE: cells})


def panel(cells: pd.DataFrame, *, metric: str) -> alt.HConcatChart:
    """Draw one metric from the table, without a configuration, to be put beside others."""
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.metric === '{metric}'")
    columns = list(dict.fromkeys(cells.sort_values("place")["column"]))
    named = [column for column in columns if column]
    layers = [_layers(base, cells, metric, named)] if named else []
    return alt.hconcat(*layers, _bars(base, metric))


def _layers(base: alt.Chart, cells: pd.DataFrame, metric: str, columns: list[str]) -> alt.Chart:
    own: Any = cells[(cells["metric"] == metric) & (cells["column"] != "")]
    sizes = np.abs(own["change"].to_numpy())
    reach = float(np.nanmax(sizes, initial=0.0)) or 1.0
    usual = min(max(float(np.nanmedian(sizes)), reach / 1000), reach)
    clear = f"!isValid(datum.q_value) || datum.q_value <= {_DISCOVERY}"
    fill = alt.Color(
        "change:Q",
        # logarithmic beyond a usual size: a few MLPs do more than all heads together
        scale=alt.Scale(type="symlog", constant=usual, domain=[-reach, reach], range="diverging", clamp=True),
        legend=alt.Legend(title=_legend(metric), format=".1~g", values=_decades(usual, reach)),
    )
    return (
        base.transform_filter("datum.column !== ''")
        .mark_rect()
        .encode(
            x=alt.X("column:O", sort=columns, title=None, axis=alt.Axis(orient="top", labelAngle=-90)),
            y=alt.Y("layer:O", title="block"),
            color=fill,
            opacity=alt.condition(clear, alt.value(1), alt.value(_FADED)),
            tooltip=_TOOLTIP,
        )
        .properties(
            width=alt.Step(_CELL),
            height=alt.Step(_CELL),
            title=alt.TitleParams(
                "By layer", subtitle=f"faded: not found at a false discovery rate of {_DISCOVERY}"
            ),
        )
    )


def _bars(base: alt.Chart, metric: str) -> Any:
    """The strongest components with their intervals, and what a random direction of the same size does."""
    ranked = (
        base.transform_calculate(size="abs(datum.change)")
        .transform_window(order="row_number()", sort=[alt.SortField("size", order="descending")])
        .transform_filter(f"datum.order <= {_STRONGEST}")
    )
    order = alt.EncodingSortField("size", op="max", order="descending")
    rows = alt.Y("component:N", sort=order, title=None)
    axis = alt.X("effect:Q", title=TITLES[metric], scale=alt.Scale(zero=True))
    spread = ranked.mark_rule(color=_LINE).encode(y=rows, x="effect_low:Q", x2="effect_high:Q")
    points = ranked.mark_point(filled=True, size=36).encode(y=rows, x=axis, tooltip=_TOOLTIP)
    compared = ranked.transform_filter("isValid(datum.random_effect)")
    random = compared.mark_tick(style="accent", thickness=2, size=10).encode(y=rows, x="random_effect:Q")
    return alt.layer(spread, points, random).properties(
        width=240,
        height=alt.Step(_CELL),
        title=alt.TitleParams(
            f"The {_STRONGEST} strongest", subtitle="line: 95% interval; tick: random direction"
        ),
    )


def _decades(usual: float, reach: float) -> list[float]:
    """Powers of ten up to the largest effect and both ways from zero, three at the most."""
    high = int(np.floor(np.log10(reach)))
    low = min(high, max(int(np.ceil(np.log10(usual))), high - 2))
    powers = [10.0**power for power in range(low, high + 1)]
    return [*(-power for power in reversed(powers)), 0.0, *powers]


def _legend(metric: str) -> str:
    return "top-1 agreement minus 1" if metric == "top1_agreement" else TITLES[metric]


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the scan as a figure of a report, one variant for each metric."""
    cells = frame(dataset)
    return [
        Figure(
            name=_TABLE,
            title="Ablation",
            caption=(
                f"Each component replaced by: {str(dataset.attrs['value']).replace('_', ' ')}; {data_set(dataset)}. "
                f"On the right the {_STRONGEST} strongest with their bootstrap intervals; a tick shows what a random "
                "direction of the same size does."
            ),
            draw=lambda metric: panel(cells, metric=metric),
            frame=cells,
            choice="metric",
            variants=VARIANTS,
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the scan out as one row for each metric and component.

    ``change`` is the effect as a distance from no effect; ``column`` is where the component stands in its layer, empty
    for single neurons, directions and edges.
    """
    statistics = ("effect", "effect_stderr", "effect_low", "effect_high", "p_value", "q_value")
    table = tabled(dataset, "component", ("layer", "kind", "index"), statistics)
    places = [
        _column(str(kind), int(i)) for kind, i in zip(table.pop("kind"), table.pop("index"), strict=True)
    ]
    table["column"], table["place"] = [name for name, _ in places], [place for _, place in places]
    table["change"] = table["effect"] - (table["metric"] == "top1_agreement")
    return table


def _column(kind: str, index: int) -> tuple[str, int]:
    """Name and place of a component's column: heads first, then the whole of a block's parts."""
    if kind in ("neuron", "direction", "edge"):
        return "", -1
    if kind == "head":
        return f"head {index}", index
    return kind, 1_000_000 + ["attention", "mlp", "layer"].index(kind)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say how many components the loss depends on, and on which the most."""
    cells = frame(dataset)
    own: Any = cells[cells["metric"] == "loss_difference"]
    row = own.loc[own["effect"].abs().idxmax()]
    found = int((own["q_value"] <= _DISCOVERY).sum())
    text = (
        f"{found} of {len(own)} components change the loss at a false discovery rate of {_DISCOVERY}; the most "
        f"{row['component']}, by {row['effect']:+.3g} nats a token"
    )
    if np.isfinite(row["effect_low"]):
        text += f" [{row['effect_low']:.3g}, {row['effect_high']:.3g}]"
    if "random_effect" in own:
        text += f"; a random direction of the same size, by {row['random_effect']:+.3g}"
    return [Finding(f"{text}.", block=int(row["layer"]))]
