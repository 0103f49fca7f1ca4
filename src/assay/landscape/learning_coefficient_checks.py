"""Judging an estimate of the learning coefficient, from its dataset alone."""

import math

import xarray as xr
from scipy import stats

from assay.estimates.checks import Check, graded
from assay.landscape.minimum import steepest

BIAS = 0.15
"""Share of the estimate that the step size may add, before it is subtracted, before a warning; twice that fails.

What the law of first order leaves is of second order: of a bias of 30 %, some 9 %.
"""
UNEXPLORED = 0.5
"""Share of the directions that are still free above which there is a warning."""
AGREED = 0.05
"""Half the width of the interval, as a share of the estimate, below which chains that disagree only warn."""
DRIFT = 0.02
"""Share of the estimate by which the halves of the draws may differ."""
WIDE = 0.1
"""Half the width of the interval, as a share of the estimate, from which it does not exclude an error of a tenth."""
NEAR = 0.02
"""Share of the estimate that may lie downhill of the anchor."""
HELD = (0.02, 0.05)
"""Shares of the estimate that it surely gains when the logarithm of the localization falls by one: warns, fails."""
SINGULAR = 2.5
"""Degree of the loss along rays, 2 in a quadratic and 4 in a product of two squares, from which that only warns."""
DIFFERENT = 0.05
"""Share of the estimate by which another estimator may differ from it."""
REFUSED, STUCK = 0.5, 0.9
"""Shares of steps that a Metropolis test may refuse: before a warning, and where it does refuse them, at all."""


def judge(dataset: xr.Dataset) -> list[Check]:
    """Give every verdict on an estimate; see ``docs/checks.md`` for what each rests on."""
    lost, gain, raw = (_diverged(dataset), *(float(dataset[name]) for name in ("anchor_downhill", "llc_raw")))
    if int((~dataset["diverged"]).sum()) < 2:
        return [lost, minimum(gain, raw)]
    if math.isnan(float(dataset["llc"])):  # withheld: there is nothing else to judge
        return [lost, minimum(gain, raw - float(dataset["llc_bias"]), below=gain <= steepest(raw))]
    return [
        lost,
        minimum(gain, raw),
        _agreement(dataset),
        _draws(dataset),
        _drift(dataset),
        _bias(dataset),
        _unexplored(dataset),
        _width(dataset),
        _acceptance(dataset),
        _held(dataset),
        _others(dataset),
        *_thermostat(dataset),
    ]


def _diverged(dataset: xr.Dataset) -> Check:
    chains = dataset["chain"].to_numpy()[dataset["diverged"].to_numpy()]
    message = "No chain diverged."
    if len(chains):
        left = dataset.sizes["chain"] - len(chains)
        message = f"Chains {', '.join(map(str, chains))} ended in NaN or infinity; {left} are left."
    # chains that survive beside diverged ones are those that happened to stay where the loss is low
    remedy = "Leave the step size to be found, or take one a third as large."
    return graded("L201", "chains diverged", float(len(chains)), (0, 0), message, remedy)


def minimum(gain: float, found: float, *, below: bool = False) -> Check:
    """Judge whether an anchor is a minimum.

    Args:
        gain: n beta times the loss that a descent gains.
        found: n beta times the loss that chains found above the anchor's.
        below: whether all of what chains found lies below it.
    """
    message = (
        f"Going downhill from the anchor gains {gain:.3g} in units of the estimate, which lacks as much."
    )
    limits = (max(0.5, NEAR * found), steepest(found))
    if below:
        message = f"Chains found lower loss than the anchor's, by {-found:.3g} in units of the estimate: there is none."
        limits = (-math.inf, -math.inf)
    remedy = "Train further: away from a minimum there is no learning coefficient."
    return graded("L202", "the anchor is not a minimum", gain, limits, message, remedy)


def _agreement(dataset: xr.Dataset) -> Check:
    r_hat = float(dataset["r_hat"])
    message = f"Split R-hat is {r_hat:.3f}."
    remedy = "The chains are not yet in one place: more burn-in and more draws, or a larger budget."
    # where the interval, which is that of the chains, is narrow all the same, they disagree about little
    fails = 1.3 if _half_width(dataset) > AGREED else math.inf
    return graded("L203", "chains disagree", r_hat, (1.1, fails), message, remedy)


def _drift(dataset: xr.Dataset) -> Check:
    drift, stderr = float(dataset["drift"]), float(dataset["drift_stderr"])
    share = abs(drift) / max(abs(float(dataset["llc"])), 1e-12)
    message = f"The second half of the draws lies {drift:+.3g} (standard error {stderr:.2g}) from the first."
    significant = abs(drift) > seldom(int((~dataset["diverged"]).sum())) * stderr and share > DRIFT
    remedy = "The chains are still on their way: more burn-in, or a larger budget."
    return graded("L205", "still drifting", share if significant else 0.0, (DRIFT, 0.1), message, remedy)


def drifting(dataset: xr.Dataset) -> xr.DataArray:
    """Tell for which of several estimates the halves of the draws differ beyond chance, and by more than `DRIFT`."""
    drift, size = abs(dataset["drift"]), abs(dataset["llc"]).clip(1e-12)
    return (drift > seldom(dataset.sizes["chain"]) * dataset["drift_stderr"]) & (drift > DRIFT * size)


def seldom(chains: int) -> float:
    """Give so many standard errors over chains as chance exceeds as seldom as three of a normal."""
    return float(stats.t.ppf(stats.norm.cdf(3), chains - 1))


def _bias(dataset: xr.Dataset) -> Check:
    signed = float(dataset["llc_bias"]) / max(abs(float(dataset["llc"])), 1e-12)
    share = abs(signed)  # momenta colder than they should be take something away
    message = f"The step size added {signed:.1%} of the estimate, to first order; that is subtracted."
    remedy = (
        f"Leave the step size to be found, or take one {max(share / 0.05, 2):.0f} times smaller and as many times "
        "more steps; or a larger batch."
    )
    return graded("L204", "the step size is too large", share, (BIAS, 2 * BIAS), message, remedy)


def _draws(dataset: xr.Dataset) -> Check:
    code, title, ess = "L206", "few effective draws", float(dataset["ess"])
    message = f"The draws are worth {ess:.0f} independent ones."
    if ess >= 100:
        return Check(code, title, "pass", ess, message)
    return Check(code, title, "warn", ess, message, "Take more draws, or a larger budget.")


def _unexplored(dataset: xr.Dataset) -> Check:
    share = float(dataset["unexplored"])
    message = f"{max(share, 0.0):.0%} of the directions are still free: the chains move away from the anchor."
    remedy = (
        "The number is that of the neighbourhood that was reached. A larger localization makes it one that chains "
        "explore; a larger budget lets them walk further."
    )
    limits = (UNEXPLORED, math.inf)
    return graded("L207", "flat directions are not explored", share, limits, message, remedy)


def _width(dataset: xr.Dataset) -> Check:
    share = _half_width(dataset)
    ended = dataset.attrs["stopped"]
    message = (
        f"The interval reaches {share:.1%} of the estimate to either side; the run ended by its {ended}."
    )
    remedy = "Take a larger budget, more draws or more chains."
    return graded("L208", "the interval is wide", share, (WIDE / 2, WIDE), message, remedy)


def _acceptance(dataset: xr.Dataset) -> Check:
    code, title = "L209", "steps would be refused"
    refused, exact = 1 - float(dataset["acceptance"].mean()), bool(dataset.attrs["exact"])
    if math.isnan(refused):
        return Check(
            code, title, "pass", None, f"Not looked at: {dataset.attrs['sampler']} takes other steps."
        )
    test = "The Metropolis test refused" if exact else "A Metropolis test on a fixed batch would refuse"
    message = f"{test} {refused:.0%} of the steps."
    remedy = "Take a smaller step size, or a lower bias_tolerance."
    # where no test is made, many dimensions refuse much at a small bias too
    return graded(code, title, refused, (REFUSED, STUCK if exact else math.inf), message, remedy)


def _held(dataset: xr.Dataset) -> Check:
    size = max(abs(float(dataset["llc"])), 1e-12)
    share = float(dataset["sensitivity"]) / size
    message = f"A localization e times smaller would raise the estimate by {share:.1%}."
    remedy = "Directions in which the loss is soft are held by the localization alone: take a smaller localization."
    surely = float(dataset["sensitivity_low"]) / size
    # where the loss rises faster than a quadratic, so does the law of a perfect sampler: it only tends to lambda
    fails = HELD[1] if float(dataset["degree"]) < SINGULAR else math.inf
    return graded(
        "L210", "the localization holds the estimate down", surely, (HELD[0], fails), message, remedy
    )


def _others(dataset: xr.Dataset) -> Check:
    """Compare the estimate with the other estimators, where their intervals lie apart."""
    llc, largest, message = float(dataset["llc"]), 0.0, "No other estimator says otherwise."
    own = (float(dataset["llc_high"]) - float(dataset["llc_low"])) / 2
    for name in ("llc_variance", "llc_slope"):
        if name not in dataset:
            continue
        other = float(dataset[name])
        half, share = other - float(dataset[f"{name}_low"]), abs(other - llc) / max(abs(llc), 1e-12)
        if abs(other - llc) > math.hypot(own, half) and share > largest:
            largest = share
            message = f"{name} is {other:.4g}, {share:.0%} of the estimate away from it, and the intervals lie apart."
    remedy = (
        "They differ where the localization holds (L210), and at multiplicity above 1: try a larger n beta."
    )
    return graded("L213", "the estimators disagree", largest, (DIFFERENT, math.inf), message, remedy)


def _thermostat(dataset: xr.Dataset) -> list[Check]:
    """Warn of the heat of batches where nothing measures it: the thermostat sees the mean of all directions."""
    if dataset.attrs["sampler"] != "sgnht":
        return []
    code, title = "L214", "the heat of batches is not measured"
    if dataset.attrs["batch_size"] >= dataset.attrs["examples"]:
        return [Check(code, title, "pass", None, "Each step takes all of the data: there is none.")]
    message = "The thermostat keeps the mean temperature: directions that batches heat more stay hotter."
    remedy = "Take sgld, whose law counts the noise of batches, a larger batch, or all of the data."
    return [Check(code, title, "warn", None, message, remedy)]


def _half_width(dataset: xr.Dataset) -> float:
    """Give half the width of the interval as a share of the estimate."""
    half = (float(dataset["llc_high"]) - float(dataset["llc_low"])) / 2
    return half / max(abs(float(dataset["llc"])), 1e-12)
