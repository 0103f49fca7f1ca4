"""Layer horizon: what forgetting costs by reach, how norms grow, and the horizon measured and predicted."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.charts.effects import TITLES, VARIANTS, data_set, require_metric, tabled, tooltip
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_REACH, _NORMS, _HORIZONS = "layer_horizon", "layer_horizon_norms", "layer_horizon_compared"
_TOOLTIP = tooltip("horizon", alt.Tooltip("forgotten:N", title="forgotten"))
_FAR, _RANDOM = "the far", "as many at random"
_KINDS = alt.Scale(domain=[_FAR, _RANDOM], range=["#4c78a8", "#d1762b"])
_PLACES = alt.Scale(domain=["others", "position 0"], range=["#4c78a8", "#d1762b"])
_STEP, _BESIDE = alt.Step(16), 380
"""Heights of small panels: one below the other, and beside the large one on a page."""
_SOURCES = alt.Scale(domain=["measured", "from norm growth"], range=["#4c78a8", "#d1762b"])


def chart(dataset: xr.Dataset, *, metric: str = "kl_from_clean") -> alt.HConcatChart:
    """Draw a layer horizon, ready to show or save.

    Args:
        dataset: result of `assay.layer_horizon`.
        metric: ``"kl_from_clean"``, ``"loss_difference"``, ``"top1_agreement"`` or ``"logit_difference"``.

    Returns:
        An Altair chart in the light theme: the metric against the reach beside that of random sources, the norms of the
        stream, and the horizon at each tolerance, measured and predicted.

    Raises:
        BadInput: when `metric` is not known.
    """
    require_metric(metric)
    cells, norms, compared = frame(dataset), _norms(dataset), _compared(dataset)
    right = alt.vconcat(_norm_panel(), _compared_panel()).resolve_scale(color="independent")
    drawn = alt.hconcat(panel(cells, metric=metric), right).resolve_scale(color="independent")
    return finished(drawn, {_REACH: cells, _NORMS: norms, _HORIZONS: compared})


def panel(cells: pd.DataFrame, *, metric: str) -> Any:
    """Draw one metric against the reach, without a configuration, to be put beside others."""
    base = alt.Chart(alt.NamedData(name=_REACH)).transform_filter(f"datum.metric === '{metric}'")
    across = alt.X("horizon:Q", title="steps back that are read (k)", scale=alt.Scale(nice=False, padding=8))
    up = alt.Y("effect:Q", title=TITLES[metric], scale=alt.Scale(zero=True))
    colour = alt.Color("forgotten:N", scale=_KINDS, legend=alt.Legend(title="forgotten"))
    spread = base.mark_rule(opacity=0.6).encode(x=across, y="effect_low:Q", y2="effect_high:Q", color=colour)
    line = base.mark_line(strokeWidth=1).encode(x=across, y=up, color=colour)
    points = base.mark_point(filled=True, size=30, opacity=1).encode(
        x=across, y=up, color=colour, tooltip=_TOOLTIP
    )
    return alt.layer(line, spread, points).properties(
        width=380, height=380, title="Forgetting what is farther than k"
    )


def _norm_panel(height: int = 130) -> Any:
    base = alt.Chart(alt.NamedData(name=_NORMS))
    across = alt.X("layer:Q", title="entering block", scale=alt.Scale(nice=False, padding=8))
    up = alt.Y("norm:Q", title="mean norm", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    colour = alt.Color("place:N", scale=_PLACES, legend=alt.Legend(title="positions"))
    line = base.mark_line(point=alt.OverlayMarkDef(size=14)).encode(x=across, y=up, color=colour)
    return line.properties(width=220, height=height, title="Norm of the residual stream")


def _compared_panel(height: int | alt.Step = _STEP) -> Any:
    base = alt.Chart(alt.NamedData(name=_HORIZONS))
    rows = alt.Y("tolerance:O", title="tolerance (KL, nats)", sort="descending")
    offset = alt.YOffset("source:N", scale=alt.Scale(domain=["measured", "from norm growth"]))
    colour = alt.Color("source:N", scale=_SOURCES, legend=alt.Legend(title="horizon"))
    across = alt.X("horizon:Q", title="k", scale=alt.Scale(zero=True))
    spread = base.mark_rule().encode(y=rows, yOffset=offset, x="low:Q", x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=46, opacity=1).encode(
        y=rows, yOffset=offset, x=across, color=colour
    )
    return (
        alt.layer(spread, points)
        .resolve_scale(yOffset="shared")
        .properties(width=220, height=height, title="The horizon, measured and predicted")
    )


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the result as figures of a report: the reach with one variant a metric, norms, and the two horizons."""
    cells, told = frame(dataset), dataset.attrs
    reads = "the edited run" if told["compounding"] == "True" else "the original run"
    who = f"block {told['only_layer']}" if told["only_layer"] >= 0 else f"{told['where']}"
    return [
        Figure(
            name=_REACH,
            title="Layer horizon",
            caption=(
                f"Readers ({who}) read the last k steps ({told['reach']}s) of {reads}; farther outputs "
                f"({told['forget']}) are replaced by: {told['value']}. {data_set(dataset)}. Lines are "
                "bootstrap intervals over inputs."
            ),
            draw=lambda metric: panel(cells, metric=metric),
            frame=cells,
            choice="metric",
            variants=VARIANTS,
        ),
        Figure(
            name=_NORMS,
            title="Norm growth",
            caption=f"Mean norm of the residual stream. Growth: a factor {float(dataset['growth']):.3f} a layer.",
            draw=lambda: _norm_panel(_BESIDE),
            frame=_norms(dataset),
        ),
        Figure(
            name=_HORIZONS,
            title="Measured and predicted horizon",
            caption="The smallest k from which on KL stays within the tolerance, and what norm growth predicts.",
            draw=lambda: _compared_panel(_BESIDE),
            frame=_compared(dataset),
        ),
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the result out as one row for each metric, reach and kind of forgetting."""
    cells = tabled(dataset, "horizon", (), ("effect", "effect_low", "effect_high")).assign(forgotten=_FAR)
    if "random_effect" not in cells:
        return cells
    random = cells.assign(
        effect=cells["random_effect"], effect_low=np.nan, effect_high=np.nan, forgotten=_RANDOM
    )
    return pd.concat([cells, random], ignore_index=True).drop(columns="random_effect")


def _norms(dataset: xr.Dataset) -> pd.DataFrame:
    places, layers = dataset["place"].values.astype(str), dataset["layer"].values
    return pd.DataFrame(
        {
            "place": np.repeat(places, len(layers)),
            "layer": np.tile(layers, len(places)),
            "norm": dataset["norm"].transpose("place", "layer").values.ravel(),
        }
    )


def _compared(dataset: xr.Dataset) -> pd.DataFrame:
    tables = []
    for source, name in (("measured", "smallest_horizon"), ("from norm growth", "predicted_horizon")):
        table: dict[str, Any] = {"tolerance": dataset["within"].values, "source": source}
        for column, part in (("horizon", ""), ("low", "_low"), ("high", "_high")):
            known = f"{name}{part}" in dataset
            table[column] = dataset[f"{name}{part}"].values if known else np.nan
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say how far back the model reads, and what norm growth would have said."""
    steps, tried = f"{dataset.attrs['reach']}s", dataset["horizon"].values
    found = []
    for tolerance in dataset["within"].values:
        own = dataset.sel(within=tolerance)
        value, predicted = float(own["smallest_horizon"]), float(own["predicted_horizon"])
        far = f"the last {value:.0f} {steps}"
        if value > tried.max():
            far = f"more than the {tried.max()} tried"
        elif value - 1 not in (-1, *tried):
            far = f"at most {far}"
        text = f"To stay within {tolerance:g} nats a token (KL) it must read {far} of {int(dataset.attrs['longest'])}"
        if "smallest_horizon_low" in own:
            text += f" [{float(own['smallest_horizon_low']):.0f}, {float(own['smallest_horizon_high']):.0f}]"
        growth = (
            f"norm growth predicts {predicted:.3g}" if np.isfinite(predicted) else "norm growth predicts none"
        )
        found.append(Finding(f"{text}; {growth}.", position=0))
    return found
