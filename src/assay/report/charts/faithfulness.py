"""Faithfulness: how much circuits of growing size carry, beside random sets."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_TABLE = "faithfulness"
_ONE = "one random set"
_CURVES = {"signed": "by signed score", "absolute": "by size of score", "given": "circuit"}
"""What the circuits of each ranking are called."""
_WIDTH, _HEIGHT = 380, 240


def chart(dataset: xr.Dataset) -> alt.LayerChart:
    """Draw faithfulness against size, ready to show or save.

    Args:
        dataset: result of `assay.faithfulness`.

    Returns:
        An Altair chart in the light theme.
    """
    rows = frame(dataset)
    return finished(panel(dataset, rows), {_TABLE: rows})


def panel(dataset: xr.Dataset, rows: pd.DataFrame) -> alt.LayerChart:
    """Draw the curves from the table, without a configuration."""
    level = dataset.attrs["level"]
    low, high = float(np.nanmin([0.0, *rows["faithfulness"]])), float(np.nanmax([1.0, *rows["faithfulness"]]))
    curves = [*(_CURVES[name] for name in dataset["ranking"].values), "random sets"]
    x = alt.X(
        "percent:Q",
        scale=alt.Scale(type="log"),
        title=f"{level} in the circuit, % of {dataset.attrs['total']}",
    )
    y = alt.Y(
        "faithfulness:Q", title="faithfulness", scale=alt.Scale(domain=[low - 0.05, high + 0.05], clamp=True)
    )
    table = alt.Chart(alt.NamedData(name=_TABLE))
    base = table.transform_filter(f"datum.which !== '{_ONE}'")
    colour = alt.Color("which:N", title=None, sort=curves, legend=alt.Legend(symbolOpacity=1))
    dash = alt.StrokeDash("which:N", sort=curves, legend=None)
    whole = alt.Chart(alt.InlineData(values=[{"level": 0.0}, {"level": 1.0}]))
    layers: list[Any] = [
        whole.mark_rule(strokeDash=[2, 3], opacity=0.5).encode(y=alt.Y("level:Q", title="faithfulness")),
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.18)
        .encode(x=x, y=alt.Y("low:Q", title="faithfulness"), y2="high:Q", color=colour),
        table.transform_filter(f"datum.which === '{_ONE}'")
        .transform_calculate(which="'random sets'")
        .mark_line(strokeWidth=1, opacity=0.4)
        .encode(x=x, y=y, color=colour, detail="set:N"),
        base.mark_line(point=True).encode(
            x=x,
            y=y,
            color=colour,
            strokeDash=dash,
            tooltip=[
                alt.Tooltip("which:N"),
                alt.Tooltip("count:Q", title=str(level)),
                alt.Tooltip("faithfulness:Q", format=".3f"),
            ],
        ),
    ]
    title = alt.TitleParams(f"Faithfulness of {level}", subtitle=_areas(dataset))
    return alt.LayerChart(layer=layers).properties(width=_WIDTH, height=_HEIGHT, title=title)


def _areas(dataset: xr.Dataset) -> str:
    if "cpr" not in dataset:
        return f"{int(dataset['count'].values[0])} given by name"
    said = ", ".join(f"{name.upper()} {_told(dataset, name)}" for name in ("cpr", "cmd"))
    by = ", signed for CPR and by size for CMD" if dataset.sizes["ranking"] > 1 else ""
    return f"ranked by {dataset.attrs['ranking']}{by}; {said}"


def _lead(dataset: xr.Dataset) -> str:
    """How much nearer to the model the circuit is than random sets, and how far apart these are."""
    if "lead" not in dataset:
        return ""
    said = f" The circuit is nearer to the model than the best random set by {_told(dataset, 'lead')}."
    if "baseline_cmd_by_set" not in dataset:
        return said
    sets = dataset["baseline_cmd_by_set"].values
    return f" Random sets have a CMD of {sets.mean():.3f} ({sets.min():.3f} to {sets.max():.3f}).{said}"


def _told(dataset: xr.Dataset, name: str) -> str:
    value, low, high = (float(dataset[name + part]) for part in ("", "_low", "_high"))
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else "")


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the curves as a figure of a report."""
    rows = frame(dataset)
    return [
        Figure(
            name=_TABLE,
            title="Faithfulness",
            caption=(
                f"Share of the {dataset.attrs['metric'].replace('_', ' ')} between the corrupted (0) and the clean "
                f"run (1) that is left when only the circuit carries the prompt ({dataset.attrs['pairs']} pairs). "
                f"Dashed: random sets of equal size, mean of {dataset.attrs['random_sets']}; thin: each of them. Bands "
                f"are 95% bootstrap intervals over pairs. {_areas(dataset)}.{_lead(dataset)}"
            ),
            draw=lambda **_options: panel(dataset, rows),
            frame=rows,
        )
    ]


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say how large a circuit does most of the work, and what random sets do."""
    values, counts = dataset["faithfulness"].values[-1], dataset["count"].values
    enough = np.flatnonzero(values >= 0.9)
    level, total = dataset.attrs["level"], dataset.attrs["total"]
    place = int(enough[0]) if len(enough) else int(np.nanargmax(values)) if np.isfinite(values).any() else 0
    random = ""
    if "baseline_faithfulness" in dataset:
        random = f"; random sets of that size {dataset['baseline_faithfulness'].values[place]:.2f}"
    text = f"{counts[place]} of {total} {level} have a faithfulness of {values[place]:.2f}{random}. {_areas(dataset)}."
    text += _lead(dataset)
    return [Finding(text, position=0)]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the curves out as one row for each size: of each ranking, of the mean of random sets, of each of these."""
    tables = []
    curves = [(_CURVES[str(name)], "", {"ranking": name}) for name in dataset["ranking"].values]
    if "baseline_faithfulness" in dataset:
        curves.append(("random sets", "baseline_", {}))
    common = {"percent": 100 * dataset["size"].values, "count": dataset["count"].values}
    for which, prefix, at in curves:
        values = {
            column: dataset[f"{prefix}faithfulness{part}"].sel(at).values
            for column, part in (("faithfulness", ""), ("low", "_low"), ("high", "_high"))
        }
        tables.append(pd.DataFrame({"which": which, **common, **values}))
    for number, curve in enumerate(dataset.get("baseline_faithfulness_by_set", [])):
        tables.append(pd.DataFrame({"which": _ONE, "set": number, **common, "faithfulness": curve.values}))
    return pd.concat(tables, ignore_index=True)
