"""Checkpoints whose chains walk together, each chain around its own anchor."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from assay.landscape.gradients import Gradient, gradient_of
from assay.landscape.losses import Batch, outputs_of
from assay.landscape.minimum import downhill, losses
from assay.landscape.target import Target, rows_at_once


@dataclass(frozen=True, eq=False)
class Group:
    """Checkpoints that are walked as one.

    Attributes:
        plain: the module, the loss whose curve is drawn, and the data.
        target: the same with the loss that is sampled.
        anchors: weights of each checkpoint, (checkpoint, d); None for one alone, whose weights the module has.
        compared: whether each chain is compared with the outputs of its own anchor. The second part of the target's
            data are then the numbers of the examples.
    """

    plain: Target
    target: Target
    anchors: Tensor | None
    compared: bool

    def curve(self) -> Tensor:
        """Give the loss whose curve is drawn, over all of the data, (checkpoint,), float64."""
        return self._whole(self.plain)

    def baseline(self) -> Tensor:
        """Give the sampled loss at the anchors, (checkpoint,), float64.

        Over all of the data, as are the losses of chains; of one checkpoint alone over the data that are looked at, as
        are the losses that `Target.paired` gives.
        """
        if self.compared:
            return self._nothing()
        return self.target.anchor_loss[None] if self.anchors is None else self._whole(self.target)

    def downhill(self, n_beta: float, localization: float) -> Tensor:
        """Give n beta times what lies downhill of the anchors, (checkpoint,), float64."""
        if self.compared:
            return self._nothing()
        return downhill(self.target, self.anchors, n_beta, localization)

    def _whole(self, target: Target) -> Tensor:
        if target.seen < target.n:
            target = replace(target, thorough=True)
        return target.anchor_loss[None] if self.anchors is None else losses(target, self.anchors)

    def _nothing(self) -> Tensor:
        """Give what a distance from itself is: zero, and nowhere less."""
        return torch.zeros(1 if self.anchors is None else len(self.anchors), dtype=torch.float64)

    def gradient(self, each: int) -> Gradient:
        """Give losses and gradients of so many chains for each anchor."""
        if self.anchors is not None and self.compared:
            return Anchored(self.target, self.anchors, each)
        return gradient_of(self.target)


class Anchored:
    """Losses to the anchor, of chains of several anchors at once; a batch is inputs and the numbers of the examples.

    Args:
        target: the module, a loss of outputs and the anchor's outputs, inputs and the numbers of the examples.
        anchors: weights, (anchor, d).
        each: chains of each anchor, which stand side by side.
    """

    def __init__(self, target: Target, anchors: Tensor, each: int) -> None:
        inputs, shared = target.data[0], outputs(target)
        with torch.no_grad(), target.evaluating():
            blocks = [shared(anchors, block) for block in inputs.split(rows_at_once(inputs))]
        kept = torch.cat(blocks, 1)
        self._gradient = gradient_of(replace(target, data=(inputs, kept[0])))
        self._kept = kept.flatten(0, 1)  # (anchor x example, ...)
        self._first = len(inputs) * torch.arange(len(anchors), device=inputs.device).repeat_interleave(each)

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Gradient`."""
        inputs, numbers = batch
        rows = self._first[:, None] + numbers
        before = self._kept.index_select(0, rows.flatten()).view(*rows.shape, *self._kept.shape[1:])
        return self._gradient(parameters, (inputs.expand(len(rows), *inputs.shape[1:]), before))


def outputs(target: Target) -> Callable[[Tensor, Tensor], Tensor]:
    """Give the function from weights (anchor, d) and inputs (example, ...) to outputs (anchor, example, ...)."""
    whole = _Outputs(target)

    def one(flat: Tensor, inputs: Tensor) -> Tensor:
        named = {f"module.{name}": value for name, value in target.named(flat).items()}
        return functional_call(whole, named, (inputs,))

    return vmap(one, in_dims=(0, None))


class _Outputs(torch.nn.Module):
    """A module as far as its outputs."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.module = target.module

    def forward(self, inputs: Tensor) -> Tensor:
        return outputs_of(self.module, inputs)
