"""The learning coefficient: the trace of every chain, with burn-in shaded and the estimate with its interval."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished, records

_TRACE = "learning_coefficient"
_POINTS = 250  # of a chain's trace that are drawn, each the mean of the steps around it
_WIDTH, _HEIGHT = 560, 260


def chart(dataset: xr.Dataset, *, truth: float | None = None) -> alt.LayerChart:
    """Draw every chain's running excess loss in units of the estimate, ready to show or save.

    Args:
        dataset: result of `assay.learning_coefficient`.
        truth: a known learning coefficient, drawn as a dashed line.

    Returns:
        An Altair chart in the light theme.
    """
    return finished(panel(dataset, truth=truth), {_TRACE: frame(dataset)})


def panel(dataset: xr.Dataset, *, truth: float | None = None) -> alt.LayerChart:
    """Draw the traces from their table without a configuration; see `chart`."""
    first, last = (int(dataset["draw"].values[place]) for place in (0, -1))
    chains = frame(dataset)["excess"].to_numpy()
    spread = chains[np.isfinite(chains)]
    top = float(np.quantile(spread, 0.995)) if spread.size else 1.0
    bottom = min(0.0, float(np.quantile(spread, 0.005))) if spread.size else 0.0
    known = [] if truth is None else [truth]
    domain = [bottom, max([top, *known, *_finite(float(dataset["llc_high"]))]) * 1.05]
    x = alt.X("draw:Q", title="draw (negative: burn-in)", scale=alt.Scale(domain=[first, last], nice=False))
    scale = alt.Scale(domain=domain, clamp=True)
    y = alt.Y("excess:Q", title="nβ (L − L*)", scale=scale)
    estimate = alt.Chart(alt.InlineData(values=records(_estimate(dataset))))
    burn_in = estimate.transform_filter("datum.kind == 'burn-in' && datum.start < 0")
    layers = [
        burn_in.mark_rect(opacity=0.12, color="#808080").encode(
            x=alt.X("start:Q", scale=alt.Scale(domain=[first, last], nice=False)), x2="stop:Q"
        ),
        alt.Chart(alt.NamedData(name=_TRACE))
        .mark_line(strokeWidth=1, opacity=0.75)
        .encode(
            x=x,
            y=y,
            color=alt.Color("chain:N", title="chain", scale=alt.Scale(scheme="viridis")),
            tooltip=[alt.Tooltip("chain:N"), alt.Tooltip("draw:Q"), alt.Tooltip("excess:Q", format=".4g")],
        ),
        estimate.transform_filter("datum.kind == 'estimate'")
        .mark_rect(style="accent", opacity=0.3)
        .encode(x="start:Q", x2="stop:Q", y=alt.Y("low:Q"), y2="high:Q"),
        estimate.transform_filter("datum.kind == 'estimate'")
        .mark_rule(style="accent-outline", strokeWidth=2)
        .encode(x="start:Q", x2="stop:Q", y="value:Q"),
        *truth_line(truth, scale),
    ]
    title = alt.Title("Local learning coefficient", subtitle=_sentence(dataset, truth))
    return alt.LayerChart(layer=layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the traces as a figure of a report."""
    return [
        Figure(
            name=_TRACE,
            title="Local learning coefficient",
            caption=(
                "Excess loss of every chain in units of the estimate, averaged over neighbouring steps; burn-in "
                f"is shaded and not averaged. {_sentence(dataset, None)}."
            ),
            draw=lambda **_options: panel(dataset),
            frame=frame(dataset),
        )
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say the estimate; nothing where there is none."""
    return [Finding(f"λ̂ = {_estimated(dataset)}.")] if np.isfinite(float(dataset["llc"])) else []


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the traces out as one row for each chain and group of steps."""
    loss = dataset["loss"].transpose("chain", "draw").to_numpy()
    excess = float(dataset["n_beta"]) * (loss - float(dataset["anchor_loss"]))
    groups = np.array_split(np.arange(excess.shape[1]), min(_POINTS, excess.shape[1]))
    means = np.stack([excess[:, group].mean(1) for group in groups], 1)
    draws = np.array([dataset["draw"].values[group].mean() for group in groups])
    chains, points = means.shape
    return pd.DataFrame(
        {
            "chain": np.repeat(dataset["chain"].values, points),
            "draw": np.tile(draws, chains),
            "excess": means.ravel(),
        }
    )


def truth_line(truth: float | None, scale: Any) -> list[alt.Chart]:
    """Draw a known learning coefficient as a dashed line across a chart, where one is known.

    Args:
        truth: the coefficient.
        scale: of the chart's y.
    """
    if truth is None:
        return []
    known = alt.Chart(alt.InlineData(values=records(pd.DataFrame({"truth": [truth]}))))
    return [known.mark_rule(style="cursor", strokeDash=[6, 4]).encode(y=alt.Y("truth:Q", scale=scale))]


def _estimate(dataset: xr.Dataset) -> pd.DataFrame:
    first, last = (float(dataset["draw"].values[place]) for place in (0, -1))
    value, low, high = (float(dataset[name]) for name in ("llc", "llc_low", "llc_high"))
    rows = [
        ("burn-in", first, 0.0, np.nan, np.nan, np.nan),
        ("estimate", max(first, 0.0), last, value, low, high),
    ]
    return pd.DataFrame(rows, columns=["kind", "start", "stop", "value", "low", "high"])


def _sentence(dataset: xr.Dataset, truth: float | None) -> str:
    if not np.isfinite(float(dataset["llc"])):
        return "No estimate: see the checks"
    known = "" if truth is None else f"; dashed: the truth, {truth:.4g}"
    added = f"{float(dataset['llc_bias']):.2g} that the step size adds is subtracted"
    return f"{_estimated(dataset)}; {added}{known}"


def _estimated(dataset: xr.Dataset) -> str:
    value, low, high = (float(dataset[name]) for name in ("llc", "llc_low", "llc_high"))
    return f"{value:.4g} [{low:.4g}, {high:.4g}] of {dataset.attrs['parameters']} parameters"


def _finite(value: float) -> list[float]:
    return [value] if np.isfinite(value) else []
