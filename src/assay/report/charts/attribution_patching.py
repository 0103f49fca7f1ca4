"""Attribution patching: what each node would do, and what the nodes patched exactly did."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput
from assay.report.charts.agreement import agreement, agreement_figure, agreement_findings
from assay.report.charts.effects import FADED
from assay.report.charts.grid import Grid, Orientation
from assay.report.figure import Bar, Figure, Finding, Readout
from assay.report.text import visible
from assay.report.theme import finished

_TABLE = "attribution_patching"
NOTHING = 1e-4
"""Share of the total effect below which a site is said to have none."""
_FADED = 0.3
_METHODS = {
    "atp": "AtP",
    "qk_fix": "AtP with the QK fix",
    "grad_drop": "AtP with GradDrop",
    "atp_star": "AtP*",
}
_MAGNITUDES = ("grad_drop", "atp_star")


def chart(
    dataset: xr.Dataset, *, site: str | None = None, orientation: Orientation = "layers-down"
) -> alt.LayerChart | alt.HConcatChart:
    """Draw the attributions of one site, beside the exact effects of the nodes that were patched.

    Args:
        dataset: result of `assay.attribution_patch`.
        site: which site; the first when not given.
        orientation: ``"layers-down"`` or ``"layers-right"``.

    Returns:
        An Altair chart in the light theme. Each cell is that of its strongest head or neuron.

    Raises:
        BadInput: when `site` is not in the dataset or `orientation` is not known.
    """
    names = _sites(dataset)
    chosen = names[0] if site is None else site
    if chosen not in names:
        raise BadInput(f"site={site!r} was not attributed: this result has {', '.join(names)}.")
    cells = frame(dataset)
    picture = panel(dataset, cells, site=chosen, orientation=orientation)
    if "node_effect" not in dataset:
        return finished(picture, {_TABLE: cells})
    scatter, nodes = agreement(dataset, nodes_frame(dataset), group="group")
    return finished(alt.hconcat(picture, scatter, spacing=40), {_TABLE: cells, "agreement": nodes})


def panel(
    dataset: xr.Dataset, cells: pd.DataFrame, *, site: str, orientation: Orientation = "layers-down"
) -> Any:
    """Draw one site from the table, without a configuration."""
    own: Any = cells[cells["site"] == site]
    tokens = own.drop_duplicates("position").sort_values("position")
    grid = Grid(
        name=f"attribution_{site}",
        tokens=list(tokens["token"]),
        blocks=sorted(set(own["block"])),
        orientation=orientation,
        layer_title="after block" if site.startswith("resid_p") else "inside block",
        strong=frozenset(int(p) for p in tokens.loc[tokens["differs"], "position"]),
    )
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.site === '{site}'")
    heat = base.mark_rect().encode(
        **grid.encoding(), **_filled(dataset, own), tooltip=_tooltip(own, _part(site))
    )
    strongest = "" if (own["index"] < 0).all() else f": strongest {_part(site)}"
    return grid.picture(
        heat,
        title=f"{_METHODS[dataset.attrs['method']]} of {site}{strongest}",
        subtitle=_subtitle(dataset),
    )


def _subtitle(dataset: xr.Dataset) -> str:
    towards = "clean into corrupted" if dataset.attrs["direction"] == "denoise" else "corrupted into clean"
    return f"{towards}; bold: tokens differ" + ("; faded: unclear" if dataset.attrs["pairs"] > 1 else "")


def _part(site: str) -> str:
    """What a site has several of: keys and values have heads of their own, fewer with grouped queries."""
    return "neuron" if site.startswith("mlp") else "kv head" if site in ("k", "v") else "head"


def _filled(dataset: xr.Dataset, own: Any) -> dict[str, Any]:
    reach = float(np.nanmax(np.abs(own["attribution"].to_numpy()), initial=0.0)) or 1.0
    metric = dataset.attrs["metric"]
    unit = " (nats)" if metric in ("kl_from_clean", "log_probability") else ""
    clear = "!isValid(datum.low) || datum.low > 0 || datum.high < 0"
    magnitude = dataset.attrs["method"] in _MAGNITUDES
    scale = (
        alt.Scale(domain=[0, reach], range="heatmap", clamp=True)
        if magnitude
        else alt.Scale(domain=[-reach, reach], range="diverging", clamp=True)
    )
    words = f"{'size of ' if magnitude else ''}effect on {metric.replace('_', ' ')}{unit}"
    return {
        "color": alt.Color("attribution:Q", scale=scale, legend=alt.Legend(title=words, format=".2~g")),
        "opacity": alt.condition(clear, alt.value(1), alt.value(_FADED)),
    }


def _tooltip(own: Any, part: str) -> list[alt.Tooltip]:
    index = [] if (own["index"] < 0).all() else [alt.Tooltip("index:Q", title=part)]
    return [
        alt.Tooltip("token:N", title="token"),
        alt.Tooltip("block:Q", title="block"),
        *index,
        alt.Tooltip("attribution:Q", title="predicted effect", format="+.4f"),
    ]


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the attributions as a figure of a report, one variant for each site, and the exact nodes as another."""
    cells = frame(dataset)
    null = {"where nothing is to be found": "baseline"} if "baseline" in cells else {}
    exact = "node_effect" in dataset
    first = Figure(
        name=_TABLE,
        title=f"{_METHODS[dataset.attrs['method']]}: predicted effects",
        caption=(
            f"Effect on the {dataset.attrs['metric'].replace('_', ' ')} at the last position of patching each node, to "
            f"first order, mean over pairs ({dataset.attrs['pairs']}). Cells show the strongest head or neuron. Tokens "
            f"in bold differ between the prompts{FADED if dataset.attrs['pairs'] > 1 else ''}."
        ),
        draw=lambda site, **options: panel(dataset, cells, site=site, **options),
        frame=cells,
        choice="site",
        variants={name: {"site": name} for name in _sites(dataset)},
        linked=True,
        readout=Readout(bars=[Bar("site", "attribution", "low", "high")], facts=null),
    )
    return [first, agreement_figure(dataset, nodes_frame(dataset), group="group")] if exact else [first]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which node of each site ranks first, and how attributions agree with exact effects."""
    cells = frame(dataset)
    found: list[Finding] = []
    for site in _sites(dataset):
        own: Any = cells[cells["site"] == site]
        row = own.loc[own["attribution"].abs().idxmax()]
        total = float(dataset["total_effect"])
        if abs(row["attribution"]) < NOTHING * abs(total):
            found.append(Finding(f"No node of {site} has an effect to first order."))
            continue
        part = f", {_part(site)} {row['index']}" if row["index"] >= 0 else ""
        text = (
            f"Of {site}, “{row['token']}” (token {row['position']}, block {row['block']}{part}) ranks first: "
            f"{row['attribution']:+.3f} of {total:+.3f} in all{_exactly(dataset, site, row)}."
        )
        found.append(Finding(text, position=int(row["position"]), block=int(row["block"])))
    return [*found, *agreement_findings(dataset, nodes_frame(dataset))] if "node_effect" in dataset else found


def _exactly(dataset: xr.Dataset, site: str, row: Any) -> str:
    """Say the exact effect of a node, where it was patched."""
    if "node_effect" not in dataset:
        return ""
    layer = row["block"] + (site == "resid_pre")
    place = {"site": site, "layer": layer, "position": row["position"], "index": row["index"]}
    same = np.all([dataset[f"node_{name}"].values == value for name, value in place.items()], axis=0)
    return f" ({float(dataset['node_effect'].values[same][0]):+.3f} exactly)" if same.any() else ""


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the attributions out as one row for each site, layer and position: its strongest head or neuron."""
    token = [visible(str(text)) for text in dataset["token"].values]
    shape = dataset.sizes["layer"], dataset.sizes["position"]
    layer, position = (i.ravel() for i in np.indices(shape))
    tables = []
    for site in _sites(dataset):
        whole = dataset[f"attribution_{site}"].values.reshape(*shape, -1)
        best = np.abs(whole).argmax(-1)[..., None]
        columns: dict[str, Any] = {
            "site": site,
            "block": layer - (site == "resid_pre"),  # entering a block is leaving the one before
            "position": position,
            "index": best.ravel() if dataset[f"attribution_{site}"].ndim > 2 else -1,
            "token": [token[p] for p in position],
            "differs": dataset["differs"].values[position],
        }
        for column, name in (
            ("attribution", f"attribution_{site}"),
            ("low", f"attribution_{site}_low"),
            ("high", f"attribution_{site}_high"),
            ("baseline", f"baseline_attribution_{site}"),
        ):
            if name in dataset:
                values = dataset[name].values.reshape(*shape, -1)
                columns[column] = np.take_along_axis(values, best, -1).ravel()
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def nodes_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the nodes patched exactly out as one row each."""
    index = dataset["node_index"].values
    token = dataset["token"].values
    return pd.DataFrame(
        {
            "name": [
                f"{site}.{layer}{f' {_part(str(site))} {i}' if i >= 0 else ''} at {visible(str(token[p]))}"
                for site, layer, p, i in zip(
                    dataset["node_site"].values,
                    dataset["node_layer"].values,
                    dataset["node_position"].values,
                    index,
                    strict=True,
                )
            ],
            "group": dataset["node_group"].values,
            "predicted": dataset["node_attribution"].values,
            "exact": dataset["node_effect"].values,
            "low": dataset["node_effect_low"].values,
            "high": dataset["node_effect_high"].values,
            "missed": dataset["node_missed"].values,
        }
    )


def _sites(dataset: xr.Dataset) -> list[str]:
    return str(dataset.attrs["sites"]).split(", ")
