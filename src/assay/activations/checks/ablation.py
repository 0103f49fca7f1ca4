"""What an ablation scan is judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import EXACT, few_inputs, unchanged
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
    kl = dataset.sel(metric="kl_from_clean")
    share = float(np.mean(kl["effect"].values <= kl["baseline_effect"].values))
    message = f"For {share:.0%} of the components a random direction of the same size changes the model as much (KL)."
    remedy = "Compare each component with `baseline_effect`: it may only be that the stream is disturbed."
    return graded("B102", "random directions do as much", share, (UNCLEAR, np.inf), message, remedy)
