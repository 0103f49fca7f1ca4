r"""A toy network with a LayerNorm, whose loss stays on a plateau for long and then drops sharply.

Linear(4, 64), LayerNorm(64), Linear(64, 4, no bias), trained by stochastic gradient descent to reproduce the first
of its inputs, drawn from N(0, 20^2); the other outputs are ignored. LayerNorm removes the length of its input, so at
first the network sees hardly more than the direction u of x = \|x\| u. The best predictor of that kind is
:math:`E\lVert x\rVert\,u_1`, and its loss is known (`PLATEAU`). To do better the network has to bring its biases up
to the size of its inputs, 20 times that of its weights.

The setting is that of a figure on the project page of Timaeus.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from assay.zoo.training import Batch, Training, generators, linear, train

INPUTS, HIDDEN, SCALE = 4, 64, 20.0
PLATEAU = SCALE**2 * (1 - 9 * math.pi / 32)
r"""Loss of the best predictor that sees directions only: :math:`\sigma^2 (4 - (E\chi_4)^2)/4` with
:math:`E\chi_4 = \sqrt{9\pi/8}`, which is 46.6."""


def network(*, layer_norm: bool = True, generator: torch.Generator) -> nn.Sequential:
    """Make a network at the start of training.

    Args:
        layer_norm: False leaves the LayerNorm out, which makes a two-layer linear network: the twin.
        generator: draws the weights.
    """
    middle = [nn.LayerNorm(HIDDEN)] if layer_norm else []
    first = linear(INPUTS, HIDDEN, generator=generator)
    return nn.Sequential(first, *middle, linear(HIDDEN, INPUTS, bias=False, generator=generator))


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Squared error of the first output on the first input: batch[0] is (example, 4)."""
    return (module(batch[0])[:, 0] - batch[0][:, 0]).square()


def examples(n: int, *, generator: torch.Generator) -> Tensor:
    """Draw inputs from N(0, 20^2), (n, 4)."""
    return SCALE * torch.randn(n, INPUTS, generator=generator)


def train_many(
    seeds: int,
    *,
    layer_norm: bool = True,
    steps: int = 100_000,
    keep_every: int = 50,
    rate: float = 3e-2,
    batch_size: int = 128,
    generator: torch.Generator,
) -> Training:
    """Train many networks in one call; see `assay.zoo.training.train`.

    Args:
        seeds: number of networks.
        layer_norm: False trains the twin without it.
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning. The twin does not survive 3e-2 on inputs of this size; 3e-4 suits it.
        batch_size: fresh examples in each step.
        generator: of weights and of inputs.
    """
    sources = generators(seeds, generator=generator)
    networks = [network(layer_norm=layer_norm, generator=source) for source in sources]

    def batches(step: int) -> Batch:
        return (torch.stack([examples(batch_size, generator=source) for source in sources]),)

    optimizer = partial(torch.optim.SGD, lr=rate)
    return train(networks, loss, batches, optimizer=optimizer, steps=steps, keep_every=keep_every)
