"""Mean layer importance: how much the MLP neurons of each layer matter at each token, in log colour."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.charts.grid import Grid, Orientation
from assay.report.figure import Bar, Figure, Finding, Readout
from assay.report.text import visible
from assay.report.theme import finished

_TABLE = "neuron_importance"
_DECADES = 4.0  # what lies further below the largest is drawn at the low end


def chart(
    dataset: xr.Dataset,
    *,
    orientation: Orientation = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart:
    """Draw the mean importance of each layer's neurons at each token, ready to show or save.

    Args:
        dataset: result of `assay.neuron_importance`.
        orientation: ``"layers-down"`` or ``"layers-right"``.
        blocks: layers to make room for; those of the dataset when not given.

    Returns:
        An Altair chart in the light theme.
    """
    cells = frame(dataset)
    return finished(panel(dataset, cells, orientation=orientation, blocks=blocks), {_TABLE: cells})


def panel(
    dataset: xr.Dataset,
    cells: pd.DataFrame,
    *,
    orientation: Orientation = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart:
    """Draw the grid from its table without a configuration, to be put beside others; see `chart`."""
    tokens = cells.drop_duplicates("position").sort_values("position")
    grid = Grid(
        name=_TABLE,
        tokens=list(tokens["token"]),
        blocks=list(blocks) if blocks is not None else sorted(set(cells["block"])),
        orientation=orientation,
    )
    fill = alt.Color(
        "importance:Q",
        scale=alt.Scale(type="log", domain=_domain(cells["importance"].to_numpy()), clamp=True),
        legend=alt.Legend(title=f"mean |attribution| to the {_metric(dataset)}", format=".0e", tickCount=4),
    )
    places = range(1, dataset.sizes["rank"] + 1)
    lines = {
        f"line_{k}": f"format(datum.attribution_{k}, '+.3g') + '  neuron ' + datum.neuron_{k}" for k in places
    }
    heat = (
        alt.Chart(alt.NamedData(name=_TABLE))
        .transform_calculate(**lines)
        .mark_rect()
        .encode(
            **grid.encoding(),
            color=fill,
            tooltip=[
                alt.Tooltip("token:N", title="token"),
                alt.Tooltip("block:Q", title="block"),
                alt.Tooltip("importance:Q", title="mean importance", format=".3g"),
                *(alt.Tooltip(f"line_{k}:N", title=f"top {k}") for k in places),
            ],
        )
    )
    return grid.picture(
        heat, title="Mean layer importance", subtitle="MLP neurons, mean over each layer; log colour"
    )


def figures(dataset: xr.Dataset, *, blocks: Sequence[int] | None = None) -> list[Figure]:
    """Give the importances as a figure of a report."""
    cells, metric = frame(dataset), _metric(dataset)
    answer = visible(str(dataset.attrs["answer"]), space=" ")
    return [
        Figure(
            name=_TABLE,
            title="Mean layer importance",
            caption=(
                f"Mean over the MLP neurons of each layer of the size of their attribution to the {metric} "
                f"of “{answer}”, on a logarithmic colour of {_DECADES:.0f} decades at most. Rank correlation "
                f"with exact ablation: {_interval(dataset, 'rank_correlation')}."
            ),
            draw=lambda **options: panel(dataset, cells, blocks=blocks, **options),
            frame=cells,
            linked=True,
            readout=Readout(
                bars=[Bar(f"neuron_{k}", f"attribution_{k}") for k in range(1, dataset.sizes["rank"] + 1)],
                facts={
                    "mean importance": "importance",
                    "largest": "importance_max",
                    "untrained": "untrained_importance",
                },
                unit=f"top neurons and their attributions to the {metric}",
            ),
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the importances out as one row for each layer and position, token text made visible."""
    n_layers, n_positions = dataset.sizes["layer"], dataset.sizes["position"]
    columns = {
        "block": np.repeat(dataset["layer"].values, n_positions),
        "position": np.tile(dataset["position"].values, n_layers),
        "token": [visible(str(text)) for text in dataset["token"].values] * n_layers,
        "importance": dataset["importance"].values.ravel(),
        "importance_max": dataset["importance_max"].values.ravel(),
    }
    if "baseline_importance" in dataset:
        columns["untrained_importance"] = dataset["baseline_importance"].values.ravel()
    for place in range(dataset.sizes["rank"]):
        columns[f"neuron_{place + 1}"] = dataset["top_neuron"].values[..., place].ravel()
        columns[f"attribution_{place + 1}"] = dataset["top_attribution"].values[..., place].ravel()
    return pd.DataFrame(columns)


def _metric(dataset: xr.Dataset) -> str:
    return str(dataset.attrs["metric"]).replace("log_probability", "log-probability (nats)").replace("_", " ")


def _domain(importance: np.ndarray) -> list[float]:
    largest = float(np.nanmax(importance, initial=0.0)) or 1.0
    positive = importance[importance > 0]
    smallest = float(positive.min()) if positive.size else largest
    return [min(max(smallest, largest * 10**-_DECADES), largest / 10), largest]


def _interval(dataset: xr.Dataset, name: str) -> str:
    low, high = float(dataset[f"{name}_low"]), float(dataset[f"{name}_high"])
    return f"{float(dataset[name]):.2f} [{low:.2f}, {high:.2f}]"


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say where the neurons matter most and which is the strongest there."""
    importance = dataset["importance"].transpose("layer", "position").values
    row, place = (int(index) for index in np.unravel_index(np.nanargmax(importance), importance.shape))
    block = int(dataset["layer"].values[row])
    token = visible(str(dataset["token"].values[place]))
    neuron, share = (dataset[name].values[row, place, 0] for name in ("top_neuron", "top_attribution"))
    largest, median = float(importance[row, place]), float(np.nanmedian(importance))
    times = f", {largest / median:.0f} times the median cell" if median > 0 else ""
    text = (
        f"MLP neurons matter most in block {block} at “{token}” (token {place}): mean importance "
        f"{largest:.2g}{times}; the strongest is neuron {int(neuron)}, attribution {float(share):+.2g}."
    )
    return [Finding(text, position=place, block=block)]
