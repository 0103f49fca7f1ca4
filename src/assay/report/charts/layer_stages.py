"""Stages of inference on one page: what each layer would say, and its prediction and suppression neurons."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "layer_stages"
_PANELS = {
    "entropy": "entropy (nats)",
    "kl_to_final": "KL(final || layer) (nats)",
    "top1_agreement": "top-1 is the final one",
    "prediction": "prediction neurons (share)",
    "suppression": "suppression neurons (share)",
}
_KINDS = alt.Scale(domain=["model", "baseline"], range=["#4c78a8", "#d1762b"])


def chart(dataset: xr.Dataset) -> alt.VConcatChart:
    """Draw the stages of inference, ready to show or save.

    Args:
        dataset: result of `assay.layer_stages`.

    Returns:
        An Altair chart in the light theme: one panel a curve above the others, layers across.
    """
    cells = frame(dataset)
    return finished(panel(cells), {_TABLE: cells})


def panel(cells: pd.DataFrame) -> alt.VConcatChart:
    """Draw the panels from the table, without a configuration, to be put beside others."""
    present = [name for name in _PANELS if name in set(cells["curve"])]
    return alt.vconcat(*(_curve(name, last=name == present[-1]) for name in present), spacing=10)


def _curve(name: str, *, last: bool) -> Any:
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.curve === '{name}'")
    across = alt.X(
        "layer:Q",
        title="after layer" if last else None,
        axis=alt.Axis(labels=last, tickMinStep=1),
        scale=alt.Scale(nice=False, padding=8),
    )
    up = alt.Y("value:Q", title=None, scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4))
    colour = alt.Color("kind:N", scale=_KINDS, legend=alt.Legend(title=None))
    band = base.mark_area(opacity=0.25).encode(x=across, y="low:Q", y2="high:Q", color=colour)
    tooltip = [
        alt.Tooltip("layer:Q", title="after layer"),
        alt.Tooltip("value:Q", title=_PANELS[name], format=".4f"),
        alt.Tooltip("kind:N", title="of"),
    ]
    line = base.mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=14)).encode(
        x=across, y=up, color=colour, tooltip=tooltip
    )
    title = alt.TitleParams(_PANELS[name], fontSize=11, offset=4, frame="group")
    return alt.layer(band, line).properties(width=560, height=90, title=title)


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the stages as one figure of a report."""
    cells, told = frame(dataset), dataset.attrs
    return [
        Figure(
            name=_TABLE,
            title="Stages of inference",
            caption=(
                f"Read after each layer; means over {told['inputs']} inputs of {told['tokens']} tokens, with 95% "
                "intervals. The baseline of the curves is an untrained twin, that of the neurons the same with their "
                "output weights in another order. A neuron counts whose additions to the logits have a kurtosis above "
                f"{told['kurtosis']:g}: as a prediction neuron with positive skewness, as a suppression neuron with "
                "negative."
            ),
            draw=lambda: panel(cells),
            frame=cells,
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the curves out as one row for each curve, layer, and model or baseline."""
    layers, tables = dataset["layer"].values, []

    def add(curve: str, kind: str, value: Any, low: Any = np.nan, high: Any = np.nan) -> None:
        row = {"curve": curve, "kind": kind, "layer": layers, "value": value, "low": low, "high": high}
        tables.append(pd.DataFrame(row))

    for curve in dataset["curve"].values.astype(str):
        own = dataset.sel(curve=curve)
        add(curve, "model", *(own[f"stage{part}"].values for part in ("", "_low", "_high")))
        if "baseline_stage" in dataset:
            add(curve, "baseline", own["baseline_stage"].values)
    if "neuron_share" in dataset:
        for kind in dataset["kind"].values.astype(str):
            own = dataset.sel(kind=kind)
            add(kind, "model", *(own[f"neuron_share{part}"].values for part in ("", "_low", "_high")))
            add(
                kind,
                "baseline",
                *(own[f"baseline_neuron_share{part}"].values for part in ("", "_low", "_high")),
            )
    return pd.concat(tables, ignore_index=True)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say where the guess forms, and where prediction and suppression neurons are most."""
    stage, layers = dataset["stage"], dataset["layer"].values
    highest = int(layers[np.argmax(stage.sel(curve="entropy").values)])
    settled = stage.sel(curve="top1_agreement").values >= 0.5
    first = int(layers[np.argmax(settled)])
    found = [
        Finding(
            f"Entropy is highest after layer {highest}; after layer {first} half of the positions first name the "
            "final token.",
            position=0,
            block=first,
        )
    ]
    if "neuron_share" in dataset:
        share = dataset["neuron_share"]
        peaks = {
            kind: int(np.argmax(share.sel(kind=kind).values)) for kind in share["kind"].values.astype(str)
        }
        text = " and ".join(
            f"{kind} neurons in layer {int(layers[i])} ({float(share.sel(kind=kind)[i]):.1%})"
            for kind, i in peaks.items()
        )
        found.append(Finding(f"There are most {text}.", position=0, block=int(layers[peaks["prediction"]])))
    return found
