"""What stages of inference are judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import INVARIANT, few_inputs, unchanged
from assay.estimates.checks import Check, graded

TAILS = 0.01
ALIKE = 0.1


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
    return [*checks, few_inputs("G304", dataset)]


def _last(dataset: xr.Dataset) -> Check:
    error = float(dataset["stage"].sel(curve="kl_from_final")[-1])
    message = f"KL from the final prediction after the last layer is {error:.1e} nats; it should be 0."
    return unchanged("G301", "the last layer is not the model", error, message)


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
    remedy = (
        "The unembedding itself has heavy tails; read shares of neurons above `baseline_neuron_share` only."
    )
    return graded("G303", "random directions count as neurons", share, (TAILS, np.inf), message, remedy)
