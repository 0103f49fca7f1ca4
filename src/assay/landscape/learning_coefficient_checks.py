"""Judging an estimate of the learning coefficient, from its dataset alone."""

import xarray as xr

from assay.estimates.checks import Check

BIAS = 0.05
"""Share of the estimate that the step size may add before a warning; twice that fails."""


def judge(dataset: xr.Dataset) -> list[Check]:
    """Give every verdict on an estimate; see ``docs/checks.md`` for what each rests on."""
    lost = _diverged(dataset)
    if int((~dataset["diverged"]).sum()) < 2:
        return [lost, _minimum(dataset)]
    return [
        lost,
        _minimum(dataset),
        _agreement(dataset),
        _draws(dataset),
        _drift(dataset),
        _bias(dataset),
        _distance(dataset),
    ]


def _diverged(dataset: xr.Dataset) -> Check:
    code, title = "L201", "chains diverged"
    chains = dataset["chain"].to_numpy()[dataset["diverged"].to_numpy()]
    if not len(chains):
        return Check(code, title, "pass", 0.0, "No chain diverged.")
    left = dataset.sizes["chain"] - len(chains)
    message = f"Chains {', '.join(map(str, chains))} ended in NaN or infinity; {left} are left."
    # chains that survive beside diverged ones are those that happened to stay where the loss is low
    return Check(code, title, "fail", float(len(chains)), message, "Take a step size a third as large.")


def _minimum(dataset: xr.Dataset) -> Check:
    code, title = "L202", "the anchor is not a minimum"
    gain, llc = float(dataset["anchor_downhill"]), float(dataset["llc"])
    high = float(dataset["llc_high"])
    message = f"Going straight downhill from the anchor gains {gain:.3g} in units of the estimate."
    if high < 0:
        message = f"Chains found lower loss than the anchor's: the estimate is {llc:.3g}, below zero."
    elif gain <= max(0.5, 0.02 * llc):
        return Check(code, title, "pass", gain, message)
    remedy = (
        "Train further; away from a minimum there is no learning coefficient, and the number means nothing."
    )
    return Check(code, title, "fail", gain, message, remedy)


def _agreement(dataset: xr.Dataset) -> Check:
    r_hat = float(dataset["r_hat"])
    message = f"Split R-hat is {r_hat:.3f}."
    remedy = "The chains are not yet in one place: more burn-in and more draws."
    return _graded("L203", "chains disagree", r_hat, (1.05, 1.2), message, remedy)


def _drift(dataset: xr.Dataset) -> Check:
    drift, stderr = float(dataset["drift"]), float(dataset["drift_stderr"])
    share = abs(drift) / max(abs(float(dataset["llc"])), 1e-12)
    message = f"The second half of the draws lies {drift:+.3g} (standard error {stderr:.2g}) from the first."
    significant = abs(drift) > 3 * stderr and share > 0.02
    remedy = "The chains are still on their way: more burn-in."
    return _graded("L205", "still drifting", share if significant else 0.0, (0.02, 0.1), message, remedy)


def _bias(dataset: xr.Dataset) -> Check:
    share = float(dataset["llc_bias"]) / max(abs(float(dataset["llc"])), 1e-12)
    message = f"The step size adds about {share:.1%} to the estimate, to first order."
    remedy = (
        f"Take a step size {share / 0.02:.0f} times smaller, and as many times more steps, or a larger batch."
    )
    return _graded("L204", "the step size is too large", share, (BIAS, 2 * BIAS), message, remedy)


def _draws(dataset: xr.Dataset) -> Check:
    code, title, ess = "L206", "few effective draws", float(dataset["ess"])
    message = f"The draws are worth {ess:.0f} independent ones."
    if ess >= 100:
        return Check(code, title, "pass", ess, message)
    return Check(code, title, "warn", ess, message, "Take more draws, or a larger step size if L204 passes.")


def _distance(dataset: xr.Dataset) -> Check:
    """Compare the distance from the anchor in the last quarter of the draws with the quarter before."""
    kept = (
        dataset["distance"].isel(chain=~dataset["diverged"].to_numpy()).where(dataset["draw"] >= 0, drop=True)
    )
    quarter = max(kept.sizes["draw"] // 4, 1)
    before, last = (
        float(kept.isel(draw=part).mean()) for part in (slice(-2 * quarter, -quarter), slice(-quarter, None))
    )
    growth = last / before - 1 if before > 0 else 0.0
    message = f"In the last quarter of the draws the chains moved {growth:+.1%} further from the anchor."
    remedy = "Flat directions are not yet explored: a larger localization holds them, or take more burn-in."
    return _graded("L207", "moving away from the anchor", growth, (0.1, 0.5), message, remedy)


def _graded(
    code: str, title: str, figure: float, limits: tuple[float, float], message: str, remedy: str
) -> Check:
    warn, fail = limits
    if figure <= warn:
        return Check(code, title, "pass", figure, message)
    return Check(code, title, "warn" if figure <= fail else "fail", figure, message, remedy)
