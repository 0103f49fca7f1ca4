"""What a chart module gives to a report.

A module ``report/charts/<measurement>.py`` has ``chart(dataset, **options)``. It may also have
``figures(dataset) -> list[Figure]`` (otherwise its chart is its one figure, over the tidy table of all
numbers) and ``findings(dataset) -> list[Finding]``.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol

import pandas as pd
import xarray as xr

from assay.estimates.checks import Check
from assay.report.figure import Figure, Finding

_CHARTS = "assay.report.charts"


class Named(Protocol):
    """A measurement, as far as a report looks at it."""

    name: ClassVar[str]
    """The name its chart module goes by."""


class Reportable(Protocol):
    """What a report needs of a result; `assay.Result` has it."""

    @property
    def dataset(self) -> xr.Dataset:
        """Labelled arrays."""
        ...

    @property
    def checks(self) -> Sequence[Check]:
        """Verdicts."""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """How the result came about."""
        ...

    @property
    def measurement(self) -> Named:
        """What was measured."""
        ...

    def table(self) -> pd.DataFrame:
        """Every number as one row."""
        ...


def figures_of(result: Reportable) -> list[Figure]:
    """Give the figures of a result; none when its measurement has no chart."""
    module = _chart_module(result)
    if module is None:
        return []
    if hasattr(module, "figures"):
        return module.figures(result.dataset)
    name = str(result.measurement.name)
    return [
        Figure(
            name=name,
            title=name.replace("_", " ").capitalize(),
            caption=str(module.__doc__ or "").partition("\n")[0],
            draw=lambda **options: module.chart(result.dataset, **options),
            frame=result.table(),
        )
    ]


def findings_of(result: Reportable) -> list[Finding]:
    """Give the sentences derived from a result's dataset; none when its chart module derives none."""
    module = _chart_module(result)
    return module.findings(result.dataset) if module is not None and hasattr(module, "findings") else []


def _chart_module(result: Reportable) -> ModuleType | None:
    name = f"{_CHARTS}.{result.measurement.name}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
