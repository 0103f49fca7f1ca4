"""What direct logit attribution is judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-3
MISLEADING = 0.5


def direct_path_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts R101 to R103 on an attribution.

    Args:
        dataset: the attribution.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_sum(dataset), _frozen(dataset)]
    return [*checks, _baseline(dataset)] if "baseline_attribution" in dataset else checks


def _sum(dataset: xr.Dataset) -> Check:
    error, size = float(dataset["sum_error"]), 1 + float(np.abs(dataset["attribution"]).max())
    message = f"Attributions and constant differ from the {dataset.attrs['target']} by {error:.1e}."
    if error <= INVARIANT * size:
        return Check("R101", "attributions do not add up", "pass", error, message)
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return Check("R101", "attributions do not add up", "fail", error, message, remedy)


def _frozen(dataset: xr.Dataset) -> Check:
    error, largest = (float(np.abs(dataset[name]).max()) for name in ("freezing_error", "direct_effect"))
    share = error / largest if largest > 0 else 0.0
    message = f"Freezing the norm misstates a direct effect by up to {share:.0%} of the largest one."
    if share <= MISLEADING:
        return Check("R102", "the frozen norm misleads", "pass", share, message)
    remedy = "Read `direct_effect` instead: removing such a component changes the scale of the final norm."
    return Check("R102", "the frozen norm misleads", "warn", share, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    largest, baseline = (
        float(np.abs(dataset[name]).max()) for name in ("attribution", "baseline_attribution")
    )
    share = baseline / largest if largest > 0 else np.inf
    message = f"The largest mean attribution to random tokens is {share:.0%} of the largest here."
    if share <= MISLEADING:
        return Check("R103", "random tokens get as much", "pass", share, message)
    remedy = "The components write much to every token; take a foil, so that what they share cancels."
    return Check("R103", "random tokens get as much", "warn", share, message, remedy)
