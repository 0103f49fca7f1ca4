"""Looking at an anchor before any chain starts: its loss over all of the data, and whether it is a minimum."""

from typing import NamedTuple

import torch
from torch import Tensor

from assay.landscape.anchors import LINE
from assay.landscape.gradients import mean_loss
from assay.landscape.target import Target


class Anchor(NamedTuple):
    """What is known of the anchor before any chain starts.

    Attributes:
        loss: over all of the data, ().
        downhill: n beta times the loss that a line search along the gradient gains, ().
    """

    loss: Tensor
    downhill: Tensor


def look(model: Target, n_beta: float) -> Anchor:
    """Look at a module's present weights; see `Anchor`."""
    anchor = model.anchor()
    loss, slope = _full(model, anchor)
    if model.mask is not None:
        slope = slope * model.mask
    steps = [anchor - slope * (length / n_beta) for length in LINE]
    lowest = min(float(_full(model, flat, gradient=False)[0]) for flat in steps)
    return Anchor(loss, (n_beta * (loss - lowest)).clamp_min(0))


def _full(model: Target, flat: Tensor, *, gradient: bool = True) -> tuple[Tensor, Tensor]:
    """Give the mean loss over all of the data in float64, and its gradient (zero where not asked)."""
    function, total = mean_loss(model), torch.zeros((), dtype=torch.float64, device=flat.device)
    leaf, slope = flat.detach().requires_grad_(gradient), torch.zeros_like(flat)
    with model.evaluating(), torch.set_grad_enabled(gradient):
        for batch in model.blocks():
            share = len(batch[0]) / model.seen
            value = function(leaf, batch)
            total += share * value.detach()
            if gradient:
                slope += share * torch.autograd.grad(value, leaf)[0]
    return total, slope
