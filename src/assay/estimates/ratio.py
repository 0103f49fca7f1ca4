"""The ratio of two means over the same samples, with its interval."""

import numpy as np
from numpy.typing import ArrayLike

from assay.errors import BadInput
from assay.estimates.estimate import Floats, mean_interval


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, level: float = 0.95
) -> tuple[Floats, Floats, Floats, Floats]:
    """Estimate mean(numerator) / mean(denominator) over paired samples, by linearising the ratio.

    With r the ratio, the samples (x_i - r y_i) / mean(y) have mean zero and, to first order, the spread of r (W. G.
    Cochran 1977, Sampling Techniques, section 2.11). The interval is Student's around r. It is as good as the
    denominator's mean is clear of zero.

    Args:
        numerator: (n, ...).
        denominator: (n, ...), broadcastable to the numerator.
        level: nominal coverage.

    Returns:
        ratio, stderr, low, high, each of shape (...). All NaN where the denominator's mean is zero; all but the ratio
        with one sample.

    Raises:
        BadInput: when the two do not have the same number of samples.
    """
    above, below = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if above.ndim == 0 or below.ndim == 0 or len(above) != len(below):
        raise BadInput(f"a ratio needs paired samples; the shapes are {above.shape} and {below.shape}.")
    scale = np.where(below.mean(axis=0) == 0, np.nan, below.mean(axis=0))
    ratio = np.asarray(above.mean(axis=0) / scale)
    _, stderr, low, high = mean_interval((above - ratio * below) / scale, level=level)
    return ratio, stderr, np.asarray(ratio + low), np.asarray(ratio + high)
