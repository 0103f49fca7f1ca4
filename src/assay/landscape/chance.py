"""Random numbers for chains: every chain has its own streams, whoever it walks with.

Numbers are drawn a block of steps at a time, since a call of a generator costs as much as a few hundred numbers. How
long a block is depends on the size of a step alone, so that a chain sees the same numbers in every company. For
chains of equal seeds they are drawn once.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Tensor

BLOCK = 2**13
"""Numbers that a chain draws at a time, at least one step's."""
SEGMENT = 2**22
"""Coordinates whose noise is one stream on the CPU, so that segments can be drawn side by side."""


def chain_seeds(seed: int, chains: Iterable[int]) -> tuple[int, ...]:
    """Give the seeds of chains by their numbers: the same in whatever group, and at whatever setting, one walks.

    Args:
        seed: of the run.
        chains: their numbers.
    """
    return tuple(int(SeedSequence([seed, number]).generate_state(1)[0]) for number in chains)


class Streams:
    """Noise, batches and coins of a row of chains.

    Args:
        seeds: one for each chain; equal seeds see equal numbers.
        like: where and in which precision noise is wanted; its last axis is d.

    Attributes:
        segment: coordinates whose noise is one stream; `fill` takes one segment at a time.
    """

    def __init__(self, seeds: Sequence[int], like: Tensor) -> None:
        first = {seed: chain for chain, seed in reversed(list(enumerate(seeds)))}
        self._drawing = sorted(first.values())
        place = {seeds[chain]: place for place, chain in enumerate(self._drawing)}
        which = torch.tensor([place[seed] for seed in seeds], device=like.device)
        self._which = which if len(place) < len(seeds) else None
        self.segment = SEGMENT if like.device.type == "cpu" else like.shape[-1]
        words = np.stack([SeedSequence(seed).generate_state(3, np.uint64) for seed in seeds])
        first_segment, self._batches, self._coins = (
            [_generator(int(word), like) for word in column] for column in words.T
        )
        others = range(1, -(-like.shape[-1] // self.segment))
        self._noise = [
            [generator, *(_generator(_word(seed, segment), like) for segment in others)]
            for seed, generator in zip(seeds, first_segment, strict=True)
        ]
        self._steps = max(1, BLOCK // like.shape[-1])
        self._block = like.new_empty(len(place), 0, like.shape[-1])
        self._used = 0
        self._rows = torch.empty(len(place), 0, 0, dtype=torch.int64, device=like.device)
        self._rows_used = 0

    def noise(self) -> Tensor:
        """Draw standard normal noise for one step, (chain, d); good until the next call."""
        if self._used == self._block.shape[1]:
            if not self._used:  # who draws by `fill` never needs the room
                self._block = self._block.new_empty(len(self._block), self._steps, self._block.shape[2])
            for block, chain in zip(self._block, self._drawing, strict=True):
                for part, generator in zip(block.split(self.segment, -1), self._noise[chain], strict=True):
                    part.normal_(generator=generator)
            self._used = 0
        self._used += 1
        return self._for_all(self._block[:, self._used - 1])

    def _for_all(self, drawn: Tensor) -> Tensor:
        """Hand what was drawn to every chain of a seed, (chain, ...)."""
        return drawn if self._which is None else drawn.index_select(0, self._which)

    def fill(self, chain: int, segment: int, part: Tensor) -> None:
        """Draw the next part of a segment of one chain's noise in place, for a step that is gone through in parts.

        Parts of a multiple of 16 numbers hold what `noise` gives for a step of at least a block.
        """
        part.normal_(generator=self._noise[chain][segment])

    def rows(self, n: int, batch_size: int) -> Tensor:
        """Draw a batch of numbers below n for each chain, with replacement, (chain, batch)."""
        if self._rows_used == self._rows.shape[1]:
            shape = (max(1, BLOCK // batch_size), batch_size)
            self._rows = torch.stack(
                [
                    torch.randint(n, shape, generator=self._batches[chain], device=self._block.device)
                    for chain in self._drawing
                ]
            )
            self._rows_used = 0
        self._rows_used += 1
        return self._for_all(self._rows[:, self._rows_used - 1])

    def coins(self, width: int, *, normal: bool = False) -> Tensor:
        """Draw uniform numbers in [0, 1), or standard normal ones, for each chain, (chain, width)."""
        drawn = self._block.new_empty(len(self._drawing), width)
        for row, chain in zip(drawn, self._drawing, strict=True):
            generator = self._coins[chain]
            row.normal_(generator=generator) if normal else row.uniform_(generator=generator)
        return self._for_all(drawn)


def _word(*key: int) -> int:
    return int(SeedSequence(key).generate_state(1, np.uint64)[0])


def _generator(word: int, like: Tensor) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(word & (2**63 - 1))
