"""Anchors looked at before any chain starts: the loss over all data, and whether it is a minimum, for many at once."""

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from assay.landscape.gradients import gradient_of, mean_loss
from assay.landscape.target import Target

LINE = tuple(10.0**power for power in np.arange(-8, 2.5, 0.5))
"""Step lengths at which a minimum is looked for downhill of the anchor, in units of 1 / n beta."""


def losses(target: Target, anchors: Tensor) -> Tensor:
    """Give the loss over all of the data at several anchors, (anchor, d) -> (anchor,), float64."""
    each = vmap(mean_loss(target), in_dims=(0, None))
    total = torch.zeros(len(anchors), dtype=torch.float64, device=anchors.device)
    with torch.no_grad(), target.evaluating():
        for batch in target.blocks():
            total += len(batch[0]) / target.seen * each(anchors, batch)
    return total


def downhill(target: Target, anchors: Tensor, n_beta: float) -> Tensor:
    """Give n beta times the loss that a line search along the gradient gains: near 0 at a minimum.

    Args:
        target: the module, the loss that is sampled, and the data.
        anchors: weights, (anchor, d).
        n_beta: number of samples times inverse temperature.

    Returns:
        (anchor,), float64.
    """
    gradient, slope = gradient_of(target), torch.zeros_like(anchors)
    with torch.no_grad(), target.evaluating():
        for batch in target.blocks():
            slope += len(batch[0]) / target.seen * gradient(anchors, tuple(part[None] for part in batch))[1]
    if target.mask is not None:
        slope *= target.mask
    lowest = here = losses(target, anchors)
    for length in LINE:
        lowest = torch.fmin(lowest, losses(target, anchors - slope * (length / n_beta)))
    return n_beta * (here - lowest)
