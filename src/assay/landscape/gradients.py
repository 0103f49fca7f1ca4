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

from assay.landscape import layer_norms
from assay.landscape.losses import Batch, OutputLoss, squared_error
from assay.landscape.sequential import Sequential, WithLoss
from assay.landscape.target import Target

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity)
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


def is_stack(target: Target) -> bool:
    """Tell whether a module is a plain stack of linear layers, norms and activations under a loss of its outputs."""
    module = target.module
    return (
        type(module) is nn.Sequential
        and isinstance(target.loss, OutputLoss)
        and target.dtype in (torch.float32, torch.float64)
        and all(type(part) in (nn.Linear, *ELEMENTWISE) or layer_norms.is_plain(part) for part in module)
        and len(target.parameters) == sum(len(list(part.parameters())) for part in module)
        and target.data[0].ndim == 2
    )


def everything(target: Target) -> Batch:
    r"""Give all of the data as one batch for all chains, (1, example, ...).

    The squared error of a linear network depends on the data through their second moments alone. There the n examples
    are replaced by the rows of R in :math:`(X, Y) = QR`, scaled so that the mean loss is the same: as many rows as
    inputs and outputs together.
    """
    data = target.data
    linear = is_stack(target) and all(
        isinstance(part, nn.Linear | nn.Identity) for part in target.module.children()
    )
    unbiased = all(parameter.ndim == 2 for parameter in target.parameters.values())
    if linear and unbiased and target.loss is squared_error and data[1].ndim == 2:
        inputs = data[0].shape[1]
        rows = torch.cat(data, 1)
        if len(rows) > rows.shape[1]:
            upper = torch.linalg.qr(rows.double(), mode="r").R * (rows.shape[1] / len(rows)) ** 0.5
            data = tuple(part.to(rows.dtype) for part in (upper[:, :inputs], upper[:, inputs:]))
    return tuple(part[None] for part in data)


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


class Stack:
    """A stack of linear layers, layer norms and elementwise activations, by batched matrix products.

    The layers are differentiated by hand, straight into the flat gradient; so is the squared error, while other losses
    and the activations go through autograd. Products are written into memory that is kept from call to call: a
    batch shared by all chains is read in place, and never copied for each of them.
    """

    def __init__(self, target: Target) -> None:
        assert isinstance(target.loss, OutputLoss) and isinstance(target.module, nn.Sequential)
        self._loss, self._layers = target.loss, list(target.module)
        self._shapes = {name: value.shape for name, value in target.parameters.items()}
        self._places = target.places
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._seen: dict[int, layer_norms.Seen] = {}

    def _part(self, flat: Tensor, name: str) -> Tensor:
        return flat[:, self._places[name]].view(len(flat), *self._shapes[name])

    def _room(self, use: str, index: int, like: Tensor, units: int) -> Tensor:
        """Give memory for the values of a layer, (chain, example, unit)."""
        return self._memory(use, index, like, (*like.shape[:2], units))

    def _memory(self, use: str, index: int, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """Give contiguous memory that is kept from call to call."""
        room, shape = self._kept.get((use, index)), shape or like.shape
        if room is None or room.shape != shape:
            room = self._kept[use, index] = like.new_empty(shape)
        return room

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Gradient`."""
        entering: list[Tensor] = []
        values = batch[0].expand(len(parameters), *batch[0].shape[1:])
        for index, layer in enumerate(self._layers):
            entering.append(values)
            values = self._forward(parameters, index, layer, values)
        loss, slope = self._outer(values, batch[1].expand(len(parameters), *batch[1].shape[1:]))
        gradient = torch.empty_like(parameters)
        for index in range(len(self._layers) - 1, -1, -1):
            layer, before = self._layers[index], entering[index]
            if isinstance(layer, nn.LayerNorm):
                slope = self._through_norm(parameters, index, before, slope, gradient)
                continue
            if not isinstance(layer, nn.Linear):
                slope = _pull_back(layer, before, slope)
                continue
            part = self._part(gradient, f"{index}.weight")
            # a product with rows that are not contiguous would be taken chain by chain
            part.copy_(torch.bmm(slope.mT, before, out=self._memory("weight", index, part)))
            if f"{index}.bias" in self._places:
                torch.sum(slope, 1, out=self._part(gradient, f"{index}.bias"))
            if index:
                room = self._room("slope", index, before, layer.in_features)
                slope = torch.bmm(slope, self._part(parameters, f"{index}.weight"), out=room)
        return loss, gradient

    def _forward(self, parameters: Tensor, index: int, layer: nn.Module, values: Tensor) -> Tensor:
        if isinstance(layer, nn.LayerNorm):
            return self._normed(parameters, index, layer, values)
        if not isinstance(layer, nn.Linear):
            return layer(values)
        weight = self._part(parameters, f"{index}.weight").mT
        room = self._room("value", index, values, layer.out_features)
        if f"{index}.bias" not in self._places:
            return torch.bmm(values, weight, out=room)
        return torch.baddbmm(self._part(parameters, f"{index}.bias")[:, None], values, weight, out=room)

    def _normed(self, parameters: Tensor, index: int, layer: nn.LayerNorm, values: Tensor) -> Tensor:
        room = self._room("normed", index, values, values.shape[-1])
        seen = self._seen[index] = layer_norms.normalize(values, layer.eps, room)
        if f"{index}.weight" not in self._places:
            return seen.normed
        weight = self._part(parameters, f"{index}.weight")[:, None]
        room = self._room("value", index, values, values.shape[-1])
        if f"{index}.bias" not in self._places:
            return torch.mul(seen.normed, weight, out=room)
        return torch.addcmul(self._part(parameters, f"{index}.bias")[:, None], seen.normed, weight, out=room)

    def _through_norm(
        self, parameters: Tensor, index: int, before: Tensor, slope: Tensor, gradient: Tensor
    ) -> Tensor:
        """Pull a slope back through a layer norm, and leave the gradients of its weights."""
        seen = self._seen[index]
        if f"{index}.bias" in self._places:
            torch.sum(slope, 1, out=self._part(gradient, f"{index}.bias"))
        if f"{index}.weight" in self._places:
            room = self._room("product", index, slope, slope.shape[-1])
            torch.sum(torch.mul(slope, seen.normed, out=room), 1, out=self._part(gradient, f"{index}.weight"))
            slope = torch.mul(slope, self._part(parameters, f"{index}.weight")[:, None], out=room)
        return layer_norms.pull_back(slope, before, seen)

    def _outer(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give each chain's mean loss and its gradient with respect to the outputs."""
        if self._loss is squared_error and targets.shape == outputs.shape:
            away = outputs.sub_(targets)  # nobody reads the outputs again
            loss = torch.linalg.vector_norm(away, dim=(1, 2)).square() / away.shape[1]
            return loss, away.mul_(2 / away.shape[1])
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            each = self._loss.of(leaf.flatten(0, 1), targets.flatten(0, 1))
            loss = each.view(len(outputs), -1).mean(1)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), slope


def _pull_back(layer: nn.Module, before: Tensor, slope: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = before.detach().requires_grad_()
        return torch.autograd.grad(layer(leaf), leaf, slope)[0]
