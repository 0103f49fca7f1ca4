"""What an ablation scan is judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import EXACT, few_inputs, unchanged, where_tried
from assay.activations.engine import engine_check
from assay.estimates.checks import Check, graded

UNCLEAR = 0.5


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
    return [*checks, few_inputs("B103", dataset), engine_check("B104", dataset, "components")]


def _own(dataset: xr.Dataset) -> Check:
    error, title = float(dataset["own_value_effect"]), "a component's own value changes the loss"
    message = f"Replacing a component by its own value changes the loss by {error:.1e} nats; it should not."
    return unchanged("B101", title, error, message, within=EXACT)


def _baseline(dataset: xr.Dataset) -> Check:
    """Compared where random directions were tried: KL rises by what is replaced, and falls by what is frozen."""
    kl = dataset.sel(metric="kl_from_clean")
    effect, random = where_tried(kl), kl["baseline_effect"]
    if dataset.attrs["value"] == "freeze":  # a random step mostly does harm: taking nothing back is no less
        weak, done = effect >= np.minimum(random, 0), ", or none, takes as much of the noise back"
    else:
        weak, done = effect <= random, " changes the model as much"
    share = float(weak.mean())
    message = f"For {share:.0%} of the components a random direction of the same size{done} (KL)."
    remedy = "Compare each component with `baseline_effect`: it may only be that the stream is disturbed."
    return graded("B102", "random directions do as much", share, (UNCLEAR, np.inf), message, remedy)
