"""Looking at anchors before any chain starts: the loss over the data, and whether they are minima, for many at once."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from assay.landscape.gradients import gradient_of, mean_loss
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target

LINE = tuple(10.0**power for power in np.arange(-8, 2.5, 0.5))
"""Step lengths at which a minimum is looked for downhill of an anchor, in units of 1 / n beta."""


class Anchor(NamedTuple):
    """What is known of the anchor before any chain starts.

    Attributes:
        loss: over the data that are looked at, ().
        downhill: n beta times the loss that a line search along the gradient gains, ().
    """

    loss: Tensor
    downhill: Tensor


def steepest(raw: float) -> float:
    """Give the largest `Anchor.downhill` of what passes for a minimum, where chains found an excess loss."""
    return max(0.5, 0.02 * raw)


def look(model: Target, n_beta: float) -> Anchor:
    """Look at a module's present weights; see `Anchor`."""
    return Anchor(model.anchor_loss, downhill(model, model.anchor()[None], n_beta)[0])


def losses(model: Target, anchors: Tensor) -> Tensor:
    """Give the loss over the data that are looked at, at several anchors, (anchor, d) -> (anchor,), float64."""
    function = mean_loss(model)
    # of one alone there is no batch: of large modules and some families there cannot be
    each = vmap(function, (0, None)) if len(anchors) > 1 else lambda rows, batch: function(rows[0], batch)
    total = torch.zeros(len(anchors), dtype=torch.float64, device=anchors.device)
    with torch.no_grad(), model.evaluating():
        for batch in model.blocks():
            total += len(batch[0]) / model.seen * each(anchors, batch)
    return total


def downhill(model: Target, anchors: Tensor, n_beta: float) -> Tensor:
    """Give n beta times the loss that a line search along the gradient gains: near 0 at a minimum.

    Args:
        model: the module, the loss that is sampled, and the data.
        anchors: weights, (anchor, d).
        n_beta: number of samples times inverse temperature.

    Returns:
        (anchor,), float64.
    """
    slopes = _slopes(model, anchors)
    lowest = here = losses(model, anchors)
    for length in LINE:  # one place at a time: of a large module each is as large as the module
        lowest = torch.fmin(lowest, losses(model, anchors.sub(slopes, alpha=length / n_beta)))
    return n_beta * (here - lowest)


def _slopes(model: Target, anchors: Tensor) -> Tensor:
    """Give the gradient of the loss over the data that are looked at, where the mask lets it move, (anchor, d)."""
    gradient, slopes = gradient_of(model), torch.zeros_like(anchors)
    with torch.no_grad(), model.evaluating():
        if isinstance(gradient, Sequential):
            for anchor, slope in zip(anchors, slopes, strict=True):
                gradient.add(anchor, model.looked_at, slope)
        else:
            for batch in model.blocks():
                _, each = gradient(anchors, tuple(part[None] for part in batch))
                slopes.add_(each, alpha=len(batch[0]) / model.seen)
    return slopes if model.mask is None else slopes.mul_(model.mask)
