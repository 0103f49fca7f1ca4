"""Digits drawn from a small bitmap font, and a multilayer perceptron that reads them: no file is needed."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.zoo.training import Batch, Training, generators, linear, train

SIDE = 8
"""Pixels of a side of the picture."""
_FONT = """
### .#. ### ### #.# ### ### ### ### ###
#.# ##. ..# ..# #.# #.. #.. ..# #.# #.#
#.# .#. ### .## ### ### ### .#. ### ###
#.# .#. #.. ..# ..# ..# #.# .#. #.# ..#
### ### ### ### ..# ### ### .#. ### ###
"""


def font() -> Tensor:
    """Give the ten glyphs, (10, 5, 3): 1 where there is ink."""
    rows = [line.split() for line in _FONT.split("\n") if line]
    return torch.tensor(
        [[[mark == "#" for mark in row[digit]] for row in rows] for digit in range(10)]
    ).float()


def examples(n: int, *, generator: torch.Generator, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Draw digits at random places of the picture.

    Args:
        n: number of pictures.
        generator: on the processor.
        noise: standard deviation of what is added to each pixel; ink is 1, paper 0.

    Returns:
        Pictures (n, 64) and the digits they show (n,).
    """
    glyphs = font()
    _, height, width = glyphs.shape
    digits = torch.randint(10, (n,), generator=generator)
    top = torch.randint(SIDE - height + 1, (n,), generator=generator)
    left = torch.randint(SIDE - width + 1, (n,), generator=generator)
    row = top[:, None, None] + torch.arange(height)[:, None]
    column = left[:, None, None] + torch.arange(width)
    pictures = noise * torch.randn(n, SIDE, SIDE, generator=generator)
    pictures[torch.arange(n)[:, None, None], row, column] += glyphs[digits]
    return pictures.flatten(1), digits


def network(hidden: int = 64, *, generator: torch.Generator) -> nn.Sequential:
    """Make a network at the start of training: 64 pixels, a layer of ReLUs, ten scores.

    Args:
        hidden: units of the layer between.
        generator: draws the weights.
    """
    first, last = linear(SIDE**2, hidden, generator=generator), linear(hidden, 10, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last)


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each picture, (example,), in nats."""
    return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def train_many(
    seeds: int,
    *,
    hidden: int = 64,
    steps: int = 2000,
    keep_every: int = 100,
    rate: float = 3e-3,
    batch_size: int = 64,
    generator: torch.Generator,
) -> Training:
    """Train many networks in one call by Adam; see `assay.zoo.training.train`.

    Args:
        seeds: number of networks.
        hidden: units of the layer between.
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning.
        batch_size: fresh pictures in each step.
        generator: of weights and of pictures.
    """
    sources = generators(seeds, generator=generator)
    networks = [network(hidden, generator=source) for source in sources]

    def batches(step: int) -> Batch:
        drawn = [examples(batch_size, generator=source) for source in sources]
        return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))

    optimizer = partial(torch.optim.Adam, lr=rate)
    return train(networks, loss, batches, optimizer=optimizer, steps=steps, keep_every=keep_every)
