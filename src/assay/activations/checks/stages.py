"""What stages of inference are judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import INVARIANT, few_inputs, unchanged, where_tried
from assay.estimates.checks import Check, graded

AS_MANY = 0.5
ALIKE = 0.25
"""Above what two untrained twins of SmolLM2 differ by on one input: 0.18."""
TELLING = 3
"""Layers that a course relative to its start and zero at its end needs to have a shape."""


def stages_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts G301 to G304 on stages of inference.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_last(dataset)]
    if "baseline_stage" in dataset and dataset.sizes["layer"] >= TELLING:
        checks.append(_twin(dataset))
    if "baseline_neuron_share" in dataset:
        checks.append(_shuffled(dataset))
    return [*checks, few_inputs("G304", dataset)]


def _last(dataset: xr.Dataset) -> Check:
    error = float(dataset["stage"].sel(curve="kl_to_final")[-1])
    message = f"KL from the final prediction after the last layer is {error:.1e} nats; it should be 0."
    return unchanged("G301", "the last layer is not the model", error, message)


def _twin(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(curve="kl_to_final")
    courses = (where_tried(kl, "stage_by_input").values, kl["baseline_stage"].values)
    own, twin = (course / max(float(course[0]), INVARIANT) for course in courses)
    distance = float(np.abs(own - twin).max())
    message = (
        f"KL from the final prediction, relative to layer 0, is up to {distance:.2f} away from a twin's."
    )
    if distance >= ALIKE:
        return Check("G302", "an untrained twin has such stages too", "pass", distance, message)
    remedy = "The curves may be due to the architecture; compare every one with `baseline_stage`."
    return Check("G302", "an untrained twin has such stages too", "warn", distance, message, remedy)


def _shuffled(dataset: xr.Dataset) -> Check:
    own, null = (
        float(dataset[name].sum("kind").mean()) for name in ("neuron_share", "baseline_neuron_share")
    )
    share = null / own if own else 1.0
    message = f"{own:.2%} of the neurons speak of few tokens; with their output weights in another order {null:.2%}."
    remedy = "Where these neurons write in the unembedding does not matter; read no layer's share as a stage."
    return graded("G303", "shuffled neurons count as well", share, (AS_MANY, np.inf), message, remedy)
