"""Many tests at once: p-values adjusted for how many were made."""

import numpy as np
from numpy.typing import ArrayLike

from assay.errors import BadInput
from assay.estimates.estimate import Floats


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Adjust p-values such that calling those at most q significant has a false discovery rate of at most q.

    With m p-values in ascending order, the adjusted p_(i) is the smallest of m p_(j) / j over j >= i, and
    at most 1 (Y. Benjamini and Y. Hochberg 1995, Journal of the Royal Statistical Society B 57:289). It holds
    for independent and for positively dependent tests.

    Args:
        p: p-values of any shape; NaN marks a test that was not made, stays NaN and does not count.

    Returns:
        Adjusted p-values, same shape.

    Raises:
        BadInput: when a p-value is not within [0, 1].
    """
    values = np.asarray(p, dtype=np.float64)
    made = ~np.isnan(values)
    known = values[made]
    if ((known < 0) | (known > 1)).any():
        raise BadInput(f"p-values lie between 0 and 1; got values from {known.min()} to {known.max()}.")
    order = np.argsort(known, kind="stable")
    scaled = known[order] * known.size / np.arange(1, known.size + 1)
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    result = np.full_like(values, np.nan)
    result[made] = adjusted
    return result
