r"""Chains of a large module, which hold nothing but what moves of a position each, and one gradient between them.

The steps are those of Langevin dynamics as `Walking` takes them, and without a mask the numbers are the same up to
rounding. But noise, distance and update go through the vector a piece at a time, so that a piece stays in the
processor's cache from its noise to its update, and the anchor is read from the module itself. Beside the module with
its w bytes of weights, a chain needs 2 w; whole vectors of gradient, noise, anchor, distance and update would need 5 w.
Where a mask holds some of the sampled weights, positions, noise and update are of those alone that move.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from assay.landscape.chance import Streams
from assay.landscape.losses import Batch
from assay.landscape.samplers import sgld
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target, rows_at_once
from assay.landscape.walks import Chains, Walk

PIECE, LARGEST_PIECE = 2**16, 2**24
"""Coordinates in a piece on the CPU, where four of them fit in a core's cache, and elsewhere, where starting costs."""

PAIRED = 8
"""Neighbouring steps that share a look at the anchor, where losses are paired with its own."""

ROWS = 512
"""Most examples on which a step is tested."""


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
        for chain, row in enumerate(self._position):
            for piece, anchor in self._pieces(chain):
                row[piece] = anchor

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
        step_size, n_beta = self._step_size[chain], self._n_beta[chain]
        chance, ratio = torch.Generator(self._slope.device), self._slope.new_zeros((), dtype=torch.float64)

        def again(part: Tensor) -> None:
            part.normal_(generator=chance)

        ratio += n_beta * self._look(chain, batch)
        chance.manual_seed(seed)
        for here, slope, away, kick in self._sweep(chain, again):
            ratio += self._localization[chain] / 2 * torch.dot(away, away)
            here.add_(kick, alpha=step_size**0.5).add_(slope, alpha=-step_size / 2)
        self._slope /= n_beta  # the gradient after the step is added to it
        ratio -= n_beta * self._look(chain, batch)
        chance.manual_seed(seed)
        for _, slope, away, kick in self._sweep(chain, again):
            ratio -= self._localization[chain] / 2 * torch.dot(away, away)
            ratio += step_size**0.5 / 2 * torch.dot(slope, kick) - step_size / 8 * torch.dot(slope, slope)
            slope.zero_()
        return ratio

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
        sums = self._slope.new_zeros(3, dtype=torch.float64)
        for here, slope, away, kick in self._sweep(chain, lambda part: self._streams.fill(chain, part)):
            sums[0] += torch.dot(slope, slope)
            sums[1] += torch.dot(away, away)
            sums[2] += torch.dot(away, slope)
            here.add_(kick, alpha=step_size**0.5).add_(slope, alpha=-step_size / 2)
            slope.zero_()
        sums[2] /= 2
        return sums

    def _sweep(
        self, chain: int, draw: Callable[[Tensor], object]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Go through a chain: its weights, their slope of U (until now of the loss), the way from the anchor, noise."""
        kicks = torch.empty_like(self._slope[: self._longest])
        for piece, anchor in self._pieces(chain):
            here, slope, kick = self._position[chain, piece], self._slope[piece], kicks[: len(anchor)]
            away = here - anchor
            slope.mul_(self._n_beta[chain]).add_(away, alpha=self._localization[chain])
            draw(kick)
            yield here, slope, away, kick

    @property
    def _longest(self) -> int:
        return PIECE if self._position.device.type == "cpu" else LARGEST_PIECE

    def _pieces(self, chain: int) -> Iterator[tuple[slice, Tensor]]:
        """Go through the vector: where a piece lies, and the anchor there."""
        if self._anchors is not None:
            anchor = self._anchors[min(chain, len(self._anchors) - 1)].to(self._position)
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

    def _rows(self) -> Tensor:
        """Draw the numbers of each chain's examples, (chain, example); none where a batch is all of the data."""
        if self._chains.batch_size is None:
            return self._known.new_empty(len(self._position), 0)
        return self._streams.rows(self._target.n, self._chains.batch_size)

    def _batch(self, rows: Tensor, chain: int) -> Batch:
        whole = self._chains.batch_size is None
        return self._target.data if whole else tuple(part[rows[chain]] for part in self._target.data)
