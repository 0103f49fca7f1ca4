"""Average causal trace: mean effect of restoring each layer, one panel a kind, one line a token role."""

from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput
from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "average_trace"
_TITLES = {
    "state": "state restored",
    "mlp": "MLP outputs restored",
    "attn": "attention outputs restored",
    "state_mlp_severed": "state restored, MLPs severed",
    "state_attn_severed": "state restored, attention severed",
}
_ROLES = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "next": "next token",
    "further": "further tokens",
    "last": "last token",
}
# The hues of Okabe and Ito, apart for every kind of colour blindness and legible on white and on black; a role is
# told by its dashes too.
_COLOURS = ["#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#999999", "#0072b2"]
_DASHES = [[2, 2], [6, 2], [1, 0], [6, 2, 2, 2], [2, 4], [10, 2]]
_WIDTH, _HEIGHT, _SIDE_BY_SIDE = 250, 190, 3


def chart(dataset: xr.Dataset, *, kind: str | Literal["all"] = "all") -> alt.ConcatChart:
    """Draw the average indirect effects, ready to show or save.

    Args:
        dataset: result of `assay.average_causal_trace`.
        kind: what was restored; ``"all"`` puts the kinds of the dataset side by side.

    Returns:
        An Altair chart in the light theme.

    Raises:
        BadInput: when `kind` is not in the dataset.
    """
    kinds = [str(name) for name in dataset["kind"].values]
    if kind not in {*kinds, "all"}:
        raise BadInput(
            f"kind={kind!r} was not traced: this average has {', '.join(kinds)}; 'all' shows every one."
        )
    table = frame(dataset)
    return finished(panels(table, kinds if kind == "all" else [kind]), {_TABLE: table})


def panels(table: pd.DataFrame, kinds: list[str]) -> alt.ConcatChart:
    """Draw kinds side by side, on one vertical scale and with one legend, without a configuration."""
    return alt.concat(*(_panel(table, kind) for kind in kinds), columns=_SIDE_BY_SIDE).resolve_scale(
        y="shared"
    )


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the averages as a figure of a report."""
    table, kinds = frame(dataset), [str(name) for name in dataset["kind"].values]
    return [
        Figure(
            name=_TABLE,
            title="Average causal trace",
            caption=(
                f"Mean indirect effect over {int(dataset['n_known'])} facts of restoring each layer at the tokens of a "
                "role, with the 95% interval over facts as a band. Average total effect of the corruption: "
                f"{_interval(dataset, 'average_total_effect')}. Dotted line at zero: the largest size of any role's "
                "average in an untrained twin."
            ),
            draw=lambda: panels(table, kinds),
            frame=table,
        )
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say for each kind where the average effect is largest."""
    return [_largest(dataset, str(kind)) for kind in dataset["kind"].values if _some(dataset, str(kind))]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the averages out as one row for each kind, role and layer."""
    dims = ("kind", "role", "layer")
    kind, role, layer = (index.ravel() for index in np.indices(tuple(dataset.sizes[dim] for dim in dims)))

    def flat(name: str) -> np.ndarray:
        return dataset[name].transpose(*dims).values.ravel()

    columns: dict[str, Any] = {
        "kind": dataset["kind"].values[kind].astype(str),
        "role": [_ROLES[str(name)] for name in dataset["role"].values[role]],
        "block": dataset["layer"].values[layer],
        "effect": flat("average_indirect_effect"),
        **{f"effect_{part}": flat(f"average_indirect_effect_{part}") for part in ("stderr", "low", "high")},
        "facts": dataset["n_facts"].values[role],
    }
    if "baseline_average_indirect_effect" in dataset:
        columns["untrained_effect"] = flat("baseline_average_indirect_effect")
    return pd.DataFrame(columns)


def _panel(table: pd.DataFrame, kind: str) -> alt.LayerChart | alt.FacetChart:
    names = list(_ROLES.values())
    legend = alt.Legend(
        title=None, columns=3, symbolType="stroke", symbolStrokeWidth=2, symbolSize=500, symbolOpacity=1
    )
    colour = alt.Color("role:N", scale=alt.Scale(domain=names, range=_COLOURS), legend=legend)
    dashes = alt.StrokeDash("role:N", scale=alt.Scale(domain=names, range=_DASHES), legend=legend)
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.kind === '{kind}'")
    title = "restored after block" if kind.startswith("state") else "block in the middle of the window"
    where = alt.X("block:Q", title=title, axis=alt.Axis(tickMinStep=1), scale=alt.Scale(nice=False))
    band = base.mark_area(opacity=0.15).encode(x=where, y="effect_low:Q", y2="effect_high:Q", color=colour)
    line = base.mark_line(strokeWidth=1.8).encode(
        x=where,
        y=alt.Y("effect:Q", title="average indirect effect", axis=alt.Axis(grid=True)),
        color=colour,
        strokeDash=dashes,
        tooltip=[
            alt.Tooltip("role:N", title="token"),
            alt.Tooltip("block:Q", title=title),
            alt.Tooltip("effect:Q", title="average indirect effect", format="+.4f"),
            alt.Tooltip("effect_low:Q", title="95% from", format="+.4f"),
            alt.Tooltip("effect_high:Q", title="95% to", format="+.4f"),
            alt.Tooltip("facts:Q", title="facts"),
        ],
    )
    layers: list[alt.Chart] = [band, line]
    if "untrained_effect" in table:
        size = base.transform_calculate(size="abs(datum.untrained_effect)")
        layers.append(
            size.mark_line(color="#808080", strokeDash=[1, 2], strokeWidth=1.2).encode(
                x=where, y="max(size):Q"
            )
        )
    return alt.layer(*layers, title=_TITLES.get(kind, kind), width=_WIDTH, height=_HEIGHT)


def _some(dataset: xr.Dataset, kind: str) -> bool:
    return bool(np.isfinite(dataset["average_indirect_effect"].sel(kind=kind)).any())


def _largest(dataset: xr.Dataset, kind: str) -> Finding:
    here = dataset.sel(kind=kind)
    effect = here["average_indirect_effect"].transpose("role", "layer").values
    role, layer = (int(index) for index in np.unravel_index(np.nanargmax(effect), effect.shape))
    cell, title = here.isel(role=role, layer=layer), _TITLES.get(kind, kind)
    return Finding(
        f"{title[:1].upper()}{title[1:]}: the largest average effect, "
        f"{_interval(cell, 'average_indirect_effect')}, is at the {_ROLES[str(cell['role'].values)]} after block "
        f"{int(cell['layer'])}, over {int(cell['n_facts'])} facts.",
        block=int(cell["layer"]),
    )


def _interval(dataset: xr.Dataset, name: str) -> str:
    low, high = float(dataset[f"{name}_low"]), float(dataset[f"{name}_high"])
    return f"{float(dataset[name]):.3f} [{low:.3f}, {high:.3f}]"
