"""Deep linear networks: x -> W_L ... W_1 x. Every layer is linear, the loss is not, and the truth is known.

Weights are a tuple of one tensor for each layer, (..., output, input); any leading axes are independent
networks, so that many seeds are trained in one batched call. Randomness comes from the generator passed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from assay.zoo import training

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

    The singular values are shared out evenly: every layer has their L-th roots. Those within the map's rounding, its
    longer side times the precision of its type and its largest singular value, are zero.

    Args:
        target: the map, (d_L, d_0).
        widths: d_0, ..., d_L.

    Returns:
        Weights whose product is the map.

    Raises:
        ValueError: when there are fewer than two widths, they are not the map's, or one is too small for it.
    """
    if len(widths) < 2 or tuple(target.shape) != (widths[-1], widths[0]):
        shape = tuple(target.shape)
        raise ValueError(
            f"a map of shape {shape} is not one from {widths[0]} to {widths[-1]}: widths {list(widths)}"
        )
    left, values, right = torch.linalg.svd(target, full_matrices=False)
    rounding = max(target.shape) * torch.finfo(target.dtype).eps
    rank = int((values > values.max() * rounding).sum())
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
    """Make one network's weights a module: a stack of ``nn.Linear`` without bias, which copies them.

    Raises:
        ValueError: weights of several networks.
    """
    if shapes := [tuple(layer.shape) for layer in weights if layer.ndim != 2]:
        raise ValueError(f"layers of shapes {shapes}: expected one network's, (output, input)")
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


def few_examples(inputs: Tensor) -> Tensor:
    """Give d_0 inputs or fewer with the second moments of many, (n, d_0): a squared error sees nothing else."""
    upper = torch.linalg.qr(inputs.double(), mode="r").R
    return (upper * (len(upper) / len(inputs)) ** 0.5).to(inputs.dtype)


def train_many(  # noqa: PLR0913 (each is one documented setting of the training)
    seeds: int,
    data: tuple[Tensor, Tensor],
    *,
    width: int = 100,
    layers: int = 4,
    smallness: float = 1.0,
    steps: int = 10_000,
    keep_every: int = 200,
    rate: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    batch_size: int = 128,
    generator: torch.Generator,
) -> training.Training:
    """Train networks of one width from small weights by stochastic gradient descent: from saddle to saddle.

    The setting is that of A. Jacot et al. 2021 (arXiv 2106.15933, section on learning a map of low rank) with the
    numbers of a notebook on deep linear networks that comes with devinterp.

    Args:
        seeds: number of networks.
        data: inputs (n, d_0) and outputs (n, d_L), the same for all; n is a multiple of the batch size.
        width: of every layer between.
        layers: number of matrices.
        smallness: every weight is drawn from N(0, width^(-2 smallness)).
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning, for the squared error averaged over output units.
        momentum: of the updates.
        weight_decay: what is added to the gradient, times the weights.
        batch_size: examples in each step; each network goes through the data in an order of its own.
        generator: of weights and of orders.

    Raises:
        ValueError: no layer, or batches that do not go into the data.
    """
    if layers < 1 or batch_size < 1 or len(data[0]) % batch_size:
        raise ValueError(
            f"{layers=}, {batch_size=}: expected a layer at least, and a divisor of {len(data[0])} examples"
        )
    sources = training.generators(seeds, generator=generator)
    widths = (data[0].shape[1], *[width] * (layers - 1), data[1].shape[1])
    shapes = list(zip(widths[1:], widths, strict=False))
    networks = [
        as_module(tuple(torch.randn(shape, generator=source) * width**-smallness for shape in shapes))
        for source in sources
    ]
    orders: list[Tensor] = []

    def batches(step: int) -> training.Batch:
        place = step * batch_size % len(data[0])
        if place == 0:
            orders[:] = [torch.randperm(len(data[0]), generator=source) for source in sources]
        rows = torch.stack([order[place : place + batch_size] for order in orders])
        return tuple(part[rows] for part in data)

    def loss(module: nn.Module, batch: training.Batch) -> Tensor:
        return (module(batch[0]) - batch[1]).square().mean(1)

    optimizer = partial(torch.optim.SGD, lr=rate, momentum=momentum, weight_decay=weight_decay)
    return training.train(networks, loss, batches, optimizer=optimizer, steps=steps, keep_every=keep_every)


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

    Raises:
        ValueError: ``keep_every`` below 1.
    """
    if keep_every < 1:
        raise ValueError(f"{keep_every=}: expected 1 or more")
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
