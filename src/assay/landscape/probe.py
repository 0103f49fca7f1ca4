"""Looking at the potential from where chains are: the largest curvature, and how often a step would be accepted."""

import copy

import torch
from torch import Tensor

from assay.landscape.chains import Chains, Walker, walked_together
from assay.landscape.frugal import Frugal
from assay.landscape.gradients import Gradient, everything, gradient_of
from assay.landscape.samplers.mala import log_ratio
from assay.landscape.samplers.sampler import Point
from assay.landscape.samplers.sgld import moved
from assay.landscape.target import Target

REACH = 1e-2
"""Distance over which slopes are compared."""
ROWS = 512
"""Examples of the fixed batch on which chains that walk on batches are looked at."""


def acceptance_of(target: Target, chains: Chains, walking: Walker, step_size: float, seed: int) -> Tensor:
    """Give the probability with which a Langevin step from where each chain is would be accepted, (chain,)."""
    if isinstance(walking, Frugal):
        return walking.acceptance(seed)
    return Probe(target, chains).acceptance(walking.position, step_size, seed)


class Probe:
    """The potential on a fixed batch: all of the data, or evenly spaced examples where chains walk on batches.

    Args:
        target: what is sampled.
        chains: their temperatures, localizations, masks and anchors.
        gradient: how losses and gradients are computed; the fastest way that serves when not given.
    """

    def __init__(self, target: Target, chains: Chains, gradient: Gradient | None = None) -> None:
        here = target.anchor()
        self._target, self._gradient, self._masks = (
            target.standing(),
            gradient or gradient_of(target),
            chains.masks,
        )
        self._anchors = here[None] if chains.anchors is None else chains.anchors.to(here)
        self._n_beta, self._gamma = (part.to(here)[:, None] for part in (chains.n_beta, chains.localization))
        if chains.batch_size is None:
            self._batch = everything(target)
        else:
            rows = torch.linspace(0, target.n - 1, min(ROWS, target.n), device=here.device).round().long()
            self._batch = tuple(part[rows][None] for part in target.data)
        generator = torch.Generator(here.device).manual_seed(0)
        self._along = torch.randn(
            len(chains.seeds), len(here), generator=generator, device=here.device, dtype=here.dtype
        )

    def point(self, position: Tensor) -> Point:
        """Find what is known of the potential at positions (chain, d)."""
        with torch.no_grad(), self._target.evaluating():
            loss, slope = self._gradient(position, self._batch)
        away = position - self._anchors
        slope = self._masked(slope.mul_(self._n_beta).addcmul_(away, self._gamma))
        squared = torch.linalg.vecdot(away, away)
        potential = self._n_beta[:, 0].double() * loss + self._gamma[:, 0].double() / 2 * squared
        return Point(
            loss,
            potential,
            slope,
            torch.linalg.vecdot(slope, slope),
            squared,
            torch.linalg.vecdot(away, slope) / 2,
        )

    def curvature(self, position: Tensor | None = None, *, rounds: int) -> Tensor:
        """Estimate the largest curvature at positions (chain, d), at the anchors when not given: (chain,).

        Power iteration goes on from the direction that the last call found, so that a few rounds follow chains.
        """
        if position is None:
            position = self._anchors.expand(len(self._n_beta), -1)
        slope, largest = self.point(position).slope, torch.zeros(len(position))
        for _ in range(rounds):
            along = torch.nn.functional.normalize(self._masked(self._along.nan_to_num(1.0)), dim=1)
            change = (self.point(position + REACH * along).slope - slope) / REACH
            largest = torch.linalg.vector_norm(change, dim=1)
            self._along = change
        return largest

    def acceptance(self, position: Tensor, step_size: float, seed: int) -> Tensor:
        """Give the probability with which a Langevin step from each position would be accepted, (chain,)."""
        generator = torch.Generator(position.device).manual_seed(seed)
        together = walked_together(self._target)
        return torch.cat(
            [
                self._of(slice(start, start + together))._acceptance(rows, step_size, generator)
                for start, rows in zip(
                    range(0, len(position), together), position.split(together), strict=True
                )
            ]
        )

    def _of(self, chains: slice) -> "Probe":
        """Give the same for some of the chains."""
        part = copy.copy(self)
        part._n_beta, part._gamma = self._n_beta[chains], self._gamma[chains]
        if len(self._anchors) > 1:
            part._anchors = self._anchors[chains]
        if self._masks is not None and len(self._masks) > 1:
            part._masks = self._masks[chains]
        return part

    def _acceptance(self, position: Tensor, step_size: float, generator: torch.Generator) -> Tensor:
        noise = torch.randn(position.shape, generator=generator, device=position.device, dtype=position.dtype)
        noise, step = self._masked(noise), position.new_full((len(position), 1), step_size)
        before = self.point(position)
        after = self.point(moved(position, before.slope, noise, step))
        return log_ratio(before, after, noise, step).clamp_max(0).exp()

    def _masked(self, rows: Tensor) -> Tensor:
        return rows if self._masks is None else rows * self._masks
