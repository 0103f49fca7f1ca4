"""What path patching is judged by."""

import xarray as xr

from assay.activations.checks.attribution import differ_check
from assay.activations.engine import engine_check
from assay.activations.indifferent import null_check
from assay.estimates.checks import Check


def path_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P401 to P403 on path patching.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P401")]
    if "baseline_effect" in dataset:
        checks.append(null_check("P402", dataset, {"effect": "baseline_effect"}))
    return [*checks, engine_check("P403", dataset, "paths")]
