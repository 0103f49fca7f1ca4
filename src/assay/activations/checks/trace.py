"""What a causal trace is judged by."""

import numpy as np
import xarray as xr

from assay.activations.engine import engine_check
from assay.estimates.checks import Check, graded

LIKELY = 0.05
INVARIANT = 1e-4
BASELINE = 0.1


def trace_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts T101 to T105 on a causal trace.

    Args:
        dataset: the trace.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_answered(dataset), _corrupted(dataset)]
    if "baseline_indirect_effect" in dataset:
        checks.append(_baseline(dataset))
    if "state" in dataset["kind"].values and len(dataset.attrs["answer_tokens"]) == 1:
        checks.append(_restored(dataset))
    checks.append(engine_check("T105", dataset, "cells"))
    return checks


def _answered(dataset: xr.Dataset) -> Check:
    clean = float(dataset["p_clean"])
    message = f"The clean run gives {dataset.attrs['answer']!r} a probability of {clean:.3g}."
    if clean >= LIKELY:
        return Check("T101", "the model does not know the answer", "pass", clean, message)
    remedy = (
        "There is little to restore: trace an answer the model gives, leading space and all, or leave it out."
    )
    return Check("T101", "the model does not know the answer", "warn", clean, message, remedy)


def _corrupted(dataset: xr.Dataset) -> Check:
    total, low = float(dataset["total_effect"]), float(dataset["total_effect_low"])
    message = f"Corrupting the subject takes {total:.3g} from the answer's probability (95% interval from {low:.3g})."
    if total > 0 and not low <= 0:  # with one sample the bound is NaN, and the estimate alone decides
        return Check("T102", "corruption changes nothing", "pass", total, message)
    remedy = (
        "Raise the noise or the samples, or choose another replacement; do not read the indirect effects."
    )
    return Check("T102", "corruption changes nothing", "fail", total, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    largest = float(np.abs(dataset["indirect_effect"]).max())
    baseline = float(np.abs(dataset["baseline_indirect_effect"]).max())
    share = baseline / largest if largest > 0 else np.inf
    message = f"The largest effect in the untrained twin is {baseline:.2g}, {share:.1%} of the largest here."
    remedy = "What is seen is no more than the architecture gives with random weights; do not read cells of this size."
    return graded("T103", "an untrained twin shows the same", share, (BASELINE, np.inf), message, remedy)


def _restored(dataset: xr.Dataset) -> Check:
    error = abs(
        float(dataset["p_restored"].sel(kind="state").isel(layer=-1, position=-1)) - float(dataset["p_clean"])
    )
    message = f"Restoring the last state differs from the clean run by {error:.1e} in probability; it should equal it."
    title, remedy = "the last state does not restore the answer", "Run `assay doctor` on this model."
    return graded("T104", title, error, (INVARIANT, INVARIANT), message, remedy)
