"""What path lengths are judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import few_inputs, unchanged, where_tried
from assay.estimates.checks import Check, graded

ALIKE = 0.1


def paths_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts K301 to K304 on path lengths.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_deepest(dataset), _bound(dataset)]
    if "baseline_gradient_share" in dataset:
        checks.append(_twin(dataset))
    return [*checks, few_inputs("K304", dataset)]


def _deepest(dataset: xr.Dataset) -> Check:
    error = float(dataset["effect"].sel(metric="kl_from_clean")[-1])
    message = f"With every block in a row KL from the model is {error:.1e} nats; it should be 0."
    return unchanged("K301", "the deepest is not the model", error, message)


def _bound(dataset: xr.Dataset) -> Check:
    broken = int((dataset["lower_bound"] > dataset["depth_enough"]).sum())
    message = f"At {broken} of {dataset.sizes['within']} tolerances fewer blocks in a row do than the horizon demands."
    remedy = "The horizon does not bound the depth here: what is forgotten is not what short paths carry."
    title = "short paths do more than the horizon allows"
    return graded("K302", title, float(broken), (0.0, np.inf), message, remedy)


def _twin(dataset: xr.Dataset) -> Check:
    difference = where_tried(dataset, "gradient_share_by_input") - dataset["baseline_gradient_share"]
    distance = float(np.abs(difference).sum() / 2)
    message = (
        f"The gradient's shares by length differ from those of an untrained twin by {distance:.2f} in all."
    )
    if distance >= ALIKE:
        return Check("K303", "an untrained twin's paths carry the same", "pass", distance, message)
    remedy = "The lengths that carry the gradient are those of the architecture, not of what was learned."
    return Check("K303", "an untrained twin's paths carry the same", "warn", distance, message, remedy)
