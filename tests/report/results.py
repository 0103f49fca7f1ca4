"""Results made of synthetic datasets, as a report sees them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pandas as pd
import xarray as xr

from assay.estimates.checks import Check

CHECKS = [
    Check(
        "A201",
        "corruption changes nothing",
        "fail",
        0.001,
        "The corrupted run keeps 0.99 of the probability.",
        "Raise noise.",
    ),
    Check(
        "A202",
        "few noise samples",
        "warn",
        3.0,
        "3 noise samples give wide intervals.",
        "Set noise_samples=10.",
    ),
    Check("A203", "cells before the subject move", "pass", 0.0, "They equal the corrupted run to 0.0."),
]
MANIFEST = {
    "schema_version": 1,
    "measurement": "survey",
    "settings": {"tokens": [1, 2, 3], "noise": 3.0, "seed": 0},
    "model": {"source": "synthetic", "weight_hash": "0" * 16, "device": "cpu", "dtype": "float32"},
    "started": "2026-01-01T00:00:00Z",
    "units": [{"name": "position-000"}],
}


@dataclass
class SyntheticResult:
    """Stands in for `assay.Result`: a report needs no more of it."""

    dataset: xr.Dataset
    name: str
    checks: list[Check] = field(default_factory=lambda: list(CHECKS))
    manifest: dict[str, Any] = field(default_factory=lambda: dict(MANIFEST))

    @property
    def measurement(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.name)

    def table(self) -> pd.DataFrame:
        return self.dataset.to_dataframe().reset_index()
