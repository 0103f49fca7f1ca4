r"""Chains of a large module, which hold nothing but a position each, and one gradient between them.

The steps are those of Langevin dynamics as `Walking` takes them, and the numbers are the same up to rounding. But
noise, distance and update go through the vector a piece at a time, so that a piece stays in the processor's cache from
its noise to its update, and the anchor is read from the module itself. Beside the module with its w bytes of weights, a
chain needs 2 w; whole vectors of gradient, noise, anchor, distance and update would need 5 w.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.landscape.chance import Streams
from assay.landscape.samplers import sgld
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target
from assay.landscape.walks import Chains, Walk

PIECE, LARGEST_PIECE = 2**16, 2**24
"""Coordinates in a piece on the CPU, where four of them fit in a core's cache, and elsewhere, where starting costs."""

PAIRED = 4
"""Steps that share one look at the anchor, where losses are paired with its own: neighbours are alike."""


class Frugal:
    """SGLD chains of a large module on their way; `assay.landscape.chains.begin` makes them."""

    def __init__(self, target: Target, chains: Chains, gradient: Sequential) -> None:
        self._target, self._chains, self._gradient = target, chains, gradient
        self._position = torch.empty(len(chains.seeds), target.d, dtype=target.dtype, device=target.device)
        self._slope = torch.zeros_like(self._position[0])
        self._steps, self._excess = 0, self._position.new_zeros(len(chains.seeds), dtype=torch.float64)
        self._streams = Streams(chains.seeds, self._position)
        self._step_size, self._n_beta, self._localization = (
            part.double().tolist() for part in (chains.step_size, chains.n_beta, chains.localization)
        )
        for chain, row in enumerate(self._position):
            for piece, anchor in self._pieces(chain):
                row[piece] = anchor

    @property
    def position(self) -> Tensor:
        """Where the chains are, (chain, d)."""
        return self._position

    @property
    def state(self) -> sgld.State:
        """What the sampler knows of the chains."""
        return sgld.State(self._position)

    def change_step(self, step_size: Tensor) -> None:
        """Go on with another step size, (chain,)."""
        self._step_size = step_size.double().tolist()

    def advance(self, steps: int) -> Walk:
        """Take more steps; see `Walking.advance`."""
        traces = self._position.new_empty((5, len(self._position), steps), dtype=torch.float64)
        with torch.no_grad(), self._target.evaluating():
            for step in range(steps):
                batch = self._batch()
                for chain in range(len(self._position)):
                    own = tuple(part[min(chain, len(part) - 1)] for part in batch)
                    traces[0, chain, step] = self._gradient.add(self._position[chain], own, self._slope)
                    traces[1:4, chain, step] = self._move(chain)
                if self._pairing:
                    traces[0, :, step] = self._above(traces[0, :, step], batch) + self._target.anchor_loss
        traces[2].sqrt_()
        step_size = torch.tensor(self._step_size, dtype=torch.float64, device=traces.device)
        traces[4] = sgld.bias(step_size[:, None], traces[1])
        return Walk(*traces, reports={})

    @property
    def _pairing(self) -> bool:
        chains = self._chains
        return chains.batch_size is not None and chains.anchors is None and self._target.seen < self._target.n

    def _above(self, losses: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        """Give what losses are above the anchor's on the same batches, found anew every few steps, (chain,)."""
        if self._steps % PAIRED == 0:
            self._excess = self._target.paired(losses, batch) - self._target.anchor_loss
        self._steps += 1
        return self._excess

    def _move(self, chain: int) -> Tensor:
        """Take the step of one chain, whose gradient is at hand, and leave zeros in the gradient's place.

        Returns:
            Squared norm of the slope, squared distance from the anchor, and the virial, (3,).
        """
        n_beta, localization, step_size = (
            self._n_beta[chain],
            self._localization[chain],
            self._step_size[chain],
        )
        sums = self._slope.new_zeros(3, dtype=torch.float64)
        noise = torch.empty_like(self._slope[: self._longest])
        for piece, anchor in self._pieces(chain):
            here, slope, kick = self._position[chain, piece], self._slope[piece], noise[: len(anchor)]
            away = here - anchor
            slope.mul_(n_beta).add_(away, alpha=localization)
            self._streams.fill(chain, kick)
            if self._chains.masks is not None:
                mask = self._chains.masks[min(chain, len(self._chains.masks) - 1), piece]
                slope.mul_(mask)
                kick.mul_(mask)
            sums[0] += torch.dot(slope, slope)
            sums[1] += torch.dot(away, away)
            sums[2] += torch.dot(away, slope)
            here.add_(kick, alpha=step_size**0.5).add_(slope, alpha=-step_size / 2)
            slope.zero_()
        sums[2] /= 2
        return sums

    @property
    def _longest(self) -> int:
        return PIECE if self._position.device.type == "cpu" else LARGEST_PIECE

    def _pieces(self, chain: int) -> Iterator[tuple[slice, Tensor]]:
        """Go through the vector: where a piece lies, and the anchor there."""
        if self._chains.anchors is not None:
            anchor = self._chains.anchors[chain].to(self._position)
            for start, part in zip(
                range(0, len(anchor), self._longest), anchor.split(self._longest), strict=True
            ):
                yield slice(start, start + len(part)), part
            return
        buffer = torch.empty_like(self._slope[: self._longest])
        start = filled = 0
        for value in self._target.parameters.values():
            flat, taken = value.detach().flatten(), 0
            while taken < len(flat):
                more = min(len(flat) - taken, len(buffer) - filled)
                buffer[filled : filled + more] = flat[taken : taken + more]
                taken, filled = taken + more, filled + more
                if filled == len(buffer):
                    yield slice(start, start + filled), buffer
                    start, filled = start + filled, 0
        if filled:
            yield slice(start, start + filled), buffer[:filled]

    def _batch(self) -> tuple[Tensor, ...]:
        """Draw a batch for each chain, (chain, example, ...), or give all of the data, (1, example, ...)."""
        if self._chains.batch_size is None:
            return tuple(part[None] for part in self._target.data)
        rows = self._streams.rows(self._target.n, self._chains.batch_size)
        return tuple(part[rows] for part in self._target.data)
