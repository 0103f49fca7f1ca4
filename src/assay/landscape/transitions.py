"""Transitions: where loss and learning coefficient change over training, and whether they change together.

Three answers, each beside the same with curves of different runs paired (for a single run: with its own LLC shifted
in time, circularly, which is shown but is no test): the share of drops in loss that come with a rise in LLC, the mean
course of the LLC around a drop, and the rank correlation of how far both moved, over windows that do not overlap.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from assay.estimates.alignment import alignment
from assay.estimates.change_points import ChangePoints, change_points
from assay.estimates.correlation import spearman
from assay.estimates.estimate import Estimate, Floats, mean_interval

REACH = 3
"""How many windows to either side of a drop the course around it is shown."""
CURVE = ("run", "step")


def transitions(dataset: xr.Dataset, *, window: int, share: float, rng: np.random.Generator) -> xr.Dataset:
    """Find the changes of both curves and compare them.

    Args:
        dataset: ``loss`` and ``llc`` (run, step), or (step) as the result of one run has them; an LLC that is NaN is
            taken from its neighbours.
        window: checkpoints in a level before or after a change.
        share: smallest change that counts, as a share of a curve's range.
        rng: draws shuffles.

    Returns:
        ``loss_change`` and ``llc_change`` (run, step), the size of the change at each change point and zero elsewhere;
        ``alignment``, ``correlation``, ``llc_around_drop`` (lag) with their intervals and baselines. Without an axis
        ``run`` where the curves have none.
    """
    if "run" not in dataset.dims:
        alone = transitions(dataset.expand_dims("run"), window=window, share=share, rng=rng)
        return alone.isel(run=0, drop=True)
    loss, llc = (_without_gaps(dataset[name].transpose(*CURVE).to_numpy()) for name in ("loss", "llc"))
    runs, count = loss.shape
    changes = [[change_points(row, window=window, share=share) for row in rows] for rows in (loss, llc)]
    drops = [_places(found, -1) for found in changes[0]]
    rises = [_places(found, 1) for found in changes[1]]
    aligned = alignment(drops, rises, count, tolerance=window, rng=rng)
    lags = np.arange(-REACH * window, REACH * window + 1)
    pairs = list(_shuffled(runs, count, window))
    own = [(run, llc[run]) for run in range(runs)]
    others = [(run, np.roll(llc[other], shift)) for run, other, shift in pairs]
    variables: dict[str, Any] = {
        "loss_change": (CURVE, np.stack([_sizes(found, count) for found in changes[0]])),
        "llc_change": (CURVE, np.stack([_sizes(found, count) for found in changes[1]])),
        "drops": aligned.events,
        "alignment_p": ((), aligned.p, {"allow_nan": True}),
        **_named("alignment", aligned.share),
        **_named("baseline_alignment", aligned.baseline),
        **_around("llc_around_drop", _courses(own, drops, lags, window, runs)),
        **_around("baseline_llc_around_drop", _courses(others, drops, lags, window, runs)),
        **_around("loss_around_drop", _courses(list(enumerate(loss)), drops, lags, window, runs)),
        **_together("correlation", loss, own, window),
        **_together("baseline_correlation", loss, others, window),
    }
    return xr.Dataset(variables, {"lag": lags}, {"window": window})


def _without_gaps(rows: Floats) -> Floats:
    """Fill what is not finite from its neighbours; a row without any finite number is flat."""
    places = np.arange(rows.shape[1])
    filled = np.zeros_like(rows, dtype=np.float64)
    for row, out in zip(rows, filled, strict=True):
        finite = np.isfinite(row)
        if finite.any():
            out[:] = np.interp(places, places[finite], row[finite])
    return filled


def _places(found: ChangePoints, sign: int) -> list[int]:
    return [index for index, size in zip(found.index, found.size, strict=True) if size * sign > 0]


def _sizes(found: ChangePoints, count: int) -> Floats:
    sizes = np.zeros(count)
    sizes[list(found.index)] = found.size
    return sizes


def _shuffled(runs: int, count: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Give the pairings of chance: run, whose LLC it gets, and by how much that is shifted."""
    if runs == 1:
        yield from ((0, 0, shift) for shift in range(2 * window + 1, count - 2 * window, window))
    else:
        yield from ((run, other, 0) for run in range(runs) for other in range(runs) if other != run)


def _courses(
    rows: list[tuple[int, Floats]], drops: list[list[int]], lags: np.ndarray, window: int, runs: int
) -> Floats:
    """Give each run's mean course around its drops, less the level before, (run, lag); with one run, each drop's."""
    samples: list[list[Floats]] = [[] for _ in range(runs)]
    for run, row in rows:
        for drop in drops[run]:
            places = drop + lags
            inside = (places >= 0) & (places < len(row))
            level = row[max(drop - 2 * window, 0) : max(drop - window, 1)].mean()
            samples[run].append(np.where(inside, row[places.clip(0, len(row) - 1)] - level, np.nan))
    if runs == 1:
        return np.array(samples[0]).reshape(-1, len(lags))
    return np.array([_mean(np.array(each)) for each in samples if each]).reshape(-1, len(lags))


def _mean(rows: Floats) -> Floats:
    """Give the mean of what is there in each column, NaN where nothing is."""
    there = np.isfinite(rows)
    return np.where(there, rows, 0).sum(0) / np.where(there.any(0), there.sum(0), np.nan)


def _around(name: str, courses: Floats) -> dict[str, Any]:
    ends = np.full((4, courses.shape[1]), np.nan)
    for lag, column in enumerate(courses.T):
        if np.isfinite(column).any():
            ends[:, lag] = [float(part) for part in mean_interval(column[np.isfinite(column)])]
    named = zip(("", "_stderr", "_low", "_high"), ends, strict=True)
    return {f"{name}{part}": ("lag", values, {"allow_nan": True}) for part, values in named}


def _together(name: str, loss: Floats, rows: list[tuple[int, Floats]], window: int) -> dict[str, Any]:
    """Correlate falls of the loss with rises of the LLC between windows, run by run."""
    samples: dict[int, list[float]] = {}
    found = Estimate(*[np.nan] * 4, n=0)
    for run, row in rows:
        fall, rise = -np.diff(_levels(loss[run], window)), np.diff(_levels(row, window))
        if np.ptp(fall) > 0 and np.ptp(rise) > 0 and len(fall) >= 4:
            found = spearman(fall, rise)
            samples.setdefault(run, []).append(found.value)
    means = [float(np.mean(each)) for each in samples.values()]
    if len(loss) == 1 and len(rows) > 1 and means:  # one run and its shifts, which are all there are
        shifts = np.array(samples[0])
        low, high = np.quantile(shifts, [0.025, 0.975])
        found = Estimate(means[0], float(shifts.std()), float(low), float(high), len(shifts))
    elif len(loss) > 1 and means:
        found = Estimate(*(float(part) for part in mean_interval(means)), n=len(means))
    return _named(name, found)


def _levels(row: Floats, window: int) -> Floats:
    return row[: len(row) // window * window].reshape(-1, window).mean(1)


def _named(name: str, found: Estimate) -> dict[str, Any]:
    parts = {"": found.value, "_stderr": found.stderr, "_low": found.low, "_high": found.high}
    return {f"{name}{part}": ((), value, {"allow_nan": True}) for part, value in parts.items()}
