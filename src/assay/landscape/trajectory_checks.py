"""Judging a trajectory, from its dataset alone."""

import math

import numpy as np
import xarray as xr

from assay.estimates.checks import Check, graded
from assay.landscape.learning_coefficient_checks import DRIFT, UNEXPLORED, WIDE, drifting

AGREEING, BIAS = 1.1, 0.1
"""Split R-hat, and the share of an estimate that the step size may add, up to which a checkpoint counts as sound."""
SOME, FEW = (0.1, 0.5), (0.1, math.inf)
"""Shares of the checkpoints beyond which a check warns, and fails."""


def judge(dataset: xr.Dataset) -> list[Check]:
    """Give every verdict on a trajectory; see ``docs/checks.md`` for what each rests on."""
    return [_minima(dataset), _diverged(dataset), *_shares(dataset), _alignment(dataset)]


def _minima(dataset: xr.Dataset) -> Check:
    share = float((~dataset["at_minimum"]).mean())
    message = f"{share:.0%} of the checkpoints are no minimum: a descent finds lower loss."
    remedy = (
        "Do not read the LLC there as a learning coefficient. To ask how degenerate the function is that the network "
        "computes, take a loss to the anchor, such as squared_distance_to_anchor."
    )
    return graded("L301", "checkpoints that are no minima", share, (0.0, 0.5), message, remedy)


def _diverged(dataset: xr.Dataset) -> Check:
    code, title = "L302", "chains diverged at a checkpoint"
    lost = dataset["llc_per_chain"].isnull()
    if not bool(lost.any()):
        return Check(code, title, "pass", 0.0, "No chain diverged.")
    where = dataset["step"].to_numpy()[lost.any([dim for dim in lost.dims if dim != "step"]).to_numpy()]
    message = f"{int(lost.sum())} chains ended in NaN or infinity, first at step {where[0]}."
    return Check(code, title, "fail", float(lost.sum()), message, "Take a step size a third as large.")


def _shares(dataset: xr.Dataset) -> list[Check]:
    """Judge at how many checkpoints a diagnostic is beyond what is allowed of it."""
    size, half = np.maximum(abs(dataset["llc"]), 1e-12), (dataset["llc_high"] - dataset["llc_low"]) / 2
    longer = "The chains are not yet in one place there: more burn-in and more draws."
    rows = [
        (
            ("L303", "chains disagree at checkpoints"), dataset["r_hat"] > AGREEING, SOME,
            f"split R-hat is above {AGREEING}", longer,
        ),
        (
            ("L304", "the step size is too large for checkpoints"),
            abs(dataset["llc_bias"]) > BIAS * size, SOME,
            f"the step size adds more than {BIAS:.0%} to the estimate",
            "Take a smaller step size, and as many times more steps, or a larger batch.",
        ),
        (
            ("L306", "chains still drift at checkpoints"), drifting(dataset), SOME,
            f"the halves of the draws differ beyond chance, and by more than {DRIFT:.0%}", longer,
        ),
        (
            ("L307", "flat directions are not explored at checkpoints"),
            dataset["unexplored"] > UNEXPLORED, FEW,
            f"more than {UNEXPLORED:.0%} of the directions are still free",
            "The LLC is that of the neighbourhood that was reached: take a larger localization, or walk longer.",
        ),
        (
            ("L308", "intervals are wide"), half > WIDE * size, FEW,
            f"the interval reaches more than {WIDE:.0%} of the estimate to either side",
            "Take more draws or more chains; differences within the band are none.",
        ),
    ]  # fmt: skip
    return [_share(*row) for row in rows]


def _share(
    named: tuple[str, str], beyond: xr.DataArray, limits: tuple[float, float], what: str, remedy: str
) -> Check:
    share = float(beyond.mean())
    return graded(*named, share, limits, f"At {share:.0%} of the checkpoints {what}.", remedy)


def _alignment(dataset: xr.Dataset) -> Check:
    code, title, p = "L305", "no better aligned than chance", float(dataset["alignment_p"])
    count = int(dataset["drops"])
    if not count:
        return Check(code, title, "pass", None, "No drop in loss was found, so nothing is claimed of any.")
    aligned = f"{float(dataset['alignment']):.0%} of {count} drops in loss come with a rise in LLC"
    if math.isnan(p):
        message = f"{aligned}; of one run alone nobody can say how many would by chance."
        return Check(code, title, "warn", None, message, "Do not speak of alignment: take several runs.")
    message = f"{aligned}, {float(dataset['baseline_alignment']):.0%} by chance (p = {p:.2g})."
    if p <= 0.05:
        return Check(code, title, "pass", p, message)
    return Check(
        code, title, "warn", p, message, "Do not speak of alignment: take more runs, or finer checkpoints."
    )
