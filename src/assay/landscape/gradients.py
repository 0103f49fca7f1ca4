"""Losses and gradients of many chains at once, each at its own weights and on its own batch.

A chain is a row of one flat buffer (chain, d). Plain stacks of linear layers are differentiated by hand with
batched matrix products; other modules go through ``torch.func``, and large ones and those it does not serve one chain
after the other. All give the same numbers up to rounding.
A batch whose leading axis is 1 is shared by all chains, and not copied for each of them.
"""

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from assay.landscape.losses import Batch, squared_error
from assay.landscape.sequential import Sequential, WithLoss
from assay.landscape.stack import Stack, is_stack
from assay.landscape.target import Target

LARGE = 1_000_000
"""Sampled parameters from which chains go one after the other: batching gains nothing, and would need memory."""


class Gradient(Protocol):
    """Mean loss and its gradient, for every chain."""

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take weights (chain, d) and a batch (chain, example, ...) or (1, example, ...); give (chain,), (chain, d)."""
        ...


def gradient_of(target: Target) -> Gradient:
    """Choose the fastest way that serves this module and loss."""
    if is_stack(target):
        return Stack(target)
    return Functional(target) if target.d < LARGE and is_mapped(target) else Sequential(target)


def is_mapped(target: Target) -> bool:
    """Tell whether ``torch.func`` serves a module and its loss, by trying it with two chains and one example.

    It refuses what decides by values, and does slowly and with a warning what it knows no batched form of, such as the
    attention of transformers.
    """
    batch = tuple(part[:1].expand(2, *part[:1].shape) for part in target.data)
    with warnings.catch_warnings(record=True) as warned, target.evaluating():
        warnings.simplefilter("always")
        try:
            Functional(target)(target.anchor().expand(2, -1), batch)
        except (RuntimeError, ValueError):
            return False
    return not any("batching rule" in str(warning.message) for warning in warned)


def everything(target: Target) -> Batch:
    r"""Give all of the data as one batch for all chains, (1, example, ...).

    The squared error of a linear network depends on the data through their second moments alone. There the n examples
    are replaced by the rows of R in :math:`(X, Y) = QR`, scaled so that the mean loss is the same: as many rows as
    inputs and outputs together.
    """
    data, few = target.data, rows_of_everything(target)
    if few < target.n:
        inputs, rows = data[0].shape[1], torch.cat(data[:2], 1)
        upper = torch.linalg.qr(rows.double(), mode="r").R * (few / len(rows)) ** 0.5
        data = tuple(part.to(rows.dtype) for part in (upper[:, :inputs], upper[:, inputs:]))
    return tuple(part[None] for part in data)


def rows_of_everything(target: Target) -> int:
    """Tell how many rows `everything` has, without computing them."""
    linear = is_stack(target) and all(
        isinstance(part, nn.Linear | nn.Identity) for part in target.module.children()
    )
    unbiased = all(parameter.ndim == 2 for parameter in target.parameters.values())
    if linear and unbiased and target.loss is squared_error and target.data[1].ndim == 2:
        return min(target.n, sum(part.shape[1] for part in target.data[:2]))
    return target.n


def mean_loss(target: Target) -> Callable[[Tensor, Batch], Tensor]:
    """Give the function from flat weights (d,) and a batch to the mean loss over it."""
    whole = WithLoss(target)

    def mean(flat: Tensor, batch: Batch) -> Tensor:
        named = {f"module.{name}": value for name, value in target.named(flat).items()}
        return functional_call(whole, named, (batch,)).mean()

    return mean


class Functional:
    """Any module, by ``vmap`` of ``grad_and_value`` of ``functional_call``."""

    def __init__(self, target: Target) -> None:
        each = grad_and_value(mean_loss(target))
        self._own, self._shared = vmap(each), vmap(each, in_dims=(0, None))

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Gradient`."""
        if len(batch[0]) == 1 < len(parameters):
            gradient, loss = self._shared(parameters, tuple(part[0] for part in batch))
        else:
            gradient, loss = self._own(parameters, batch)
        return loss.detach(), gradient
