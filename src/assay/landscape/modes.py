"""A module in eval mode or in its own for a while, with nothing left behind in it or in torch's generators."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Generator[None]:
    """Put a module into eval mode for a while, and every part of it back into its own mode after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def own_mode(module: nn.Module, seed: int) -> Generator[None]:
    """Let a module compute in the mode it is in, while dropout draws from a seed.

    Dropout reads torch's own generators, so for this while these are others. What batch norms keep of the batches they
    see is put back.

    Args:
        module: in its own mode.
        seed: of what is random in it.
    """
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    device = next(module.parameters()).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for place in cuda:
            torch.cuda.set_rng_state(torch.Generator(place).manual_seed(seed).get_state(), place)
        try:
            yield
        finally:
            for buffer, before in kept:
                buffer.copy_(before)
