"""Judging refined learning coefficients, from their dataset alone."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check, graded
from assay.landscape.learning_coefficient_checks import DRIFT, UNEXPLORED, WIDE, drifting
from assay.landscape.trajectory_checks import AGREEING, BIAS

SOME = (0.0, 0.5)
"""Shares of the parts beyond which a check warns, and fails."""


def judge(dataset: xr.Dataset) -> list[Check]:
    """Give every verdict; see ``docs/checks.md`` for what each rests on."""
    size, half = np.maximum(abs(dataset["llc"]), 1e-12), (dataset["llc_high"] - dataset["llc_low"]) / 2
    sound = dataset["at_minimum"]
    longer = "Take more burn-in and more draws."
    rows = [
        (
            ("L401", "parts in whose weights the anchor is no minimum"), ~sound,
            "a descent finds lower loss; there is no estimate of these",
            "Train to the end, or take a loss to the anchor, such as kl_to_anchor.",
        ),
        (
            ("L402", "chains diverged in parts"), dataset["llc_per_chain"].isnull().any("chain") & sound,
            "chains ended in NaN or infinity", "Take a step size a third as large.",
        ),
        (("L403", "chains disagree in parts"), dataset["r_hat"] > AGREEING, f"split R-hat is above {AGREEING}", longer),
        (
            ("L404", "chains drift in parts"), drifting(dataset),
            f"the halves of the draws differ beyond chance, and by more than {DRIFT:.0%}", longer,
        ),
        (
            ("L405", "the step size is too large for parts"), abs(dataset["llc_bias"]) > BIAS * size,
            f"the step size adds more than {BIAS:.0%} to the estimate",
            "Take a smaller step size, and as many times more steps, or a larger batch.",
        ),
        (
            ("L406", "flat directions are not explored in parts"), dataset["unexplored"] > UNEXPLORED,
            f"more than {UNEXPLORED:.0%} of the directions are still free",
            "The LLC is that of the neighbourhood that was reached: take a larger localization, or walk longer.",
        ),
        (
            ("L407", "intervals are wide"), half > WIDE * size,
            f"the interval reaches more than {WIDE:.0%} of the estimate to either side",
            "Take more draws or more chains; do not rank parts whose intervals overlap.",
        ),
    ]  # fmt: skip
    return [_share(*row) for row in rows]


def _share(named: tuple[str, str], beyond: xr.DataArray, what: str, remedy: str) -> Check:
    """Judge in which share of the parts a diagnostic is beyond what is allowed of it, naming the first of them."""
    where = [str(part) for part, is_so in zip(beyond["part"].values, beyond.values, strict=True) if is_so]
    message = f"In {len(where)} of {beyond.size} parts {what}"
    message += f": {', '.join(where[:4])}{', ...' if len(where) > 4 else ''}." if len(where) else "."
    return graded(*named, float(beyond.mean()), SOME, message, remedy)
