"""What a result of layer surgery is judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-4
UNCLEAR = 0.5
ENOUGH = 20


def surgery_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts S301 to S303 on layer surgery.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_unedited(dataset)]
    if "baseline_effect" in dataset:
        checks.append(_baseline(dataset))
    return [*checks, _inputs(dataset)]


def _unedited(dataset: xr.Dataset) -> Check:
    error = float(dataset["unedited_effect"])
    message = f"The layers run one by one in their usual order change the loss by {error:.1e} nats; they should not."
    if error <= INVARIANT:
        return Check("S301", "the usual course is not the model", "pass", error, message)
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return Check("S301", "the usual course is not the model", "fail", error, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(metric="kl_from_clean")
    share = float(np.mean(kl["effect"].values <= kl["baseline_effect"].values))
    message = f"For {share:.0%} of the surgeries a random change of the stream by as much does as much (KL)."
    if share <= UNCLEAR:
        return Check("S302", "random changes of the stream do as much", "pass", share, message)
    remedy = "Compare each surgery with `baseline_effect`: what is lost may be due to the size of the change alone."
    return Check("S302", "random changes of the stream do as much", "warn", share, message, remedy)


def _inputs(dataset: xr.Dataset) -> Check:
    count = dataset.sizes["input"]
    message = f"The intervals rest on {count} inputs."
    if count >= ENOUGH:
        return Check("S303", "few inputs", "pass", float(count), message)
    remedy = f"A bootstrap over fewer than {ENOUGH} inputs gives intervals that are too narrow; pass more."
    return Check("S303", "few inputs", "warn", float(count), message, remedy)
