"""What a result of layer surgery is judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import EXACT, few_inputs, unchanged, where_tried
from assay.estimates.checks import Check, graded

UNCLEAR = 0.5


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
    return [*checks, few_inputs("S303", dataset)]


def _unedited(dataset: xr.Dataset) -> Check:
    error = float(dataset["unedited_effect"])
    message = f"The layers run one by one in their usual order change the loss by {error:.1e} nats; they should not."
    return unchanged("S301", "the usual course is not the model", error, message, within=EXACT)


def _baseline(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(metric="kl_from_clean")
    share = float((where_tried(kl) <= kl["baseline_effect"]).mean())
    message = f"For {share:.0%} of the surgeries a random change of the stream by as much does as much (KL)."
    remedy = "Compare each surgery with `baseline_effect`: what is lost may be due to the size of the change alone."
    return graded(
        "S302", "random changes of the stream do as much", share, (UNCLEAR, np.inf), message, remedy
    )
