"""What path patching is judged by."""

import numpy as np
import xarray as xr

from assay.activations.attribution_checks import differ_check, engine_check
from assay.estimates.checks import Check

BASELINE = 0.5


def path_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P401 to P403 on path patching.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P401")]
    if "baseline_effect" in dataset:
        checks.append(_baseline(dataset))
    return [*checks, engine_check(dataset, "P403", "paths")]


def _baseline(dataset: xr.Dataset) -> Check:
    towards = np.sign(float(dataset["total_effect"]))
    largest, random = (
        float(np.nanmax(towards * dataset[name].values, initial=0.0))
        for name in ("effect", "baseline_effect")
    )
    share, title = (random / largest if largest else np.inf), "a random prompt tells as much"
    message = (
        f"What random tokens say moves the metric towards the other run by {share:.1%} of the largest effect."
    )
    if share <= BASELINE:
        return Check("P402", title, "pass", share, message)
    remedy = "Compare each path with `baseline_effect`: it may matter whatever the sender says."
    return Check("P402", title, "warn", share, message, remedy)
