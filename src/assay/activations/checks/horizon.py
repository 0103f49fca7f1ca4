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
    """Not asked of reach 0, at which everything is forgotten, and nothing is left to be drawn."""
    kl = dataset.sel(metric="kl_from_clean").drop_sel(horizon=0, errors="ignore")
    kl = kl.isel(horizon=(kl["baseline_effect"] > INVARIANT).values)
    share = float((where_tried(kl) >= kl["baseline_effect"]).mean()) if kl.sizes["horizon"] else 0.0
    message = f"At {share:.0%} of the horizons forgetting as many sources of any distance does no more (KL)."
    remedy = "What is read does not depend on how far back it was written; do not speak of a horizon."
    return graded("H302", "distance does not matter", share, (UNCLEAR, np.inf), message, remedy)


def _tried(dataset: xr.Dataset) -> Check:
    """A reach is the smallest where it was tried, or forgets nothing, and the one below it, if any, was tried too."""
    smallest, tried, longest = (
        dataset["smallest_horizon"].values,
        dataset["horizon"].values,
        dataset.attrs["longest"],
    )
    known = np.isin(smallest - 1, [-1, *tried]) & np.isin(smallest, [*tried, longest, longest + 1])
    unknown = int((~known).sum())
    message = f"For {unknown} of {len(known)} tolerances the horizon lies among reaches that were not tried."
    remedy = f"Try those next to `smallest_horizon`, up to {longest}, which forgets nothing."
    title = "the horizon is not among what was tried"
    return graded("H303", title, float(unknown), (0.0, np.inf), message, remedy)
