"""Judging a trajectory, from its dataset alone."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check, graded

BIAS = 0.1
"""Share of an estimate that the step size may add before a checkpoint counts as biased."""


def judge(dataset: xr.Dataset) -> list[Check]:
    """Give every verdict on a trajectory; see ``docs/checks.md`` for what each rests on."""
    return [_minima(dataset), _diverged(dataset), _agreement(dataset), _bias(dataset), _alignment(dataset)]


def _minima(dataset: xr.Dataset) -> Check:
    share = float((~dataset["at_minimum"]).mean())
    message = f"{share:.0%} of the checkpoints are no minimum: straight downhill lies lower loss."
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


def _agreement(dataset: xr.Dataset) -> Check:
    share = float((dataset["r_hat"] > 1.1).mean())
    message = f"At {share:.0%} of the checkpoints split R-hat is above 1.1."
    remedy = "The chains are not yet in one place there: more burn-in and more draws."
    return graded("L303", "chains disagree at checkpoints", share, (0.1, 0.5), message, remedy)


def _bias(dataset: xr.Dataset) -> Check:
    shares = np.abs(dataset["llc_bias"]) / np.maximum(np.abs(dataset["llc"]), 1e-12)
    share = float((shares > BIAS).mean())
    message = f"At {share:.0%} of the checkpoints the step size adds more than {BIAS:.0%} to the estimate."
    remedy = "Take a smaller step size, and as many times more steps, or a larger batch."
    return graded("L304", "the step size is too large for checkpoints", share, (0.1, 0.5), message, remedy)


def _alignment(dataset: xr.Dataset) -> Check:
    code, title, p = "L305", "no better aligned than chance", float(dataset["alignment_p"])
    count = int(dataset["drops"])
    if not count:
        return Check(code, title, "pass", None, "No drop in loss was found, so nothing is claimed of any.")
    share, chance = float(dataset["alignment"]), float(dataset["baseline_alignment"])
    message = (
        f"{share:.0%} of {count} drops in loss come with a rise in LLC, {chance:.0%} by chance (p = {p:.2g})."
    )
    if p <= 0.05:
        return Check(code, title, "pass", p, message)
    return Check(
        code, title, "warn", p, message, "Do not speak of alignment: take more seeds, or finer checkpoints."
    )
