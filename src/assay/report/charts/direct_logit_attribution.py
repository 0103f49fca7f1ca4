"""Direct logit attribution: what each component writes straight into the logit, and what it would truly take away."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.text import visible
from assay.report.theme import finished

_TABLE = "direct_logit_attribution"
_STRONGEST = 20
_CELL = 16
_FADED = 0.3
_LINE = "#4c78a8"  # as the points: seen on light and on dark pages


def chart(dataset: xr.Dataset) -> alt.HConcatChart:
    """Draw an attribution, ready to show or save.

    Args:
        dataset: result of `assay.direct_logit_attribution`.

    Returns:
        An Altair chart in the light theme: every part of every block, and the strongest components with their
        intervals beside their true direct effects.
    """
    cells = frame(dataset)
    return finished(panel(dataset, cells), {_TABLE: cells})


def panel(dataset: xr.Dataset, cells: pd.DataFrame) -> alt.HConcatChart:
    """Draw the table without a configuration, to be put beside others."""
    base = alt.Chart(alt.NamedData(name=_TABLE))
    return alt.hconcat(_blocks(base, dataset, cells), _bars(base, dataset))


def _blocks(base: alt.Chart, dataset: xr.Dataset, cells: pd.DataFrame) -> alt.Chart:
    reach = float(np.nanmax(np.abs(cells["attribution"].to_numpy()), initial=0.0)) or 1.0
    columns = list(dict.fromkeys(cells.sort_values("place")["column"]))
    clear = "!isValid(datum.attribution_low) || datum.attribution_low > 0 || datum.attribution_high < 0"
    fill = alt.Color(
        "attribution:Q",
        scale=alt.Scale(domain=[-reach, reach], range="diverging", clamp=True),
        legend=alt.Legend(title=f"attribution to the {dataset.attrs['target']}", format=".2~g"),
    )
    return (
        base.mark_rect()
        .encode(
            x=alt.X("column:O", sort=columns, title=None, axis=alt.Axis(orient="top", labelAngle=-90)),
            y=alt.Y(
                "layer:O", title="block", axis=alt.Axis(labelExpr="datum.value < 0 ? 'in' : datum.value")
            ),
            color=fill,
            opacity=alt.condition(clear, alt.value(1), alt.value(_FADED)),
            tooltip=_tooltip(),
        )
        .properties(
            width=alt.Step(_CELL),
            height=alt.Step(_CELL),
            title=alt.TitleParams("By block", subtitle="faded: interval includes zero"),
        )
    )


def _bars(base: alt.Chart, dataset: xr.Dataset) -> Any:
    """The strongest components with their intervals, and what removing their direct path really does."""
    ranked = (
        base.transform_calculate(size="abs(datum.attribution)")
        .transform_window(order="row_number()", sort=[alt.SortField("size", order="descending")])
        .transform_filter(f"datum.order <= {_STRONGEST}")
    )
    rows = alt.Y("component:N", sort=alt.EncodingSortField("size", op="max", order="descending"), title=None)
    axis = alt.X("attribution:Q", title=f"attribution to the {dataset.attrs['target']}")
    known = ranked.transform_filter("isValid(datum.attribution_low)")
    spread = known.mark_rule(color=_LINE).encode(y=rows, x="attribution_low:Q", x2="attribution_high:Q")
    points = ranked.mark_point(filled=True, size=36).encode(y=rows, x=axis, tooltip=_tooltip())
    true = ranked.mark_tick(style="accent", thickness=2, size=10).encode(y=rows, x="direct_effect:Q")
    return alt.layer(spread, points, true).properties(
        width=240,
        height=alt.Step(_CELL),
        title=alt.TitleParams(
            f"The {_STRONGEST} strongest", subtitle="line: 95% interval; tick: true direct effect"
        ),
    )


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("component:N", title="component"),
        alt.Tooltip("attribution:Q", title="attribution", format="+.4f"),
        alt.Tooltip("direct_effect:Q", title="true direct effect", format="+.4f"),
        alt.Tooltip("random_tokens:Q", title="mean size for random tokens", format=".4f"),
    ]


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the attribution as a figure of a report."""
    cells, told = frame(dataset), dataset.attrs
    against = f" minus that of “{visible(str(told['foil']), space=' ')}”" if told["foil"] else ""
    return [
        Figure(
            name=_TABLE,
            title="Direct logit attribution",
            caption=(
                f"What each component writes straight into the logit of “{visible(str(told['answer']), space=' ')}”"
                f"{against}, the final norm held fixed; mean over prompts ({told['prompts']}). A block's attention is "
                "the sum of its heads and a bias. A tick is what is lost when a component's direct path is cut."
            ),
            draw=lambda: panel(dataset, cells),
            frame=cells,
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the attribution out as one row for each component; ``column`` is where it stands in its block."""
    kinds, heads = dataset["kind"].values.astype(str), dataset["head"].values
    columns = [_column(str(kind), int(head)) for kind, head in zip(kinds, heads, strict=True)]
    table: dict[str, Any] = {
        "component": dataset["component"].values.astype(str),
        "layer": dataset["layer"].values,
        "column": [name for name, _ in columns],
        "place": [place for _, place in columns],
    }
    for name in ("attribution", "direct_effect", "freezing_error"):
        for part in ("", "_stderr", "_low", "_high"):
            table[name + part] = dataset[name + part].values
    if "baseline_attribution" in dataset:
        table["random_tokens"] = dataset["baseline_attribution"].values
    return pd.DataFrame(table)


def _column(kind: str, head: int) -> tuple[str, int]:
    """Name and place of a component's column: heads first, then the whole of a block's parts."""
    if kind == "head":
        return f"head {head}", head
    return kind, 1_000_000 + ["attention", "mlp", "embed"].index(kind)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which component writes the most, what cutting it does, and what the attributions add up to."""
    cells = frame(dataset)
    row: Any = cells.loc[cells["attribution"].abs().idxmax()]
    spread = f" ± {row['attribution_stderr']:.3g}" if np.isfinite(row["attribution_stderr"]) else ""
    text = (
        f"Of the {dataset.attrs['target']} of {float(dataset['target']):.3g}, {row['component']} writes the most: "
        f"{row['attribution']:+.3g}{spread}; cutting its direct path really takes {row['direct_effect']:+.3g}."
    )
    return [Finding(text, block=int(row["layer"]))]
