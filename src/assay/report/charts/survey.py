"""Survey: lens, trace and mean layer importance of one passage, side by side, layers on the same lines."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import xarray as xr

from assay.activations.survey import part
from assay.report.charts import causal_trace, logit_lens, neuron_importance
from assay.report.charts.grid import Orientation
from assay.report.figure import Figure, Finding
from assay.report.theme import finished


def chart(
    dataset: xr.Dataset,
    *,
    colour: logit_lens.Colour = "probability",
    orientation: Orientation = "layers-down",
) -> alt.HConcatChart:
    """Draw the three pictures side by side, ready to show or save.

    Args:
        dataset: result of `assay.survey`.
        colour: quantity of the lens's cell colour.
        orientation: ``"layers-down"`` or ``"layers-right"``.

    Returns:
        An Altair chart in the light theme.
    """
    drawn = figures(dataset)
    first: list[dict[str, Any]] = [dict(next(iter(figure.variants.values()))) for figure in drawn]
    first[0]["colour"] = colour
    pictures = [figure.draw(orientation=orientation, **own) for figure, own in zip(drawn, first, strict=True)]
    together = alt.hconcat(*pictures).resolve_scale(color="independent")
    return finished(together, {figure.name: figure.frame for figure in drawn})


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the three as figures of a report whose layers are on the same lines."""
    lens, trace, neurons = _parts(dataset)
    blocks = _blocks(lens)
    return [
        *logit_lens.figures(lens, blocks=blocks),
        *causal_trace.figures(trace, blocks=blocks),
        *neuron_importance.figures(neurons, blocks=blocks),
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say what to look at, the trace first: what a later occurrence owes to the earlier ones."""
    lens, trace, neurons = _parts(dataset)
    return [
        *causal_trace.findings(trace),
        *logit_lens.findings(lens),
        *neuron_importance.findings(neurons),
    ]


def _parts(dataset: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    return part(dataset, "lens"), part(dataset, "trace"), part(dataset, "neurons")


def _blocks(lens: xr.Dataset) -> Sequence[int]:
    return [logit_lens.block_of(str(site)) for site in lens["site"].values]
