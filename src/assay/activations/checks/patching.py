"""What patching is judged by."""

import numpy as np
import xarray as xr

from assay.activations.engine import engine_check
from assay.activations.indifferent import null_check
from assay.estimates.checks import Check, graded

INVARIANT = 1e-3


def patching_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P101 to P104 on a patching result.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_differ(dataset)]
    if "baseline_effect" in dataset:
        checks.append(null_check("P102", dataset, {"effect": "baseline_effect"}))
    last_layer, last = dataset.attrs["n_layers"] - 1, dataset.attrs["last_position"]
    if (
        dataset.attrs["site"] == "resid_post"
        and last in dataset["position"]
        and last_layer in dataset["layer"]
    ):
        checks.append(_last(dataset))
    return [*checks, engine_check("P104", dataset, "cells")]


def _differ(dataset: xr.Dataset) -> Check:
    total, low, high = (dataset[f"total_effect{part}"].values for part in ("", "_low", "_high"))
    # with one pair the bounds are NaN, and the estimate alone decides
    clear = (total != 0) & ~((low <= 0) & (high >= 0))
    unclear = [str(name) for name in dataset["metric"].values[~clear]]
    figure = float(len(unclear))
    if not unclear:
        message = "The two runs differ in every metric: the interval of each total effect excludes zero."
        return Check("P101", "the prompts do not differ", "pass", figure, message)
    message = f"The interval of the total effect includes zero for {', '.join(unclear)}."
    remedy = "Normalised effects of these metrics are not to be read: choose prompts that differ, or take more pairs."
    verdict = "fail" if len(unclear) == len(clear) else "warn"
    return Check("P101", "the prompts do not differ", verdict, figure, message, remedy)


def _last(dataset: xr.Dataset) -> Check:
    cell = dataset.sel(layer=dataset.attrs["n_layers"] - 1, position=dataset.attrs["last_position"])
    error = float(np.abs(cell["metric_patched"] - cell["metric_source"]).max())
    message = f"Patching the last state differs from the source run by {error:.1e}; it should equal it."
    remedy = "Run `assay doctor` on this model."
    return graded(
        "P103", "the last state is not the other run", error, (INVARIANT, INVARIANT), message, remedy
    )
