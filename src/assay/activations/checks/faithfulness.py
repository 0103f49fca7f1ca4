"""What faithfulness is judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.attribution import differ_check
from assay.estimates.checks import Check, graded

GRAPH = 1e-3


def faithfulness_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P501 to P503 on faithfulness.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P501"), _graph(dataset)]
    return [*checks, _baseline(dataset)] if "lead" in dataset else checks


def _graph(dataset: xr.Dataset) -> Check:
    error = float(dataset["graph_error"])
    limit = GRAPH * max(1.0, abs(float(dataset["metric_full"])), abs(float(dataset["metric_empty"])))
    message = f"With all edges, and with none, the graph differs from the two runs by {error:.1e}."
    remedy = "Run `assay doctor` on this model; load it in float32."
    return graded("P502", "the graph is not the model", error, (limit, limit), message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    lead, low, high = (float(dataset[f"lead{part}"]) for part in ("", "_low", "_high"))
    title, sets = "random sets are as faithful", dataset.attrs["random_sets"]
    spread = f"[{low:.3g}, {high:.3g}]" if np.isfinite(low) else "(one pair: no interval)"
    message = f"The circuit falls short of the model by {lead:.3g} {spread} less than the best of {sets} random sets."
    if (low if np.isfinite(low) else lead) > 0:
        return Check("P503", title, "pass", lead, message)
    remedy = (
        "The circuit is not told from chance: look at the agreement of the scores, or measure more pairs."
    )
    return Check("P503", title, "warn", lead, message, remedy)
