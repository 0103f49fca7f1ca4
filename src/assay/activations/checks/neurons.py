"""What neuron importances are judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

LIKELY = 0.05
AGREEMENT = 0.5
OVERLAP = 0.7


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
    remedy = (
        "Neurons are ranked for an unlikely answer: give one that the model gives, with its leading space."
    )
    return Check("N101", title, "warn", clean, message, remedy)


def _alive(dataset: xr.Dataset) -> Check:
    largest, title = float(np.max(dataset["importance_max"])), "no neuron matters"  # NaN where one cell is
    message = f"The largest attribution is {largest:.3g} nats."
    if np.isfinite(largest) and largest > 0:
        return Check("N102", title, "pass", largest, message)
    remedy = "No finite gradient reaches the neurons: run `assay doctor`, or load the model in float32."
    return Check("N102", title, "fail", largest, message, remedy)


def _agreement(dataset: xr.Dataset) -> Check:
    value, title = float(dataset["rank_correlation"]), "attribution disagrees with ablation"
    low, high = (float(dataset[f"rank_correlation_{end}"]) for end in ("low", "high"))
    agreement, count = f"{value:.2f} [{low:.2f}, {high:.2f}]", dataset.sizes["exact"]
    message = f"Attributions and exact ablations of {count} neurons have a rank correlation of {agreement}."
    if value >= AGREEMENT:
        return Check("N103", title, "pass", value, message)
    remedy = (
        "First-order effects are poor here: read the exact effects, raise `exact`, or ablate to the mean."
    )
    return Check("N103", title, "warn", value, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    """Compare where importance lies, not its size: random weights answer worse, so all their neurons weigh more."""
    here, twin = (dataset[name].to_numpy() for name in ("importance", "baseline_importance"))
    overlap, title = (
        float(np.minimum(here / here.sum(), twin / twin.sum()).sum()),
        "an untrained twin shows the same",
    )
    message = f"The untrained twin has {overlap:.0%} of its importance where this model has it."
    if overlap <= OVERLAP:
        return Check("N104", title, "pass", overlap, message)
    remedy = "Most of the picture is what the architecture gives with random weights; read only the cells that differ."
    return Check("N104", title, "warn", overlap, message, remedy)
