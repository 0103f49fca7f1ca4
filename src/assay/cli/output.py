"""What is written where: results on stdout, everything that is said on the way on stderr."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

    from assay.estimates.checks import Check

SIGNS = {"pass": "✓", "warn": "!", "fail": "✗"}
COLOURS = {"pass": "32", "warn": "33", "fail": "31"}
ORDER = ("fail", "warn", "pass")


def print_error(message: str, *, as_json: bool) -> None:
    """Say on stderr, or in JSON on stdout, why there is no result."""
    if as_json:
        print_json({"error": message})
    else:
        print(f"assay: {printable(message)}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Write one JSON document to stdout."""
    print(json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False), flush=True)


def jsonable(value: Any) -> Any:
    """Give a value as JSON can hold it: dataclasses as objects, paths as text, NaN and infinity as null."""
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case Iterable():
            return [jsonable(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)


def dataset_document(dataset: "xr.Dataset") -> dict[str, Any]:
    """Give a dataset as nested lists with their dims, the twin of its table."""
    described = {
        part: {
            str(name): {"dims": list(array.dims), "data": array.to_numpy().tolist()}
            for name, array in arrays.items()
        }
        for part, arrays in (("coords", dataset.coords), ("variables", dataset.data_vars))
    }
    return {"sizes": dict(dataset.sizes), **described, "attrs": dataset.attrs}


def check_lines(checks: Sequence["Check"]) -> list[str]:
    """One line a check, those that fail first; a remedy in a line of its own."""
    lines: list[str] = []
    for verdict in ORDER:
        for check in (check for check in checks if check.verdict == verdict):
            title = "" if verdict == "pass" else f"{check.title}: "  # titles name what is wrong
            lines.append(
                f"{_coloured(SIGNS[verdict], verdict)} {check.code} {printable(title + check.message)}"
            )
            if check.remedy:
                lines.append(f"       {printable(check.remedy)}")
    return lines


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows of text in columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def printable(text: str) -> str:
    """Write control characters, which could act on a terminal, as escapes."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def note(text: str, *, quiet: bool) -> None:
    """Say on stderr what is being done."""
    if not quiet:
        print(printable(text), file=sys.stderr, flush=True)


def say(lines: Iterable[str]) -> None:
    """Write lines to stdout; what comes from models and files must have passed `printable`."""
    for line in lines:
        print(line)


def amount(number: float) -> str:
    """A count of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1024
    return f"{number:.3g} GiB"


def duration(seconds: float) -> str:
    """A time for people, in two significant parts."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def path_text(path: Path) -> str:
    """A path as it can be opened from anywhere."""
    return printable(str(path.resolve()))


def _coloured(text: str, verdict: str) -> str:
    return f"\033[{COLOURS[verdict]}m{text}\033[0m" if sys.stdout.isatty() else text
