"""Edge attribution: the edges that rank first, and what the edges patched exactly did."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput
from assay.report.charts.agreement import agreement, agreement_figure, agreement_findings
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "edge_attribution"
_WIDTH = 240
_TITLES = {
    "eap": "EAP",
    "eap_ig": "EAP-IG",
    "eap_qk_fix": "EAP with the QK fix",
    "eap_star": "EAP with the QK fix and GradDrop",
}


def chart(dataset: xr.Dataset, *, top: int = 20) -> alt.LayerChart | alt.HConcatChart:
    """Draw the edges with the largest scores, beside the exact effects of those that were patched.

    Args:
        dataset: result of `assay.attribution_patch` by a method of edges: ``eap``, ``eap_ig``, ``eap_qk_fix`` or
            ``eap_star``.
        top: how many edges.

    Returns:
        An Altair chart in the light theme.

    Raises:
        BadInput: when `top` is not positive.
    """
    if top < 1:
        raise BadInput(f"top={top}: show one edge or more")
    edges = frame(dataset, top)
    picture = panel(dataset, edges)
    if "edge_effect" not in dataset:
        return finished(picture, {_TABLE: edges})
    scatter, chosen = agreement(dataset, exact_frame(dataset), group="group")
    return finished(alt.hconcat(picture, scatter, spacing=40), {_TABLE: edges, "agreement": chosen})


def panel(dataset: xr.Dataset, edges: pd.DataFrame) -> alt.LayerChart:
    """Draw the edges of a table, largest first, without a configuration."""
    base = alt.Chart(alt.NamedData(name=_TABLE))
    y = alt.Y("edge:N", sort=list(edges["edge"]), title=None, axis=alt.Axis(labelLimit=200))
    metric = dataset.attrs["metric"].replace("_", " ")
    bars = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X("score:Q", title=f"score: predicted effect on {metric}"),
        y=y,
        tooltip=[alt.Tooltip("edge:N"), alt.Tooltip("score:Q", format="+.4f")],
    )
    spread = base.transform_filter("isValid(datum.low)").mark_rule().encode(x="low:Q", x2="high:Q", y=y)
    layers = [bars, spread]
    if "baseline" in edges:
        layers.append(base.mark_tick(thickness=2, size=10, color="black").encode(x="baseline:Q", y=y))
    note = "; ticks: where nothing is to be found" if "baseline" in edges else ""
    title = alt.TitleParams(
        f"{_TITLES[dataset.attrs['method']]}: edges ranked first",
        subtitle=f"{_slopes(dataset)}{note}",
    )
    return alt.LayerChart(layer=layers).properties(width=_WIDTH, height=alt.Step(15), title=title)


def _slopes(dataset: xr.Dataset) -> str:
    steps, quadrature = dataset.attrs["steps"], dataset.attrs["quadrature"]
    if steps == 1:
        return "one slope"
    return f"up to {steps} slopes, adaptive" if quadrature == "adaptive" else f"{steps} slopes, {quadrature}"


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the largest scores as a figure of a report, and the edges patched exactly as another."""
    edges = frame(dataset, 40)
    first = Figure(
        name=_TABLE,
        title=f"{_TITLES[dataset.attrs['method']]}: scores of edges",
        caption=(
            f"Effect on the {dataset.attrs['metric'].replace('_', ' ')} of letting one receiver read what one sender "
            f"writes in the other run, to first order, mean over pairs ({dataset.attrs['pairs']}); the largest of "
            f"{int(np.isfinite(dataset['score'].values).sum())} edges. Lines are 95% intervals over pairs, ticks "
            "scores between two prompts where nothing is to be found."
        ),
        draw=lambda **_options: panel(dataset, edges),
        frame=edges,
    )
    if "edge_effect" not in dataset:
        return [first]
    return [first, agreement_figure(dataset, exact_frame(dataset), group="group")]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which edges rank first, whether slopes add up, and how scores agree with exact effects."""
    first = frame(dataset, 5)
    named = ", ".join(f"{e} ({s:+.2f})" for e, s in zip(first["edge"], first["score"], strict=True))
    found = [Finding(f"Edges that rank first: {named}.", position=0)]
    if dataset.attrs["method"] == "eap_ig":
        text = (
            f"The slopes on the way add up to {float(dataset['predicted_total']):.3f}; the runs differ by "
            f"{float(dataset['total_effect']):.3f}."
        )
        found.append(Finding(text, position=0))
    return [*found, *agreement_findings(dataset, exact_frame(dataset))] if "edge_effect" in dataset else found


def frame(dataset: xr.Dataset, top: int) -> pd.DataFrame:
    """Lay the edges with the largest scores out as one row each, largest first."""
    scores = dataset["score"].values
    order = np.argsort(-np.nan_to_num(np.abs(scores), nan=-1).ravel(), kind="stable")
    kept = order[: min(top, int(np.isfinite(scores).sum()))]
    senders, receivers = np.unravel_index(kept, scores.shape)
    columns: dict[str, Any] = {
        "edge": [
            f"{dataset['sender'].values[s]} → {dataset['receiver'].values[r]}"
            for s, r in zip(senders, receivers, strict=True)
        ]
    }
    for column, name in (
        ("score", "score"),
        ("low", "score_low"),
        ("high", "score_high"),
        ("baseline", "baseline_score"),
    ):
        if name in dataset:
            columns[column] = dataset[name].values[senders, receivers]
    return pd.DataFrame(columns)


def exact_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the edges patched exactly out as one row each."""
    return pd.DataFrame(
        {
            "name": [str(edge).replace(">", " → ") for edge in dataset["edge"].values],
            "group": dataset["edge_group"].values,
            "predicted": dataset["edge_score"].values,
            "exact": dataset["edge_effect"].values,
            "low": dataset["edge_effect_low"].values,
            "high": dataset["edge_effect_high"].values,
            "missed": dataset["edge_missed"].values,
        }
    )
