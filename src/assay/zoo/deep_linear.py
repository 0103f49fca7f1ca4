"""Deep linear networks: x -> W_L ... W_1 x. Every layer is linear, the loss is not, and the truth is known.

Weights are a tuple of one tensor for each layer, (..., output, input); any leading axes are independent
networks, so that many seeds are trained in one batched call. Randomness comes from the generator passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weights = tuple[Tensor, ...]


def teacher(widths: Sequence[int], rank: int, *, generator: torch.Generator) -> Tensor:
    """Draw a target map of a given rank, whose nonzero singular values lie between 1 and 2.

    Args:
        widths: d_0, ..., d_L.
        rank: of the map, at most the smallest width.
        generator: on the processor.

    Returns:
        (d_L, d_0), float32.

    Raises:
        ValueError: when a width is too small for the rank.
    """
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank {rank} does not fit through widths {list(widths)}")
    left, right = (
        torch.linalg.qr(torch.randn(width, max(rank, 1), generator=generator))[0][:, :rank]
        for width in (widths[-1], widths[0])
    )
    return (left * (1 + torch.rand(rank, generator=generator))) @ right.T


def at_minimal_rank(target: Tensor, widths: Sequence[int]) -> Weights:
    """Realise a map by layers each of the map's own rank, where the learning coefficient is Aoyagi's.

    The singular values are shared out evenly: every layer has their L-th roots.

    Args:
        target: the map, (d_L, d_0).
        widths: d_0, ..., d_L.

    Returns:
        Weights whose product is the map.

    Raises:
        ValueError: when a width is too small for the map.
    """
    left, values, right = torch.linalg.svd(target, full_matrices=False)
    rank = int((values > values.max() * 1e-5).sum()) if bool(values.max() > 0) else 0
    if rank > min(widths):
        raise ValueError(f"a map of rank {rank} does not fit through widths {list(widths)}")
    roots = (values[:rank] ** (1 / (len(widths) - 1))).diag()
    layers = [target.new_zeros(outputs, inputs) for inputs, outputs in zip(widths, widths[1:], strict=False)]
    for layer in layers:
        layer[:rank, :rank] = roots
    layers[0] = layers[0][:, :rank] @ right[:rank]
    layers[-1] = left[:, :rank] @ (layers[-1][:rank] if len(layers) > 1 else roots @ right[:rank])
    return tuple(layers)


def random_weights(
    widths: Sequence[int], *, generator: torch.Generator, scale: float = 1.0, seeds: int | None = None
) -> Weights:
    """Draw weights from N(0, scale^2 / inputs).

    Args:
        widths: d_0, ..., d_L.
        generator: on the processor.
        scale: 1 keeps the size of activations; far below 1, training goes from saddle to saddle.
        seeds: draw this many independent networks along a leading axis; one without it when not given.
    """
    lead = () if seeds is None else (seeds,)
    return tuple(
        torch.randn(*lead, outputs, inputs, generator=generator) * (scale / inputs**0.5)
        for inputs, outputs in zip(widths, widths[1:], strict=False)
    )


def product(weights: Weights) -> Tensor:
    """Multiply the layers: the map that the network realises, (..., d_L, d_0)."""
    whole = weights[0]
    for layer in weights[1:]:
        whole = layer @ whole
    return whole


def as_module(weights: Weights) -> nn.Sequential:
    """Make one network's weights a module: a stack of ``nn.Linear`` without bias, which copies them."""
    layers = [
        nn.Linear(layer.shape[1], layer.shape[0], bias=False, dtype=layer.dtype, device="meta")
        for layer in weights
    ]
    for linear, layer in zip(layers, weights, strict=True):
        linear.weight = nn.Parameter(layer.detach().clone())
    return nn.Sequential(*layers)


def examples(
    target: Tensor, n: int, *, generator: torch.Generator, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw inputs x ~ N(0, I) and outputs y = P x, plus noise where asked.

    Args:
        target: the map P, (d_L, d_0).
        n: number of examples.
        generator: on the processor.
        noise: standard deviation of what is added to each output.

    Returns:
        Inputs (n, d_0) and outputs (n, d_L).
    """
    inputs = torch.randn(n, target.shape[1], generator=generator, dtype=target.dtype)
    outputs = inputs @ target.T
    return inputs, outputs + noise * torch.randn(outputs.shape, generator=generator, dtype=target.dtype)


@dataclass(frozen=True)
class Training:
    """What training leaves behind.

    Attributes:
        loss: squared distance of the realised map from the target, (kept step, ...).
        steps: the steps kept, ascending; the first is 0.
        checkpoints: the weights at each of these steps.
    """

    loss: Tensor
    steps: tuple[int, ...]
    checkpoints: tuple[Weights, ...]


def train(weights: Weights, target: Tensor, *, rate: float, steps: int, keep_every: int) -> Training:
    """Train by gradient descent on the expected loss ||W_L ... W_1 - P||^2, all networks in one call.

    This is full-batch descent on infinitely many inputs x ~ N(0, I): deterministic. The gradient of layer l is
    :math:`2 A^T (W - P) B^T`, with A the product of the layers after it and B of those before.

    Args:
        weights: where to begin; left untouched.
        target: P, (d_L, d_0).
        rate: of learning.
        steps: number of updates.
        keep_every: keep the loss and weights of every so many steps, and of the last.

    Returns:
        The losses and checkpoints kept.
    """
    layers = [layer.clone() for layer in weights]
    kept: list[int] = []
    losses: list[Tensor] = []
    checkpoints: list[Weights] = []
    for step in range(steps + 1):
        before = [layers[0]]
        for layer in layers[1:]:
            before.append(layer @ before[-1])
        slope = 2 * (before[-1] - target)
        if step % keep_every == 0 or step == steps:
            kept.append(step)
            losses.append(slope.square().sum((-2, -1)) / 4)
            checkpoints.append(tuple(layer.clone() for layer in layers))
        for index in range(len(layers) - 1, -1, -1):
            behind = slope @ before[index - 1].mT if index else slope
            slope = layers[index].mT @ slope
            layers[index].sub_(behind, alpha=rate)
    return Training(torch.stack(losses), tuple(kept), tuple(checkpoints))
