"""Patching: what each place, taken from the other prompt's run, does to the metric."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput
from assay.report.charts.effects import FADED
from assay.report.charts.grid import Grid, Orientation
from assay.report.figure import Bar, Figure, Finding, Readout
from assay.report.text import visible
from assay.report.theme import finished

_TABLE = "patching"
_FADED = 0.3
_VERBS = {"denoise": "clean values into the corrupted run", "noise": "corrupted values into the clean run"}


def chart(
    dataset: xr.Dataset, *, metric: str | None = None, orientation: Orientation = "layers-down"
) -> alt.LayerChart | alt.HConcatChart:
    """Draw a patching result, ready to show or save.

    Args:
        dataset: result of `assay.patch`.
        metric: which metric; the dataset's first when not given.
        orientation: ``"layers-down"`` or ``"layers-right"``.

    Returns:
        An Altair chart in the light theme. Where heads were patched one by one, each cell is that of its strongest
        head, and a second picture shows every head at its strongest position.

    Raises:
        BadInput: when `metric` is not in the dataset or `orientation` is not known.
    """
    metrics = [str(name) for name in dataset["metric"].values]
    chosen = metrics[0] if metric is None else metric
    if chosen not in metrics:
        raise BadInput(f"metric={metric!r} was not measured: this result has {', '.join(metrics)}.")
    cells = frame(dataset)
    return finished(panel(dataset, cells, metric=chosen, orientation=orientation), {_TABLE: cells})


def panel(
    dataset: xr.Dataset, cells: pd.DataFrame, *, metric: str, orientation: Orientation = "layers-down"
) -> alt.LayerChart | alt.HConcatChart:
    """Draw one metric from the table, without a configuration, to be put beside others."""
    own: Any = cells[cells["metric"] == metric]
    tokens = cells.drop_duplicates("position").sort_values("position")
    # the grid counts the columns that are shown, and not every position needs to have been patched
    positions = {int(position): place for place, position in enumerate(tokens["position"])}
    grid = Grid(
        name=f"patching_{metric}",
        tokens=list(tokens["token"]),
        blocks=sorted(set(cells["block"])),
        orientation=orientation,
        layer_title="after block" if str(dataset.attrs["site"]).startswith("resid_p") else "inside block",
        strong=frozenset(positions[int(p)] for p in tokens.loc[tokens["differs"], "position"]),
    )
    part = _part(dataset)
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.metric === '{metric}'")
    if "head" in cells:
        base = base.transform_calculate(size="abs(datum.effect)")
    by_token = _strongest(base, ["block", "position"]) if "head" in cells else base
    places = ", ".join(str(position) for position in positions)
    heat = by_token.transform_calculate(position=f"indexof([{places}], datum.position)").mark_rect().encode(
        **grid.encoding(), **_filled(own, metric), tooltip=_tooltip(cells, part)
    )  # fmt: skip
    picture = grid.picture(
        heat,
        title=f"Patching {dataset.attrs['site']}" + (f": strongest {part}" if "head" in cells else ""),
        subtitle=f"{_VERBS[dataset.attrs['direction']]}; bold: tokens differ"
        + ("; faded: interval includes zero" if dataset.attrs["pairs"] > 1 else ""),
    )
    if "head" not in cells:
        return picture
    heads = _strongest(base, ["block", "head"]).mark_rect().encode(
        x=alt.X("head:O", title=part, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("block:O", title="block"),
        **_filled(own, metric),
        tooltip=_tooltip(cells, part),
    )  # fmt: skip
    title = alt.TitleParams(f"Each {part}", subtitle="at its strongest position")
    return alt.hconcat(picture, heads.properties(width=alt.Step(16), height=alt.Step(16), title=title))


def _strongest(base: alt.Chart, within: list[str]) -> alt.Chart:
    """Keep of each group the row with the largest effect in size."""
    ordered = base.transform_window(
        order="row_number()", groupby=within, sort=[alt.SortField("size", order="descending")]
    )
    return ordered.transform_filter("datum.order === 1")


def _filled(own: Any, metric: str) -> dict[str, Any]:
    reach = float(np.nanmax(np.abs(own["effect"].to_numpy()), initial=0.0)) or 1.0
    clear = "!isValid(datum.effect_low) || datum.effect_low > 0 || datum.effect_high < 0"
    unit = " (nats)" if metric in ("kl_from_clean", "log_probability") else ""
    return {
        "color": alt.Color(
            "effect:Q",
            scale=alt.Scale(domain=[-reach, reach], range="diverging", clamp=True),
            legend=alt.Legend(title=f"effect on {metric.replace('_', ' ')}{unit}", format=".2~g"),
        ),
        "opacity": alt.condition(clear, alt.value(1), alt.value(_FADED)),
    }


def _part(dataset: xr.Dataset) -> str:
    """What a site has heads of: keys and values have fewer with grouped queries, and numbers of their own."""
    return "kv head" if dataset.attrs["site"] in ("k", "v") else "head"


def _tooltip(cells: pd.DataFrame, part: str) -> list[alt.Tooltip]:
    head = [alt.Tooltip("head:Q", title=part)] if "head" in cells else []
    return [
        alt.Tooltip("token:N", title="token"),
        alt.Tooltip("block:Q", title="block"),
        *head,
        alt.Tooltip("effect:Q", title="effect", format="+.4f"),
        alt.Tooltip("normalised_effect:Q", title="share of the total effect", format=".3f"),
    ]


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the result as a figure of a report, one variant for each metric."""
    cells = frame(dataset)
    whole, every = (
        "head" not in cells,
        list(dataset["position"].values) == list(range(dataset.sizes["position"])),
    )
    untold = f" Cells show the strongest {_part(dataset)}." if not whole else ""
    baseline = {"where nothing is to be found": "null_effect"} if "null_effect" in cells else {}
    return [
        Figure(
            name=_TABLE,
            title=f"Patching {dataset.attrs['site']}",
            caption=(
                "Change of each metric at the last position when one place takes "
                f"{_VERBS[dataset.attrs['direction']]}, mean over pairs ({dataset.attrs['pairs']}). Tokens in "
                f"bold differ between the prompts{FADED if dataset.attrs['pairs'] > 1 else ''}.{untold}"
            ),
            draw=lambda metric, **options: panel(dataset, cells, metric=metric, **options),
            frame=cells,
            choice="metric",
            variants={
                name.replace("_", " "): {"metric": name} for name in map(str, dataset["metric"].values)
            },
            linked=whole and every,
            readout=Readout(
                bars=[Bar("metric", "effect", "effect_low", "effect_high")] if whole else [],
                facts=baseline if whole else {},
            ),
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the result out as one row for each metric, layer, position and head, token text made visible."""
    dims = ["metric", "layer", "position", *(["head"] if "head" in dataset.dims else [])]
    index = [i.ravel() for i in np.indices([dataset.sizes[dim] for dim in dims])]
    token = [visible(str(text)) for text in dataset["token"].values]
    columns: dict[str, Any] = {
        dim if dim != "layer" else "block": dataset[dim].values[i] for dim, i in zip(dims, index, strict=True)
    }
    if dataset.attrs["site"] == "resid_pre":  # entering a block is leaving the one before
        columns["block"] = columns["block"] - 1
    columns |= {
        "token": [token[place] for place in index[2]],
        "differs": dataset["differs"].values[index[2]],
    }
    for name in ("effect", "normalised_effect"):
        for part in ("", "_stderr", "_low", "_high"):
            columns[name + part] = dataset[name + part].transpose(*dims).values.ravel()
    if "baseline_effect" in dataset:
        columns["null_effect"] = dataset["baseline_effect"].transpose(*dims).values.ravel()
    return pd.DataFrame(columns)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say where each metric is moved the most, and how far where nothing is to be found."""
    cells = frame(dataset)
    found: list[Finding] = []
    for metric in dataset["metric"].values:
        own: Any = cells[cells["metric"] == metric]
        if str(dataset.attrs["site"]).startswith(
            "resid"
        ):  # after the last block the last token is the answer itself
            told = own[(own["block"] < own["block"].max()) | (own["position"] < own["position"].max())]
            own = told if len(told) else own
        row = own.loc[own["effect"].abs().idxmax()]
        named = str(metric).replace("_", " ").replace("kl", "KL")
        head = f", {_part(dataset)} {row['head']}" if "head" in own else ""
        spread = f" ± {row['effect_stderr']:.3f}" if np.isfinite(row["effect_stderr"]) else ""
        share = f", {row['normalised_effect']:.0%} of the way to the other run"
        text = (
            f"Patching {dataset.attrs['site']} moves the {named} most at “{row['token']}” "
            f"(token {row['position']}, block {row['block']}{head}): {row['effect']:+.3f}{spread}"
            f"{share if np.isfinite(row['normalised_effect']) else ''}"
        )
        if "null_effect" in own:
            text += f"; where nothing is to be found, by {own['null_effect'].abs().max():.3f} at most"
        found.append(Finding(f"{text}.", position=int(row["position"]), block=int(row["block"])))
    return found
