"""Figures as files, for papers and slides: PDF, SVG, PNG, and the numbers behind them as CSV."""

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from assay.errors import BadInput
from assay.report.charts.grid import Orientation
from assay.report.contents import Reportable, figures_of

FORMATS = ("pdf", "svg", "png", "csv")
_PIXELS_PER_UNIT = 3.0


def save_figures(
    result: Reportable,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    *,
    orientation: Orientation = "layers-down",
) -> list[Path]:
    """Write every figure of a result, each variant in a file of its own, fonts embedded in PDF.

    Args:
        result: what to draw.
        folder: where the files go; it is made when missing.
        formats: some of ``"pdf"``, ``"svg"``, ``"png"`` (3 pixels to the unit) and ``"csv"`` (one a figure).
        orientation: which way layers run, for layer-by-token figures.

    Returns:
        The files written.

    Raises:
        BadInput: when a format is not known, or the measurement has no chart.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise BadInput(f"Format {', '.join(unknown)} is not known: choose among {', '.join(FORMATS)}.")
    figures = figures_of(result)
    if not figures:
        raise BadInput(f"{result.measurement.name} has no chart; its numbers are in .table().")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for figure in figures:
        for label, options in figure.variants.items():
            way = {"orientation": orientation} if figure.linked else {}
            spec = figure.chart(**options, **way).to_json()
            stem = f"{figure.name}-{label.replace(', ', '-')}" if len(figure.variants) > 1 else figure.name
            written += [
                _write(target / f"{stem}.{kind}", _drawn(spec, kind)) for kind in formats if kind != "csv"
            ]
        if "csv" in formats:
            written.append(
                _write(target / f"{figure.name}.csv", _inert(figure.frame).to_csv(index=False).encode())
            )
    return written


def _drawn(spec: str, kind: str) -> bytes:
    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=version).encode()
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(spec, vl_version=version)
    return vl_convert.vegalite_to_png(spec, vl_version=version, scale=_PIXELS_PER_UNIT)


def _inert(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    words = frame.select_dtypes(exclude="number").select_dtypes(exclude="bool")
    return frame.assign(**{name: words[name].str.replace(r"^(?=[=+\-@])", "'", regex=True) for name in words})


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
