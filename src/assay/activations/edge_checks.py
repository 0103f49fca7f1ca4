"""What scores of edges are judged by."""

import numpy as np
import xarray as xr

from assay.activations.attribution_checks import agreement_check, differ_check, engine_check, missed_check
from assay.estimates.checks import Check

QUADRATURE = 0.05
BASELINE = 0.5


def edge_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P301 to P306 on scores of edges.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P301")]
    if "rank_correlation" in dataset:
        checks += [agreement_check(dataset, "P302"), missed_check(dataset, "P303", "edges")]
    if dataset.attrs["method"] == "eap_ig":
        checks.append(_quadrature(dataset))
    if "baseline_score" in dataset:
        checks.append(_baseline(dataset))
    return [*checks, engine_check(dataset, "P306", "edges")] if "rank_correlation" in dataset else checks


def _quadrature(dataset: xr.Dataset) -> Check:
    error, title = float(dataset["quadrature_error"]), "slopes do not add up"
    message = (
        f"The slopes on the way say {float(dataset['predicted_total']):.4g}, the runs differ by "
        f"{float(dataset['total_effect']):.4g}: an error of {error:.1%}."
    )
    if error <= QUADRATURE:
        return Check("P304", title, "pass", error, message)
    remedy = "Take more steps, and quadrature='adaptive'."
    return Check("P304", title, "warn", error, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    towards = np.sign(float(dataset["total_effect"]))
    largest, random = (
        float(np.nanmax(towards * dataset[name].values, initial=0.0)) for name in ("score", "baseline_score")
    )
    share, title = (random / largest if largest else np.inf), "a random prompt scores as much"
    message = f"The largest score of random tokens towards the other run is {share:.1%} of the largest here."
    if share <= BASELINE:
        return Check("P305", title, "pass", share, message)
    remedy = "Compare each edge with `baseline_score`: its slope is steep whatever is put there."
    return Check("P305", title, "warn", share, message, remedy)
