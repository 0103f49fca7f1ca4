"""A result: labelled arrays, their checks, and the record of how they came about."""

import importlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from assay.estimates.checks import Check
from assay.runs import folder as folders
from assay.runs.measurement import Measurement, from_settings
from assay.runs.table import checks_html, tidy

CHARTS = "assay.report.charts"
REPORT = "assay.report.page"


@dataclass(frozen=True, eq=False)
class Result:
    """What a measurement gives back.

    Attributes:
        dataset: labelled arrays; ``x_stderr``, ``x_low`` and ``x_high`` belong to the variable ``x``.
        checks: coded verdicts on this result; read those that do not pass first.
        manifest: how it came about: settings, seeds, versions, model and weight hash, device, times.
        measurement: the settings it was made with.
        path: its run folder; None where it was kept in memory.
    """

    dataset: xr.Dataset
    checks: list[Check]
    manifest: dict[str, Any]
    measurement: Measurement
    path: Path | None = None

    def table(self) -> pd.DataFrame:
        """Give every number as one row: variable, its coordinates, value, stderr, low, high, text."""
        return tidy(self.dataset)

    def chart(self, **options: Any) -> Any:
        """Draw the measurement's chart, an Altair chart; ``options`` are those of its chart module.

        Raises:
            LookupError: when the measurement has no chart.
        """
        module = f"{CHARTS}.{self.measurement.name}"
        if not _exists(module):
            raise LookupError(
                f"{self.measurement.name} has no chart; its numbers are in .table() and .dataset"
            )
        return importlib.import_module(module).chart(self.dataset, **options)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the offline HTML report and give its path.

        Args:
            path: the file to write; by default ``report.html`` in the run folder, or in the working directory
                for a result kept in memory.
        """
        target = Path(path) if path is not None else (self.path or Path()) / "report.html"
        return Path(importlib.import_module(REPORT).write_report(self, target))

    def save(self, folder: str | Path) -> Path:
        """Write the result as a run folder at ``folder`` and give its path.

        A folder that holds anything already, or cannot be written, is `BadInput`.
        """
        return folders.save(Path(folder), self.manifest, self.dataset, self.checks)

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read the result of a finished run folder.

        A folder that is not a run, a run that is not finished, and a damaged result are `BadInput`.
        """
        manifest = folders.read_manifest(Path(folder))
        dataset, checks = folders.read_result(Path(folder), manifest)
        measurement = from_settings(manifest["measurement"], manifest["settings"])
        return cls(dataset, checks, manifest, measurement, Path(folder))

    def __repr__(self) -> str:
        """Say in a few lines what it is: the checks that do not pass first, then what the dataset holds."""
        amiss = [check for check in self.checks if check.verdict != "pass"]
        told = [f"{check.verdict.upper()} {check.code} {check.title}: {check.message}" for check in amiss]
        passed = f"{len(self.checks) - len(amiss)} of {len(self.checks)} checks passed"
        sizes = ", ".join(f"{name}: {size}" for name, size in self.dataset.sizes.items())
        variables = ", ".join(map(str, self.dataset.data_vars))
        return "\n".join([f"{self.measurement.name}: {passed}", *told, f"({sizes}) {variables}"])

    def _repr_html_(self) -> str:
        return checks_html(self.checks) + self._picture()

    def _picture(self) -> str:
        """Give the chart as inline SVG, or the table where the measurement has no chart."""
        if not _exists(f"{CHARTS}.{self.measurement.name}"):
            return self.table().to_html(max_rows=20, index=False, escape=True)
        svg = io.StringIO()
        self.chart().save(svg, format="svg")
        return svg.getvalue()


def _exists(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None
