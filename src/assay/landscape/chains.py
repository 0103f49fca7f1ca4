r"""Chains: many walks through weight space at once, in one flat buffer.

Every chain samples the localized posterior

.. math:: p(w) \propto \exp(-U(w)), \qquad U(w) = n\beta\,L(w) + \frac{\gamma}{2} \lVert w - w^* \rVert^2

with its own step size, temperature, localization, seed, and its own stream of batches. What a chain does depends on
its own row alone, so a chain walked by itself takes the same steps, up to the rounding of batched products.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Tensor

from assay.landscape.gradients import Batch, Gradient, gradient_of
from assay.landscape.samplers import sgld
from assay.landscape.target import Target


@dataclass(frozen=True)
class Chains:
    """Settings of a row of chains.

    Attributes:
        seeds: one for each chain; equal seeds see equal noise and equal batches.
        step_size: epsilon, (chain,).
        n_beta: number of samples times inverse temperature, (chain,).
        localization: gamma, (chain,).
        masks: where each chain moves, (chain, d) or (1, d) bool; None for everywhere.
        batch_size: examples in a batch, drawn with replacement; None takes all of the data.
    """

    seeds: tuple[int, ...]
    step_size: Tensor
    n_beta: Tensor
    localization: Tensor
    masks: Tensor | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Walk:
    """What chains leave behind; the position before each step is what a column describes.

    Attributes:
        loss: mean over the batch, (chain, step), float64.
        squared_gradient: squared norm of the gradient of U, (chain, step), float64.
        distance: from the anchor, (chain, step), float64.
    """

    loss: Tensor
    squared_gradient: Tensor
    distance: Tensor


def walk(target: Target, chains: Chains, steps: int, gradient: Gradient | None = None) -> Walk:
    """Walk every chain from the anchor.

    Args:
        target: what is sampled.
        chains: how.
        steps: to take.
        gradient: how losses and gradients are computed; the fastest way that serves when not given.

    Returns:
        Traces of all steps; a chain that diverged has NaN or infinity from there on.
    """
    gradient = gradient or gradient_of(target)
    anchor, count = target.anchor(), len(chains.seeds)
    step_size, n_beta, localization = (
        part.to(anchor)[:, None] for part in (chains.step_size, chains.n_beta, chains.localization)
    )
    streams = [_Streams(seed, anchor.device) for seed in chains.seeds]
    state, noise = sgld.init(anchor.repeat(count, 1)), anchor.new_empty(count, len(anchor))
    traces = torch.empty(3, count, steps, dtype=torch.float64, device=anchor.device)
    with torch.no_grad(), target.evaluating():
        for step in range(steps):
            loss, slope = gradient(state.position, _batch(target, chains.batch_size, streams))
            away = state.position - anchor
            slope = slope.mul_(n_beta).addcmul_(away, localization)
            for row, stream in zip(noise, streams, strict=True):
                row.normal_(generator=stream.noise)
            if chains.masks is not None:
                slope.mul_(chains.masks)
                noise.mul_(chains.masks)
            traces[0, :, step] = loss
            traces[1, :, step] = torch.linalg.vecdot(slope, slope)
            traces[2, :, step] = torch.linalg.vector_norm(away, dim=1)
            state = sgld.step(state, slope, noise, step_size)
    return Walk(*traces)


class _Streams:
    """The two sources of chance of one chain, so that another batch size leaves the noise as it is."""

    def __init__(self, seed: int, device: torch.device) -> None:
        words = SeedSequence(seed).generate_state(2, np.uint64)
        self.noise, self.batches = (
            torch.Generator(device).manual_seed(int(word) & (2**63 - 1)) for word in words
        )


def _batch(target: Target, batch_size: int | None, streams: list[_Streams]) -> Batch:
    """Draw a batch for each chain, (chain, example, ...); all of the data are a view, not a copy."""
    if batch_size is None:
        return tuple(part.expand(len(streams), *part.shape) for part in target.data)
    rows = torch.stack(
        [
            torch.randint(target.n, (batch_size,), generator=each.batches, device=target.device)
            for each in streams
        ]
    )
    return tuple(part[rows] for part in target.data)
