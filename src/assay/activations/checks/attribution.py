"""What attributions of nodes and edges are judged by."""

import numpy as np
import xarray as xr

from assay.activations.engine import engine_check
from assay.activations.indifferent import null_check
from assay.estimates.checks import Check, graded

AGREEMENT = 0.5
MISSED = 0.05


def attribution_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P201 to P205 on attributions of nodes.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [differ_check(dataset, "P201")]
    if "rank_correlation" in dataset:
        checks += [
            agreement_check(dataset, "P202", "nodes"),
            missed_check(dataset, "P203", "nodes"),
            engine_check("P205", dataset, "nodes"),
        ]
    nulls = [str(name) for name in dataset.data_vars if str(name).startswith("baseline_attribution")]
    if nulls:
        checks.append(null_check("P204", dataset, {name.removeprefix("baseline_"): name for name in nulls}))
    return sorted(checks, key=lambda check: check.code)


def differ_check(dataset: xr.Dataset, code: str) -> Check:
    """Whether the two runs differ in the metric.

    Args:
        dataset: holds ``total_effect`` with its interval.
        code: the check's.
    """
    total, low, high = (float(dataset[f"total_effect{part}"]) for part in ("", "_low", "_high"))
    title = "the prompts do not differ"
    message = f"The two runs differ by {total:.3g} in the {_words(dataset)}."
    if (
        total != 0 and not low <= 0 <= high
    ):  # with one pair the bounds are NaN, and the estimate alone decides
        return Check(code, title, "pass", total, message)
    remedy = "There is nothing to attribute: choose prompts that differ, or take more pairs."
    return Check(code, title, "fail" if total == 0 else "warn", total, message, remedy)


def agreement_check(dataset: xr.Dataset, code: str, what: str) -> Check:
    """Whether attributions rank those that were patched exactly as their effects do.

    Args:
        dataset: holds ``rank_correlation`` with its interval.
        code: the check's.
        what: ``nodes`` or ``edges``.
    """
    value, low, high = (float(dataset[f"rank_correlation{part}"]) for part in ("", "_low", "_high"))
    title = "attribution disagrees with patching"
    message = (
        f"Of the {what} patched exactly, half of them those ranked first, attributions and effects have a rank "
        f"correlation of {value:.2f} [{low:.2f}, {high:.2f}]."
    )
    if value >= AGREEMENT:
        return Check(code, title, "pass", value, message)
    remedy = "Slopes mislead here: use another method, or `assay patch` for exact effects."
    return Check(code, title, "warn", value, message, remedy)


def missed_check(dataset: xr.Dataset, code: str, what: str) -> Check:
    """Whether what ranks low has large effects.

    Args:
        dataset: holds ``missed_share`` with its interval.
        code: the check's.
        what: ``nodes`` or ``edges``.
    """
    share, high = float(dataset["missed_share"]), float(dataset["missed_share_high"])
    title = f"{what} are missed"
    message = (
        f"{share:.1%} of the random {what} (at most {high:.1%} of all, at 95%) have a larger exact effect than half of "
        "those ranked first."
    )
    remedy = "Look at what the missed have in common; try another method, or patch more exactly."
    return graded(code, title, share, (MISSED, np.inf), message, remedy)


def _words(dataset: xr.Dataset) -> str:
    return str(dataset.attrs["metric"]).replace("_", " ")
