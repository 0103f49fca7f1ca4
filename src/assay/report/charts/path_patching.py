"""Path patching: what each sender tells each receiver."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "path_patching"
_FADED = 0.3
_STEP = 22
_MIDDLES = {
    "frozen": "direct paths: everything between is held",
    "mlps": "heads between are held, MLPs recompute",
    "recomputed": "everything between recomputes",
}


def chart(dataset: xr.Dataset) -> alt.LayerChart:
    """Draw a path-patching result, ready to show or save.

    Args:
        dataset: result of `assay.path_patch`.

    Returns:
        An Altair chart in the light theme.
    """
    paths = frame(dataset)
    return finished(panel(dataset, paths), {_TABLE: paths})


def panel(dataset: xr.Dataset, paths: pd.DataFrame) -> alt.LayerChart:
    """Draw senders against receivers, without a configuration."""
    reach = float(np.nanmax(np.abs(paths["effect"].to_numpy()), initial=0.0)) or 1.0
    metric = dataset.attrs["metric"]
    unit = " (nats)" if metric in ("kl_from_clean", "log_probability") else ""
    clear = "!isValid(datum.low) || datum.low > 0 || datum.high < 0"
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter("isValid(datum.effect)")
    place: dict[str, Any] = {
        "x": alt.X(
            "receiver:N", sort=list(dataset["receiver"].values), axis=alt.Axis(orient="top", labelAngle=-60)
        ),
        "y": alt.Y("sender:N", sort=list(dataset["sender"].values)),
    }
    heat = base.mark_rect().encode(
        **place,
        color=alt.Color(
            "effect:Q",
            scale=alt.Scale(domain=[-reach, reach], range="diverging", clamp=True),
            legend=alt.Legend(title=f"effect on {metric.replace('_', ' ')}{unit}", format=".2~g"),
        ),
        opacity=alt.condition(clear, alt.value(1), alt.value(_FADED)),
        tooltip=[
            alt.Tooltip("sender:N"),
            alt.Tooltip("receiver:N"),
            alt.Tooltip("effect:Q", format="+.4f"),
            alt.Tooltip("share:Q", title="share of the total effect", format=".3f"),
        ],
    )
    title = alt.TitleParams("Path patching", subtitle=_MIDDLES[dataset.attrs["middle"]])
    return alt.LayerChart(layer=[heat]).properties(
        width=alt.Step(_STEP), height=alt.Step(_STEP - 6), title=title
    )


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the paths as a figure of a report."""
    paths = frame(dataset)
    return [
        Figure(
            name=_TABLE,
            title="Path patching",
            caption=(
                f"Change of the {dataset.attrs['metric'].replace('_', ' ')} when a receiver reads what it would read "
                f"had the sender written as in the other run, mean over pairs ({dataset.attrs['pairs']}); "
                f"{_MIDDLES[dataset.attrs['middle']]}. Faded: the 95% interval over pairs includes zero. Empty: the "
                "receiver reads before the sender writes."
            ),
            draw=lambda **_options: panel(dataset, paths),
            frame=paths,
        )
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which paths carry the most, and how much they do where nothing is to be found."""
    paths = frame(dataset)
    order = np.argsort(-np.nan_to_num(np.abs(paths["effect"].to_numpy()), nan=-1.0), kind="stable")[:3]
    named = ", ".join(
        f"{paths['sender'][i]} → {paths['receiver'][i]} ({paths['effect'][i]:+.3f})" for i in order
    )
    null = ""
    if "null" in paths:
        null = f"; where nothing is to be found, {paths['null'].abs().max():.3f} at most"
    total = float(dataset["total_effect"])
    return [Finding(f"Of {total:+.3f} in all, the strongest paths carry: {named}{null}.", position=0)]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the paths out as one row for each sender and receiver."""
    dims = ("sender", "receiver")
    sender, receiver = (i.ravel() for i in np.indices([dataset.sizes[dim] for dim in dims]))
    columns: dict[str, Any] = {
        "sender": dataset["sender"].values[sender],
        "receiver": dataset["receiver"].values[receiver],
    }
    for column, name in (
        ("effect", "effect"),
        ("low", "effect_low"),
        ("high", "effect_high"),
        ("share", "normalised_effect"),
        ("null", "baseline_effect"),
    ):
        if name in dataset:
            columns[column] = dataset[name].transpose(*dims).values.ravel()
    return pd.DataFrame(columns)
