"""Write the kept figures as Markdown tables between the markers of docs/benchmarks.md."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
ORDER = ("capture", "lens", "trace", "late-trace", "head-patches", "attribution", "deletions", "ablation", "norms",
         "import", "load", "help", "survey", "llc-a", "llc-b", "llc-m", "llc-smollm2", "llc-smollm2-head",
         "llc-smollm2-mlp")  # fmt: skip

Record = dict[str, Any]


def write_tables(results: Path, page: Path) -> None:
    """Replace what is between the page's markers by tables of all records in `results`."""
    kept = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    records = [record for record in kept if "case" in record]  # the accuracy suite has a page of its own
    devices = sorted(
        {record["conditions"]["device"] for record in records}, key=lambda device: device != "cpu"
    )
    sections = [
        _section(device, [r for r in records if r["conditions"]["device"] == device]) for device in devices
    ]
    write_between(page, sections)


def write_between(page: Path, parts: Iterable[str]) -> None:
    """Replace what is between a page's markers.

    Raises:
        ValueError: the page lacks a marker.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} needs the lines {BEGIN!r} and {END!r}, between which the tables go")
    page.write_text("\n\n".join([before + begin, *parts, end + after]))


def _section(device: str, records: list[Record]) -> str:
    records.sort(key=lambda record: ORDER.index(record["case"]))
    promised = table(
        ("case", "figure", "measured (95% interval)", "promised", "kept"),
        (_promise_row(record["case"], figure) for record in records for figure in record["figures"]),
    )
    timed = table(
        (
            "case",
            "contestant",
            "median s",
            "least s",
            "peak MB",
            "cells timed",
            "largest difference from Assay",
        ),
        (_time_row(record, label) for record in records for label in record["contestants"]),
    )
    titles = "\n".join(f"- **{record['case']}**: {record['title']}" for record in records)
    title = "On the CPU" if device == "cpu" else f"On a GPU: {device}"
    return "\n\n".join([f"## {title}", _conditions(records), titles, promised, timed])


def _conditions(records: Iterable[Record]) -> str:
    """One line for each machine and commit: its cases, the versions of every side, the busiest start of a case."""
    cases: dict[str, list[str]] = {}
    versions: dict[str, dict[str, str]] = {}
    load: dict[str, float] = {}
    for record in records:
        under = record["conditions"]
        place = (
            f"{under['cpu']}, {under['cores']} cores, {under['threads']} threads, commit {under['commit']}, "
            f"Python {under['python']}"
        )
        for found in (under["versions"], *record.get("versions", {}).values()):
            versions.setdefault(place, {}).update(found)
        cases.setdefault(place, []).append(record["case"])
        load[place] = max(load.get(place, 0.0), under["load_average"])
    return "\n\n".join(
        f"{', '.join(cases[place])}: {place}, {', '.join(f'{name} {version}' for name, version in told.items())}; "
        f"load of the machine before a case at most {load[place]:.1f}"
        for place, told in versions.items()
    )


def _promise_row(case: str, figure: Record) -> tuple[str, ...]:
    name = {
        "ratio": f"time of {figure['of']} / {figure['to']}",
        "difference": f"time of {figure['of']} - {figure['to']}",
        "seconds": f"time of {figure['of']}",
        "memory": f"peak memory of {figure['of']}, less the weights",
        "memory ratio": f"peak memory of {figure['of']} / {figure['to']}",
    }[figure["quantity"]]
    measured = _quantity(figure, figure["value"])
    if figure["low"] is not None:
        measured += f" ({_quantity(figure, figure['low'])} to {_quantity(figure, figure['high'])})"
    promised = (
        "" if figure["bound"] is None else f"{figure['direction']} {_quantity(figure, figure['bound'])}"
    )
    return case, name, measured, promised, {None: "", True: "yes", False: "**no**"}[figure["kept"]]


def _quantity(figure: Record, value: float) -> str:
    if figure["quantity"] == "memory":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.2f}x" if "ratio" in figure["quantity"] else f"{value:.2f} s"


def _time_row(record: Record, label: str) -> tuple[str, ...]:
    told = record["contestants"][label]
    partly = told.get("cells_timed", record.get("cells")) != record.get("cells")
    cells = f"{told['cells_timed']} of {record['cells']}" if partly or "trace" in record["case"] else ""
    differences = record["agreement"].get(label, {})
    return (
        record["case"],
        label,
        f"{told['median_seconds']:.3f}",
        f"{told['min_seconds']:.3f}",
        f"{told['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in told else "",
        cells,
        "; ".join(f"{name} {_difference(name, value)}" for name, value in differences.items()),
    )


def _difference(name: str, value: float) -> str:
    if name == "top_token":
        return f"{value:.2%} of ids"
    return f"{value:.1f}" if name == "standard errors" else f"{value:.1e}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
