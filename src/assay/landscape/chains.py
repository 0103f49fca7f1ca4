r"""Chains: many walks through weight space at once, in one flat buffer.

Every chain samples the localized posterior

.. math:: p(w) \propto \exp(-U(w)), \qquad U(w) = n\beta\,L(w) + \frac{\gamma}{2} \lVert w - w^* \rVert^2

with its own step size, temperature, localization, anchor, seed, and its own stream of batches. What a chain does
depends on its own row alone, so a chain walked by itself takes the same steps, up to the rounding of batched products.
"""

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.landscape.chance import Streams
from assay.landscape.frugal import Frugal
from assay.landscape.gradients import Batch, Gradient, everything, gradient_of
from assay.landscape.samplers.sampler import Chance, Point, Sampler
from assay.landscape.samplers.sgld import SGLD
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target
from assay.landscape.walks import Chains, Walk, side_by_side

CACHED = 2**17
"""Coordinates of the chains that a processor walks together: their vectors stay in a core's cache."""


class Walker(Protocol):
    """Chains on their way, which can go on from where they are."""

    @property
    def position(self) -> Tensor:
        """Where the chains are, (chain, d)."""
        ...

    def change_step(self, step_size: Tensor) -> None:
        """Go on with another step size, (chain,)."""
        ...

    def advance(self, steps: int) -> Walk:
        """Take more steps; give the traces of these."""
        ...


def walk(
    target: Target,
    chains: Chains,
    steps: int,
    sampler: Sampler | None = None,
    gradient: Gradient | None = None,
) -> Walk:
    """Walk every chain from its anchor.

    Args:
        target: what is sampled.
        chains: how.
        steps: to take.
        sampler: by which steps; SGLD when not given.
        gradient: how losses and gradients are computed; the fastest way that serves when not given.

    Returns:
        Traces of all steps; a chain that diverged has NaN or infinity from there on.
    """
    return begin(target, chains, sampler, gradient).advance(steps)


def begin(
    target: Target, chains: Chains, sampler: Sampler | None = None, gradient: Gradient | None = None
) -> Walker:
    """Put every chain at its anchor, ready to walk; see `walk`.

    Raises:
        BadInput: a sampler that accepts or rejects, with batches.
    """
    # a gradient that is given may be that of these very chains
    together = walked_together(target) if gradient is None else len(chains.seeds)
    sampler, gradient = sampler or SGLD(), gradient or gradient_of(target)
    alike = chains.masks is None or len(chains.masks) == 1
    if isinstance(sampler, SGLD) and isinstance(gradient, Sequential) and alike and target.seeds is None:
        return Frugal(target, chains, gradient)
    whole = everything(target) if chains.batch_size is None else None
    groups = [Walking(target, part, sampler, gradient, whole) for part in chains.split(together)]
    return groups[0] if len(groups) == 1 else InTurn(groups)


def walked_together(target: Target) -> int:
    """Tell how many chains go together at most."""
    return max(1, CACHED // target.d) if target.device.type == "cpu" else sys.maxsize


class InTurn:
    """Chains in groups, of which one takes all of its steps after the other."""

    def __init__(self, groups: Sequence[Walker]) -> None:
        self._groups = groups

    @property
    def position(self) -> Tensor:
        """Where the chains are, (chain, d)."""
        return torch.cat([group.position for group in self._groups])

    def change_step(self, step_size: Tensor) -> None:
        """Go on with another step size, (chain,)."""
        parts = step_size.split([len(group.position) for group in self._groups])
        for group, part in zip(self._groups, parts, strict=True):
            group.change_step(part)

    def advance(self, steps: int) -> Walk:
        """Take more steps; give the traces of these."""
        return side_by_side([group.advance(steps) for group in self._groups])


class Walking:
    """Chains that take each step together.

    Args:
        target: what is sampled.
        chains: how.
        sampler: by which steps.
        gradient: how losses and gradients are computed.
        whole: `everything` of the target, where it is at hand.
    """

    def __init__(
        self,
        target: Target,
        chains: Chains,
        sampler: Sampler,
        gradient: Gradient,
        whole: Batch | None = None,
    ) -> None:
        if sampler.exact and chains.batch_size is not None:
            raise BadInput(
                f"batch_size={chains.batch_size} with sampler {sampler.name!r}: it accepts or rejects on all of the "
                "data. Leave batch_size out, or take a sampler that works on batches."
            )
        here, count = target.anchor(), len(chains.seeds)
        self._target, self._chains, self._sampler, self._gradient = target, chains, sampler, gradient
        self._anchors = here[None] if chains.anchors is None else chains.anchors.to(here)
        self._step_size, self._n_beta, self._localization = (
            part.to(here)[:, None] for part in (chains.step_size, chains.n_beta, chains.localization)
        )
        self._n_beta64, self._localization64 = (
            part.to(here.device, torch.float64) for part in (chains.n_beta, chains.localization)
        )
        position = self._anchors.expand(count, -1).clone()
        self._streams = Streams(chains.seeds, position)
        self._everything = (whole or everything(target)) if chains.batch_size is None else None
        self._room: list[Tensor] = []
        free = here.new_full((count, 1), len(here))
        if chains.masks is not None:
            free = chains.masks.sum(1, keepdim=True).to(here).expand(count, 1)
        start = self._masked(self._streams.coins(len(here), normal=True))
        self._state = sampler.init(position, start, free)

    @property
    def state(self) -> Any:
        """What the sampler knows of the chains."""
        return self._state

    @property
    def position(self) -> Tensor:
        """Where the chains are, (chain, d)."""
        return self._state.position

    def change_step(self, step_size: Tensor) -> None:
        """Go on with another step size, (chain,)."""
        self._step_size = step_size.to(self._step_size)[:, None]

    def advance(self, steps: int) -> Walk:
        """Take more steps; give the traces of these."""
        names = self._sampler.reports
        traces = self._anchors.new_empty(steps, 5 + len(names), len(self._chains.seeds), dtype=torch.float64)
        with torch.no_grad(), self._target.evaluating():
            for step in range(steps):
                batch = self._batch()
                self._state, seen = self._sampler.step(
                    self._state,
                    lambda at, batch=batch: self._look(at, batch),
                    self._chance(),
                    self._step_size,
                )
                point = seen.point
                seen_by_all = (point.loss, point.squared_slope, point.squared_distance, point.virial)
                torch.stack((*seen_by_all, seen.bias, *seen.reports), out=traces[step])
        self._room.clear()
        rows = traces.permute(1, 2, 0).contiguous()
        rows[2].sqrt_()
        return Walk(*rows[:5], reports=dict(zip(names, rows[5:], strict=True)))

    def _look(self, position: Tensor, batch: Batch) -> Point:
        """Find what is known of the potential at positions (chain, d)."""
        loss, slope = self._gradient(position, batch)
        by_chance = self._everything is None or self._target.seeds is not None
        if by_chance and self._chains.anchors is None:
            loss = self._target.paired(loss, batch)
        away = position - self._anchors
        slope = self._masked(slope.mul_(self._n_beta).addcmul_(away, self._localization))
        squared_slope, squared, virial = _dots(slope, slope), _dots(away, away), _dots(away, slope) / 2
        potential = torch.addcmul(self._n_beta64 * loss, self._localization64, squared, value=0.5)
        return Point(loss, potential, slope, squared_slope, squared, virial)

    def _chance(self) -> Chance:
        noise = self._masked(self._streams.noise())
        return Chance(noise, self._streams.coins(2) if self._sampler.exact else None)

    def _masked(self, rows: Tensor) -> Tensor:
        return rows if self._chains.masks is None else rows.mul_(self._chains.masks)

    def _batch(self) -> Batch:
        """Draw a batch for each chain, (chain, example, ...); all of the data are one for all, (1, example, ...)."""
        if self._everything is not None:
            return self._everything
        assert self._chains.batch_size is not None
        rows = self._streams.rows(self._target.n, self._chains.batch_size)
        return tuple(self._gather(index, part, rows) for index, part in enumerate(self._target.data))

    def _gather(self, index: int, part: Tensor, rows: Tensor) -> Tensor:
        """Read the examples of each chain, (chain, example, ...), into memory that stays for the walk."""
        if index == len(self._room):
            self._room.append(part.new_empty(rows.numel(), *part.shape[1:]))
        gathered = torch.index_select(part, 0, rows.flatten(), out=self._room[index])
        return gathered.view(*rows.shape, *part.shape[1:])


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Multiply rows by rows, (chain,)."""
    if len(left) == 1:  # which, other than any number of rows, needs no temporary of their size
        return torch.dot(left[0], right[0])[None]
    return torch.linalg.vecdot(left, right)
