"""What scores of edges are judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.attribution import agreement_check, differ_check, missed_check
from assay.activations.engine import engine_check
from assay.activations.indifferent import null_check
from assay.estimates.checks import Check, graded

QUADRATURE = 0.05


def edge_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P301 to P306 on scores of edges.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P301")]
    if "rank_correlation" in dataset:
        checks += [agreement_check(dataset, "P302", "edges"), missed_check(dataset, "P303", "edges")]
    if dataset.attrs["method"] == "eap_ig":
        checks.append(_quadrature(dataset))
    if "baseline_score" in dataset:
        checks.append(null_check("P305", dataset, {"score": "baseline_score"}))
    return [*checks, engine_check("P306", dataset, "edges")] if "rank_correlation" in dataset else checks


def _quadrature(dataset: xr.Dataset) -> Check:
    error = float(dataset["quadrature_error"])
    message = (
        f"The slopes on the way say {float(dataset['predicted_total']):.4g}, the runs differ by "
        f"{float(dataset['total_effect']):.4g}: an error of {error:.1%}."
    )
    remedy = "Take more steps, and quadrature='adaptive'."
    return graded("P304", "slopes do not add up", error, (QUADRATURE, np.inf), message, remedy)
