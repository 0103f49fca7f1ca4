"""What path lengths are judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-3
ALIKE = 0.1
ENOUGH = 20


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
    return [*checks, _inputs(dataset)]


def _deepest(dataset: xr.Dataset) -> Check:
    error = float(dataset["effect"].sel(metric="kl_from_clean")[-1])
    message = f"With every block in a row KL from the model is {error:.1e} nats; it should be 0."
    if error <= INVARIANT:
        return Check("K301", "the deepest is not the model", "pass", error, message)
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return Check("K301", "the deepest is not the model", "fail", error, message, remedy)


def _bound(dataset: xr.Dataset) -> Check:
    broken = int((dataset["lower_bound"] > dataset["depth_enough"]).sum())
    message = f"At {broken} of {dataset.sizes['within']} tolerances fewer blocks in a row do than the horizon demands."
    if not broken:
        return Check("K302", "short paths do more than the horizon allows", "pass", float(broken), message)
    remedy = "The horizon does not bound the depth here: what is forgotten is not what short paths carry."
    return Check(
        "K302", "short paths do more than the horizon allows", "warn", float(broken), message, remedy
    )


def _twin(dataset: xr.Dataset) -> Check:
    difference = dataset["gradient_share"] - dataset["baseline_gradient_share"]
    distance = float(np.abs(difference).sum() / 2)
    message = (
        f"The gradient's shares by length differ from those of an untrained twin by {distance:.2f} in all."
    )
    if distance >= ALIKE:
        return Check("K303", "an untrained twin's paths carry the same", "pass", distance, message)
    remedy = "The lengths that carry the gradient are those of the architecture, not of what was learned."
    return Check("K303", "an untrained twin's paths carry the same", "warn", distance, message, remedy)


def _inputs(dataset: xr.Dataset) -> Check:
    count = dataset.sizes["input"]
    message = f"The intervals rest on {count} inputs."
    if count >= ENOUGH:
        return Check("K304", "few inputs", "pass", float(count), message)
    remedy = f"A bootstrap over fewer than {ENOUGH} inputs gives intervals that are too narrow; pass more."
    return Check("K304", "few inputs", "warn", float(count), message, remedy)
