r"""Chains of a large module, which hold nothing but what moves of a position each, and one gradient between them.

The steps are those of Langevin dynamics as `Walking` takes them, and without a mask the numbers are the same up to
rounding. But noise, distance and update go through the vector a piece at a time, so that a piece stays in the
processor's cache from its noise to its update, each core takes segments of the vector for itself, and the anchor is
read from the module. Beside the module with
its w bytes of weights, a chain needs 2 w; whole vectors of gradient, noise, anchor, distance and update would need 5 w.
Where a mask holds some of the sampled weights, positions, noise and update are of those alone that move.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from assay.landscape.chance import Streams
from assay.landscape.losses import Batch
from assay.landscape.samplers import sgld
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target, rows_at_once
from assay.landscape.walks import Chains, Walk

PIECE, LARGEST_PIECE = 2**15, 2**24
"""Coordinates in a piece on the CPU, where torch leaves so few to one core, and elsewhere, where starting costs."""

PAIRED = 8
"""Neighbouring steps that share a look at the anchor, where losses are paired with its own."""

ROWS = 512
"""Most examples on which a step is tested."""

Visit = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""What is done at a piece of a chain, given its weights, their slope, the way from the anchor and noise."""


class Piece(NamedTuple):
    """Neighbouring coordinates.

    Attributes:
        place: where they lie.
        anchor: the anchor there, in parts where it lies in several parameters.
    """

    place: slice
    anchor: tuple[Tensor, ...]


class Frugal:
    """SGLD chains of a large module on their way; `assay.landscape.chains.begin` makes them."""

    def __init__(self, target: Target, chains: Chains, gradient: Sequential) -> None:
        self._target, self._chains, self._gradient = target, chains, gradient
        count, like = len(chains.seeds), next(iter(target.parameters.values())).detach()
        self._moving: Tensor | None = None
        self._whole = self._anchors = chains.anchors
        if chains.masks is not None and not bool(chains.masks.all()):
            self._moving = chains.masks[0].nonzero()[:, 0].to(target.device)
            self._whole = (target.anchor()[None] if chains.anchors is None else chains.anchors).to(
                like, copy=True
            )
            self._anchors = self._whole[:, self._moving]
        free = target.d if self._moving is None else len(self._moving)
        self._position = like.new_empty(count, free)
        self._slope = like.new_zeros(free)
        self._known = torch.full((target.n,), torch.nan, dtype=torch.float64, device=target.device)
        self._streams = Streams(chains.seeds, self._position)
        self._step_size, self._n_beta, self._localization = (
            part.double().tolist() for part in (chains.step_size, chains.n_beta, chains.localization)
        )
        self._segments = self._cut()
        for chain, row in enumerate(self._position):
            for piece in sum(self._segments_of(chain), []):
                row[piece.place] = torch.cat(piece.anchor)

    @property
    def position(self) -> Tensor:
        """Where the chains are, (chain, d)."""
        if self._moving is None or self._whole is None:
            return self._position
        whole = self._whole.expand(len(self._position), -1).clone()
        whole[:, self._moving] = self._position
        return whole

    @property
    def state(self) -> sgld.State:
        """What the sampler knows of the chains."""
        return sgld.State(self.position)

    def change_step(self, step_size: Tensor) -> None:
        """Go on with another step size, (chain,)."""
        self._step_size = step_size.double().tolist()

    def advance(self, steps: int) -> Walk:
        """Take more steps; see `Walking.advance`."""
        traces = self._position.new_empty((5, len(self._position), steps), dtype=torch.float64)
        with torch.no_grad(), self._target.evaluating():
            for block in torch.arange(steps).split(PAIRED):
                rows = [self._rows() for _ in block]
                for step, drawn in zip(block.tolist(), rows, strict=True):
                    for chain in range(len(self._position)):
                        traces[0, chain, step] = self._look(chain, self._batch(drawn, chain))
                        traces[1:4, chain, step] = self._move(chain)
                if self._pairing:
                    traces[0][:, block] = self._paired(traces[0][:, block], torch.stack(rows, 1))
        traces[2].sqrt_()
        step_size = torch.tensor(self._step_size, dtype=torch.float64, device=traces.device)
        traces[4] = sgld.bias(step_size[:, None], traces[1])
        return Walk(*traces, reports={})

    def acceptance(self, seed: int) -> Tensor:
        r"""Take a step of each chain, and give the probability with which a Metropolis test would have accepted it.

        With g and g' the slopes of U before and after a step with noise :math:`\xi`, it accepts with probability

        .. math:: \min\bigl(1, \exp(U - U' - \tfrac{\varepsilon}{8} \lVert g + g' \rVert^2
                  + \tfrac{\sqrt\varepsilon}{2} (g + g') \cdot \xi)\bigr)

        Both slopes share the memory of one, and the noise is drawn twice from the same seed.

        Args:
            seed: of the noise.

        Returns:
            (chain,), float64; on a fixed batch of at most 512 of the examples that a look at the anchor goes through.
        """
        looked_at = self._target.looked_at
        batch = tuple(part[:: -(-len(part) // ROWS)] for part in looked_at)
        with torch.no_grad(), self._target.evaluating():
            ratios = [self._log_ratio(chain, batch, seed + chain) for chain in range(len(self._position))]
        return torch.stack(ratios).clamp_max(0).exp()

    def _log_ratio(self, chain: int, batch: Batch, seed: int) -> Tensor:
        step_size, n_beta, gamma = self._step_size[chain], self._n_beta[chain], self._localization[chain]

        def leave(here: Tensor, slope: Tensor, away: Tensor, kick: Tensor) -> tuple[Tensor, ...]:
            held = torch.dot(away, away)
            here.add_(kick, alpha=step_size**0.5).add_(slope, alpha=-step_size / 2)
            return (held,)

        def arrive(here: Tensor, slope: Tensor, away: Tensor, kick: Tensor) -> tuple[Tensor, ...]:
            seen = torch.dot(away, away), torch.dot(slope, kick), torch.dot(slope, slope)
            slope.zero_()
            return seen

        first = self._look(chain, batch)
        (held,) = self._sweep(chain, partial(Streams((seed,), self._position).fill, 0), leave)
        self._slope /= n_beta  # the gradient after the step is added to it
        second = self._look(chain, batch)
        held_there, along, squared = self._sweep(
            chain, partial(Streams((seed,), self._position).fill, 0), arrive
        )
        risen = n_beta * (second.double() - first.double()) + gamma / 2 * (held_there - held)
        return step_size**0.5 / 2 * along - step_size / 8 * squared - risen

    @property
    def _pairing(self) -> bool:
        batched = self._chains.batch_size is not None and self._chains.anchors is None
        return batched and self._target.seen < self._target.n

    def _paired(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Take the chance of the batches out of losses; see `Target.paired`.

        The anchor's loss on an example is found once, and only for the middle step of every few: the others take what
        that one is above the anchor, unless the anchor's loss on all of their own examples is known.

        Args:
            losses: of neighbouring steps, (chain, step).
            rows: their examples, (chain, step, example).

        Returns:
            (chain, step).
        """
        middle = slice(losses.shape[1] // 2, losses.shape[1] // 2 + 1)
        fresh = rows[:, middle].unique()
        fresh = fresh[self._known[fresh].isnan()]
        for block in fresh.split(rows_at_once(self._target.data[0])) if len(fresh) else ():
            each = self._target.loss(self._target.module, tuple(part[block] for part in self._target.data))
            self._known[block] = each.view(len(block), -1).mean(1).double()
        own = self._known[rows].mean(2)
        above = losses - own
        return (
            torch.where(own.isnan() & losses.isfinite(), above[:, middle], above) + self._target.anchor_loss
        )

    def _look(self, chain: int, batch: Batch) -> Tensor:
        """Add the gradient of one chain's loss to the slope; give its mean loss, ()."""
        if self._moving is None or self._whole is None:
            return self._gradient.add(self._position[chain], batch, self._slope)
        weights = self._whole[min(chain, len(self._whole) - 1)]
        weights[self._moving] = self._position[chain]
        gradient = torch.zeros_like(weights)
        loss = self._gradient.add(weights, batch, gradient)
        self._slope += gradient[self._moving]
        return loss

    def _move(self, chain: int) -> Tensor:
        """Take the step of one chain, whose gradient is at hand, and leave zeros in the gradient's place.

        Returns:
            Squared norm of the slope, squared distance from the anchor, and the virial, (3,).
        """
        step_size = self._step_size[chain]

        def update(here: Tensor, slope: Tensor, away: Tensor, kick: Tensor) -> tuple[Tensor, ...]:
            seen = torch.dot(slope, slope), torch.dot(away, away), torch.dot(away, slope)
            here.add_(kick, alpha=step_size**0.5).add_(slope, alpha=-step_size / 2)
            slope.zero_()
            return seen

        sums = self._sweep(chain, partial(self._streams.fill, chain), update)
        sums[2] /= 2
        return sums

    def _sweep(self, chain: int, draw: Callable[[int, Tensor], object], visit: Visit) -> Tensor:
        """Go through a chain, and make the slope that of U, where until now it is that of the loss.

        Args:
            chain: which.
            draw: fills a piece of a segment with noise.
            visit: is handed weights, slope, the way from the anchor and noise of each piece, and gives sums over it.

        Returns:
            The sums over all pieces, float64.
        """
        n_beta, localization = self._n_beta[chain], self._localization[chain]

        def through(number: int, segment: Sequence[Piece]) -> Tensor:
            kicks, ways = self._slope.new_empty(2, len(self._slope[segment[0].place]))
            sums = list[Tensor]()
            for place, anchor in segment:
                here, slope = self._position[chain, place], self._slope[place]
                kick, away = kicks[: len(here)], ways[: len(here)]
                torch.sub(here, anchor[0] if len(anchor) == 1 else torch.cat(anchor), out=away)
                slope.mul_(n_beta).add_(away, alpha=localization)
                draw(number, kick)
                sums.append(torch.stack(visit(here, slope, away, kick)))
            return torch.stack(sums).double().sum(0)

        segments = self._segments_of(chain)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.stack([*pool.map(through, range(len(segments)), segments)]).sum(0)

    @property
    def _longest(self) -> int:
        return PIECE if self._position.device.type == "cpu" else LARGEST_PIECE

    def _segments_of(self, chain: int) -> list[list[Piece]]:
        return self._segments[min(chain, len(self._segments) - 1)]

    def _cut(self) -> list[list[list[Piece]]]:
        """Cut each anchor into segments of pieces; all chains have the same one where it is the module itself."""
        if self._anchors is None:
            rows = [[value.detach().flatten() for value in self._target.parameters.values()]]
        else:
            rows = [[anchor] for anchor in self._anchors.to(self._position)]
        pieces = [[*_pieces(row, min(self._longest, self._streams.segment))] for row in rows]
        each = max(1, self._streams.segment // self._longest)
        return [[row[start : start + each] for start in range(0, len(row), each)] for row in pieces]

    def _rows(self) -> Tensor:
        """Draw the numbers of each chain's examples, (chain, example); none where a batch is all of the data."""
        if self._chains.batch_size is None:
            return self._known.new_empty(len(self._position), 0)
        return self._streams.rows(self._target.n, self._chains.batch_size)

    def _batch(self, rows: Tensor, chain: int) -> Batch:
        whole = self._chains.batch_size is None
        return self._target.data if whole else tuple(part[rows[chain]] for part in self._target.data)


def _pieces(parts: Sequence[Tensor], longest: int) -> Iterator[Piece]:
    """Cut what lies in parts, one after the other, into pieces."""
    rest, total = [*reversed(parts)], sum(len(part) for part in parts)
    for start in range(0, total, longest):
        missing, taken = min(longest, total - start), list[Tensor]()
        while missing:
            part = rest.pop()
            if len(part) > missing:
                rest.append(part[missing:])
            taken.append(part[:missing])
            missing -= len(taken[-1])
        yield Piece(slice(start, start + sum(len(part) for part in taken)), tuple(taken))
