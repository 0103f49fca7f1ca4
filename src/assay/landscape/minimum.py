"""Looking at an anchor before any chain starts: its loss over all of the data, and whether it is a minimum."""

from typing import NamedTuple

import torch
from torch import Tensor

from assay.landscape.anchors import LINE
from assay.landscape.gradients import gradient_of, mean_loss
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target


class Anchor(NamedTuple):
    """What is known of the anchor before any chain starts.

    Attributes:
        loss: over all of the data, ().
        downhill: n beta times the loss that a line search along the gradient gains, ().
    """

    loss: Tensor
    downhill: Tensor


def steepest(raw: float) -> float:
    """Give the largest `Anchor.downhill` of what passes for a minimum, where chains found an excess loss."""
    return max(0.5, 0.02 * raw)


def look(model: Target, n_beta: float) -> Anchor:
    """Look at a module's present weights; see `Anchor`."""
    anchor, here, slope = model.anchor(), model.anchor_loss, _slope(model)
    if model.mask is not None:
        slope.mul_(model.mask)
    # one place at a time: of a large module each is as large as the module
    lowest = min(_loss(model, anchor.sub(slope, alpha=length / n_beta)) for length in LINE)
    return Anchor(here, (n_beta * (here - lowest)).clamp_min(0))


def _slope(model: Target) -> Tensor:
    """Give the gradient of the loss over the data that are looked at, (d,)."""
    gradient, slope = gradient_of(model), model.anchor().zero_()
    with torch.no_grad(), model.evaluating():
        if isinstance(gradient, Sequential):
            gradient.add(model.anchor(), model.looked_at, slope)
            return slope
        for batch in model.blocks():
            _, each = gradient(model.anchor()[None], tuple(part[None] for part in batch))
            slope.add_(each[0], alpha=len(batch[0]) / model.seen)
    return slope


def _loss(model: Target, flat: Tensor) -> float:
    """Give the loss over the data that are looked at, in float64."""
    function = mean_loss(model)
    with torch.no_grad(), model.evaluating():
        return sum(len(batch[0]) / model.seen * float(function(flat, batch)) for batch in model.blocks())
