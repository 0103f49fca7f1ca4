"""The check every result gets: numbers that are not finite, where none were announced."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

CODE, TITLE = "A001", "not finite"


def finite_check(dataset: xr.Dataset) -> Check:
    """Count NaN and infinity in the variables of a result.

    A variable whose attribute ``allow_nan`` is true may hold NaN (the next token after the last one has no
    log-probability), though never infinity.

    Args:
        dataset: the result; only floating-point variables are looked at.

    Returns:
        The check ``A001``; its figure is the number of unexpected values.
    """
    counts: dict[str, int] = {}
    for name, variable in dataset.data_vars.items():
        if not np.issubdtype(variable.dtype, np.floating):
            continue
        values = variable.to_numpy()
        unexpected = np.isinf(values) if variable.attrs.get("allow_nan", False) else ~np.isfinite(values)
        if unexpected.any():
            counts[str(name)] = int(unexpected.sum())
    if not counts:
        return Check(CODE, TITLE, "pass", 0.0, "Every number is finite.")
    total = sum(counts.values())
    listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
    return Check(
        CODE,
        TITLE,
        "fail",
        float(total),
        f"{total} values are NaN or infinite where none should be: {listed}.",
        "Look for NaN weights with `assay doctor`; load the model in float32 if half precision overflows.",
    )
