"""Effects of edits on a data set: means over inputs with intervals, and p-values adjusted over the scan."""

from typing import Any

import numpy as np
from scipy import stats

from assay.activations.clean_run import METRICS, TESTED
from assay.estimates.bootstrap import bootstrap
from assay.estimates.estimate import Floats, mean_interval
from assay.estimates.multiplicity import benjamini_hochberg

PARTS = ("", "_stderr", "_low", "_high")


def effect_variables(effect: Floats, dim: str, *, resamples: int, seed: int) -> dict[str, Any]:
    """The variables of a scan.

    Args:
        effect: (input, metric, edit), metrics in the order of :data:`METRICS`.
        dim: what the last axis is called.
        resamples: of the bootstrap over inputs (BCa).
        seed: of the bootstrap.

    Returns:
        ``effect`` with ``_stderr``, ``_low`` and ``_high``; ``p_value`` (Student's over inputs, for a mean of zero) and
        ``q_value`` (adjusted over the edits); and ``effect_by_input``. One input has no interval: its ends are NaN.
    """
    dims, one = ("metric", dim), len(effect) == 1
    intervals = (
        mean_interval(effect) if one else bootstrap(effect, np.random.default_rng(seed), resamples=resamples)
    )
    p_value = tested(effect)
    q_value = np.stack([benjamini_hochberg(row) for row in p_value])
    return {
        "p_value": (dims, p_value, {"allow_nan": True}),
        "q_value": (dims, q_value, {"allow_nan": True}),
        "effect_by_input": (("input", *dims), effect),
        **{
            f"effect{part}": (dims, values, {"allow_nan": True} if part and one else {})
            for part, values in zip(PARTS, intervals, strict=True)
        },
    }


def mean_variables(name: str, samples: Floats, dims: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mean over inputs with Student's interval, which a single input does not have.

    Args:
        name: of the variable.
        samples: (input, ...).
        dims: of what is left.

    Returns:
        The variables; of one input the mean alone.
    """
    values = zip(PARTS, mean_interval(samples), strict=True)
    return {f"{name}{part}": (dims, value) for part, value in values if not part or len(samples) > 1}


def tested(effect: Floats) -> Floats:
    """p-values for a mean of zero over inputs, (metric, edit); NaN for metrics that are not tested.

    Args:
        effect: (input, metric, edit).

    Returns:
        Student's, two-sided.
    """
    mean, stderr, _, _ = mean_interval(effect)
    score = np.divide(np.abs(mean), stderr, out=np.where(mean == 0, 0.0, np.inf), where=stderr > 0)
    p_value = np.where(np.isnan(stderr), np.nan, 2 * stats.t.sf(score, max(len(effect) - 1, 1)))
    p_value[[metric not in TESTED for metric in METRICS]] = np.nan
    return p_value
