"""Losses and gradients of large modules, one chain after the other."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from assay.landscape.losses import Batch
from assay.landscape.target import Target, rows_at_once


class WithLoss(nn.Module):
    """A module and its loss in one, so that a loss sees the real module under substituted weights."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.module, self._loss = target.module, target.loss

    def forward(self, batch: Batch) -> Tensor:
        """Give the loss of each example."""
        return self._loss(self.module, batch)


class Sequential:
    """Any module, one chain after the other, by plain autograd.

    The module's weights are replaced by views of the chain's row for the length of a call, so that neither a copy of
    the module nor its own ``grad`` is touched, and backward adds each gradient straight into the flat one. What is not
    sampled needs no gradient here: the graph begins at the first part that is. A large batch is gone through in blocks.
    """

    def __init__(self, target: Target) -> None:
        self._whole, self._target = WithLoss(target), target

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Gradient`."""
        gradient = torch.zeros_like(parameters)
        losses = [
            self.add(row, tuple(part[chain if len(part) > 1 else 0] for part in batch), gradient[chain])
            for chain, row in enumerate(parameters)
        ]
        return torch.stack(losses), gradient

    def add(self, row: Tensor, batch: Batch, gradient: Tensor) -> Tensor:
        """Add the gradient at a row of weights (d,) to what is there, (d,); give the mean loss over a batch, ()."""
        weights, loss = self._weights(row, gradient), row.new_zeros(())
        rows = rows_at_once(batch[0])
        for block in zip(*(part.split(rows) for part in batch), strict=True):
            with torch.enable_grad():
                each = functional_call(self._whole, weights, (block,)).mean() * (
                    len(block[0]) / len(batch[0])
                )
            each.backward()
            loss += each.detach()
        return loss

    def _weights(self, row: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Give every parameter of the module: those sampled as leaves whose gradients are views of the flat one."""
        sampled = self._target.named(row.detach())
        for name, slope in self._target.named(gradient).items():
            leaf = sampled[name].requires_grad_()
            leaf.grad = slope
        everything = {
            name: value.detach() for name, value in self._target.module.named_parameters()
        } | sampled
        return {f"module.{name}": value for name, value in everything.items()}
