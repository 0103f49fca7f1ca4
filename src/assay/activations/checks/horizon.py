"""What a layer horizon is judged by."""

import numpy as np
import xarray as xr

from assay.activations.checks.data_set import INVARIANT, few_inputs, unchanged, where_tried
from assay.estimates.checks import Check, graded

UNCLEAR = 0.5


def horizon_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts H301 to H304 on a layer horizon.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_unedited(dataset)]
    if "baseline_effect" in dataset:
        checks.append(_baseline(dataset))
    return [*checks, _tried(dataset), few_inputs("H304", dataset)]


def _unedited(dataset: xr.Dataset) -> Check:
    error = float(dataset["unedited_effect"])
    message = f"Readers that read everything change the loss by {error:.1e} nats; they should not."
    return unchanged("H301", "forgetting nothing changes the loss", error, message)


def _baseline(dataset: xr.Dataset) -> Check:
    kl = dataset.sel(metric="kl_from_clean")
    kl = kl.isel(horizon=(kl["baseline_effect"] > INVARIANT).values)
    share = float((where_tried(kl) >= kl["baseline_effect"]).mean()) if kl.sizes["horizon"] else 0.0
    message = f"At {share:.0%} of the horizons forgetting as many sources of any distance does no more (KL)."
    remedy = "What is read does not depend on how far back it was written; do not speak of a horizon."
    return graded("H302", "distance does not matter", share, (UNCLEAR, np.inf), message, remedy)


def _tried(dataset: xr.Dataset) -> Check:
    largest, longest = int(dataset["horizon"].max()), int(dataset.attrs["longest"])
    beyond = int((dataset["smallest_horizon"] > largest).sum())
    message = f"{beyond} of {dataset.sizes['within']} tolerances are not reached by a reach of {largest}."
    if not beyond or largest == longest:
        return Check("H303", "the horizon is farther than was tried", "pass", float(beyond), message)
    remedy = f"Try longer ones, up to {longest}, which forgets nothing."
    return Check("H303", "the horizon is farther than was tried", "warn", float(beyond), message, remedy)
