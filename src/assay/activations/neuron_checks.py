"""What neuron importances are judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

LIKELY = 0.05
AGREEMENT = 0.5
BASELINE = 0.5


def neuron_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts N101 to N104 on neuron importances.

    Args:
        dataset: the importances.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_answered(dataset), _alive(dataset), _agreement(dataset)]
    return [*checks, _baseline(dataset)] if "baseline_importance" in dataset else checks


def _answered(dataset: xr.Dataset) -> Check:
    clean, title = float(dataset["p_clean"]), "the model does not know the answer"
    message = f"The model gives {dataset.attrs['answer']!r} a probability of {clean:.3g}."
    if clean >= LIKELY:
        return Check("N101", title, "pass", clean, message)
    remedy = "Neurons are ranked by what they do to an unlikely answer: give one the model gives, with its leading space."
    return Check("N101", title, "warn", clean, message, remedy)


def _alive(dataset: xr.Dataset) -> Check:
    largest, title = float(np.max(dataset["importance_max"])), "no neuron matters"  # NaN where one cell is
    message = f"The largest attribution is {largest:.3g} nats."
    if np.isfinite(largest) and largest > 0:
        return Check("N102", title, "pass", largest, message)
    remedy = "No gradient, or none that is finite, reaches the neurons: run `assay doctor`, or load the model in float32."
    return Check("N102", title, "fail", largest, message, remedy)


def _agreement(dataset: xr.Dataset) -> Check:
    value, title = float(dataset["rank_correlation"]), "attribution disagrees with ablation"
    low, high = (float(dataset[f"rank_correlation_{end}"]) for end in ("low", "high"))
    count = dataset.sizes["exact"]
    message = f"Attributions and exact ablations of {count} neurons have a rank correlation of {value:.2f} [{low:.2f}, {high:.2f}]."
    if value >= AGREEMENT:
        return Check("N103", title, "pass", value, message)
    remedy = "First-order effects are poor here: read the exact effects, raise `exact`, or ablate to the mean."
    return Check("N103", title, "warn", value, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    largest, baseline = (float(np.max(dataset[name])) for name in ("importance", "baseline_importance"))
    share, title = baseline / largest if largest > 0 else np.inf, "an untrained twin shows the same"
    message = f"The largest mean importance in the untrained twin is {baseline:.2g} nats, {share:.1%} of the largest here."
    if share <= BASELINE:
        return Check("N104", title, "pass", share, message)
    remedy = "Cells of the twin's size are what the architecture gives with random weights; read those that stand out."
    return Check("N104", title, "warn", share, message, remedy)
