"""What stages of inference are judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-3
TAILS = 0.01
ALIKE = 0.1
ENOUGH = 20


def stages_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts G301 to G304 on stages of inference.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_last(dataset)]
    if "baseline_stage" in dataset:
        checks.append(_twin(dataset))
    if "baseline_neuron_share" in dataset:
        checks.append(_random(dataset))
    return [*checks, _inputs(dataset)]


def _last(dataset: xr.Dataset) -> Check:
    error = float(dataset["stage"].sel(curve="kl_from_final")[-1])
    message = f"KL from the final prediction after the last layer is {error:.1e} nats; it should be 0."
    if error <= INVARIANT:
        return Check("G301", "the last layer is not the model", "pass", error, message)
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return Check("G301", "the last layer is not the model", "fail", error, message, remedy)


def _twin(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(curve="kl_from_final")
    courses = [
        kl[name].values / max(float(kl[name].values[0]), INVARIANT) for name in ("stage", "baseline_stage")
    ]
    distance = float(np.abs(courses[0] - courses[1]).max())
    message = (
        f"KL from the final prediction, relative to layer 0, is up to {distance:.2f} away from a twin's."
    )
    if distance >= ALIKE:
        return Check("G302", "an untrained twin has such stages too", "pass", distance, message)
    remedy = "The curves may be due to the architecture; compare every one with `baseline_stage`."
    return Check("G302", "an untrained twin has such stages too", "warn", distance, message, remedy)


def _random(dataset: xr.Dataset) -> Check:
    share = float(np.max(dataset["baseline_neuron_share"]))
    message = f"{share:.1%} of random directions count as prediction or suppression neurons."
    if share <= TAILS:
        return Check("G303", "random directions count as neurons", "pass", share, message)
    remedy = (
        "The unembedding itself has heavy tails; read shares of neurons above `baseline_neuron_share` only."
    )
    return Check("G303", "random directions count as neurons", "warn", share, message, remedy)


def _inputs(dataset: xr.Dataset) -> Check:
    count = dataset.sizes["input"]
    message = f"The intervals rest on {count} inputs."
    if count >= ENOUGH:
        return Check("G304", "few inputs", "pass", float(count), message)
    remedy = f"A bootstrap over fewer than {ENOUGH} inputs gives intervals that are too narrow; pass more."
    return Check("G304", "few inputs", "warn", float(count), message, remedy)
