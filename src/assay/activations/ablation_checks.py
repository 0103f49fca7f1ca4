"""What an ablation scan is judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-4
UNCLEAR = 0.5
ENOUGH = 20


def ablation_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts B101 to B104 on an ablation scan.

    Args:
        dataset: the scan.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_own(dataset)]
    if "baseline_effect" in dataset:
        checks.append(_baseline(dataset))
    return [*checks, _inputs(dataset), _engine(dataset)]


def _own(dataset: xr.Dataset) -> Check:
    error = float(dataset["own_value_effect"])
    message = f"Replacing a component by its own value changes the loss by {error:.1e} nats; it should not."
    if error <= INVARIANT:
        return Check("B101", "a component's own value changes the loss", "pass", error, message)
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return Check("B101", "a component's own value changes the loss", "fail", error, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(metric="kl_from_clean")
    share = float(np.mean(kl["effect"].values <= kl["baseline_effect"].values))
    message = f"For {share:.0%} of the components a random direction of the same size changes the model as much (KL)."
    if share <= UNCLEAR:
        return Check("B102", "random directions do as much", "pass", share, message)
    remedy = "Compare each component with `baseline_effect`: it may only be that the stream is disturbed."
    return Check("B102", "random directions do as much", "warn", share, message, remedy)


def _inputs(dataset: xr.Dataset) -> Check:
    count = dataset.sizes["input"]
    message = f"The intervals rest on {count} inputs."
    if count >= ENOUGH:
        return Check("B103", "few inputs", "pass", float(count), message)
    remedy = f"A bootstrap over fewer than {ENOUGH} inputs gives intervals that are too narrow; pass more."
    return Check("B103", "few inputs", "warn", float(count), message, remedy)


def _engine(dataset: xr.Dataset) -> Check:
    engine = dataset.attrs["engine"]
    message = f"Components were replaced by {engine}."
    if engine == "partial forwards":
        return Check("B104", "no partial forwards", "pass", None, message)
    remedy = (
        "The numbers are right, only slower; `assay doctor` says why blocks cannot continue a prefix here."
    )
    return Check("B104", "no partial forwards", "warn", None, message, remedy)
