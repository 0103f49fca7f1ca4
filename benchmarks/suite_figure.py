"""The picture of the suite: estimate against truth for every network, with intervals."""

import json

import altair as alt
import pandas as pd

from assay.report.theme import config
from benchmarks.conditions import ROOT
from benchmarks.suite import RESULTS

PICTURE = ROOT / "docs" / "landscape" / "suite.svg"


def main() -> None:
    rows = list(json.loads(RESULTS.read_text())["cases"].values())
    figure(pd.DataFrame([_row(row) for row in rows])).configure(**config("light")).save(PICTURE)


def _row(row: dict[str, float | str]) -> dict[str, float | str]:
    truth = float(row["truth"])
    relative = {name: float(row[name]) / truth - 1 for name in ("llc", "llc_low", "llc_high")}
    return {"family": row["family"], "truth": truth, "estimate": row["llc"], **relative, "name": row["name"]}


def figure(table: pd.DataFrame) -> alt.VConcatChart:
    """Draw estimate against truth above, and below what of it a log-log plot hides: the relative error."""
    x = alt.X("truth:Q", scale=alt.Scale(type="log"), title="what a perfect sampler finds")
    family = alt.Color("family:N", title=None, legend=alt.Legend(orient="top"))
    whole = alt.Chart(table, width=560, height=230)
    line = pd.DataFrame({"truth": [table["truth"].min(), table["truth"].max()]})
    diagonal = alt.Chart(line).mark_line(strokeDash=[5, 4], color="#888888", strokeWidth=1)
    above = diagonal.encode(x="truth:Q", y="truth:Q") + whole.mark_point(
        size=32, filled=True, opacity=0.8
    ).encode(
        x=x,
        y=alt.Y("estimate:Q", scale=alt.Scale(type="log"), title="estimate, nothing chosen"),
        color=family,
    )
    near = alt.Chart(table, width=560, height=150)
    percent = alt.Axis(format="+.0%")
    limits = alt.Scale(domain=[-0.12, 0.12], clamp=True)
    zero = alt.Chart(pd.DataFrame({"error": [-0.1, 0.0, 0.1]})).mark_rule(strokeDash=[5, 4], color="#888888")
    below = (
        zero.encode(y=alt.Y("error:Q", scale=limits))
        + near.mark_rule().encode(x=x, y=alt.Y("llc_low:Q", scale=limits), y2="llc_high:Q", color=family)
        + near.mark_point(size=32, filled=True, opacity=0.8).encode(
            x=x, y=alt.Y("llc:Q", scale=limits, title="error, 95 % interval", axis=percent), color=family
        )
    )
    return alt.vconcat(above, below)


if __name__ == "__main__":
    main()
