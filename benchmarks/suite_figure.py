"""The picture of the suite: estimate against truth for every network, with intervals; and its table in the docs."""

import json
import math
from typing import Any

import altair as alt
import pandas as pd

from assay.report.theme import config
from benchmarks.conditions import ROOT
from benchmarks.suite import RESULTS, SILENT, complete, relative_error, summary, truth_error
from benchmarks.table import table, write_between

PICTURE = ROOT / "docs" / "landscape" / "suite.svg"
PAGE = ROOT / "docs" / "landscape" / "calibration.md"
FURTHEST = 3
"""Networks that are named because they are furthest off."""


def main() -> None:
    rows = complete(json.loads(RESULTS.read_text())["cases"].values())
    figure(pd.DataFrame([_row(row) for row in rows])).configure(**config("light")).save(PICTURE)
    write_between(PAGE, text(rows))


def text(rows: list[dict[str, Any]]) -> list[str]:
    """Give a table of the families, and a paragraph on the networks furthest off."""
    head = ("family", "networks", "parameters", "median error", "90th percentile", "largest", "intervals that cover",
            SILENT, "promises")  # fmt: skip
    families = sorted({row["family"] for row in rows})
    lines = [_line(family, [row for row in rows if row["family"] == family]) for family in families]
    given = [row for row in rows if math.isfinite(row["llc"])]
    furthest = sorted(given, key=relative_error, reverse=True)[:FURTHEST]
    named = "; ".join(
        f"{row['family']} {row['name']}, {row['llc']:.4g} [{row['llc_low']:.4g}, {row['llc_high']:.4g}] "
        f"for {row['truth']:.4g} ± {truth_error(row):.2g}"
        for row in furthest
    )
    seconds = sum(row["cpu_s"] for row in rows)
    return [table(head, lines), f"Together {seconds:.0f} s of one core. Furthest off are: {named}."]


def _line(family: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    found, sizes = summary(rows), [row["parameters"] for row in rows]
    few, many = min(sizes), max(sizes)
    missed = [name for name, kept in found["kept"].items() if not kept and name != SILENT]
    return (
        family,
        f"{found['networks']}",
        f"{few:,}" if few == many else f"{few:,} to {many:,}",
        *(f"{found[name]:.1%}" for name in ("median error", "90th percentile", "largest error")),
        f"{found['coverage']:.0%}",
        f"{found[SILENT]}",
        f"not {', '.join(missed)}" if missed else "kept",
    )


def _row(row: dict[str, float | str]) -> dict[str, float | str]:
    truth = float(row["truth"])
    relative = {name: float(row[name]) / truth - 1 for name in ("llc", "llc_low", "llc_high")}
    return {"family": row["family"], "truth": truth, "estimate": row["llc"], **relative, "name": row["name"]}


def figure(networks: pd.DataFrame) -> alt.VConcatChart:
    """Draw estimate against truth above, and below what of it a log-log plot hides: the relative error."""
    x = alt.X("truth:Q", scale=alt.Scale(type="log"), title="what a perfect sampler finds")
    family = alt.Color("family:N", title=None, legend=alt.Legend(orient="top"))
    whole = alt.Chart(networks, width=560, height=230)
    line = pd.DataFrame({"truth": [networks["truth"].min(), networks["truth"].max()]})
    diagonal = alt.Chart(line).mark_line(strokeDash=[5, 4], color="#888888", strokeWidth=1)
    above = diagonal.encode(x="truth:Q", y="truth:Q") + whole.mark_point(
        size=32, filled=True, opacity=0.8
    ).encode(
        x=x,
        y=alt.Y("estimate:Q", scale=alt.Scale(type="log"), title="estimate, nothing chosen"),
        color=family,
    )
    near = alt.Chart(networks, width=560, height=150)
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
