"""Wirings of a layer horizon: each reader reads the last k blocks or sublayers, or as many drawn at random."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from assay.errors import BadInput

Reach = Literal["block", "sublayer"]
Forget = Literal["both", "attention", "mlp"]
Where = Literal["everywhere", "blocks", "output"]


@dataclass(frozen=True)
class Window:
    """Who forgets what.

    Attributes:
        layers: number of blocks L.
        halves: attention and MLP are sources and readers of their own.
        reach: what distance is counted in.
        forget: whose outputs are forgotten.
        where: which readers forget: blocks and readout, blocks only, or the readout only.
        layer: the only block that forgets; ``None`` for what ``where`` says.
        keep_embedding: the embedding is never forgotten; otherwise it stands one step before the first block.
    """

    layers: int
    halves: bool
    reach: Reach
    forget: Forget
    where: Where
    layer: int | None
    keep_embedding: bool

    def __post_init__(self) -> None:
        """Refuse what this model, or this combination, does not have.

        Raises:
            BadInput: sublayers in blocks that have none, or a layer out of range or beside ``where``.
        """
        if not self.halves and (self.reach == "sublayer" or self.forget != "both"):
            raise BadInput(
                f"reach={self.reach!r}, forget={self.forget!r}: this model runs attention and MLP side by side, so "
                "that a block is one step; use reach='block', forget='both'"
            )
        if self.layer is not None and (not 0 <= self.layer < self.layers or self.where != "everywhere"):
            raise BadInput(
                f"layer={self.layer}, where={self.where!r}: give a layer from 0 to {self.layers - 1}, and leave where "
                "as it is"
            )

    @property
    def longest(self) -> int:
        """The reach at which nothing is forgotten."""
        steps = 2 * self.layers if self.reach == "sublayer" else self.layers
        return steps if self.keep_embedding else steps + 1

    @property
    def _sources(self) -> int:
        return 1 + self.layers * (2 if self.halves else 1)

    def reads(self, k: int) -> Tensor:
        """The wiring of reach k, (reader, source): every reader reads the last k steps before its own."""
        reads = torch.ones(self._sources, self._sources, dtype=torch.bool)
        for reader in range(self._sources):
            if self._forgets(reader):
                for source in range(reader + 1):
                    far = self._step(reader) - self._step(source - 1) > k
                    reads[reader, source] = not (far and self._forgettable(source))
        return reads

    def random(self, k: int, rng: np.random.Generator) -> Tensor:
        """A wiring in which each reader forgets as many sources as with reach k, of any distance."""
        reads, drawn = self.reads(k), torch.ones(self._sources, self._sources, dtype=torch.bool)
        for reader in range(self._sources):
            candidates = [source for source in range(reader + 1) if self._forgettable(source)]
            count = int((~reads[reader, : reader + 1]).sum())
            drawn[reader, rng.permutation(candidates)[:count].astype(int)] = False
        return drawn

    def _forgets(self, reader: int) -> bool:
        if reader == self._sources - 1:
            return self.layer is None and self.where != "blocks"
        if self.layer is not None:
            return self._block(reader) == self.layer
        return self.where != "output"

    def _forgettable(self, source: int) -> bool:
        if source == 0:
            return not self.keep_embedding
        return self.forget == "both" or (source % 2 == 1) == (self.forget == "attention")

    def _block(self, place: int) -> int:
        return place // 2 if self.halves else place

    def _step(self, place: int) -> int:
        """Where a reader or source stands, in steps: the embedding at -1, the readout at the end."""
        return place if place < 0 or self.reach == "sublayer" else self._block(place)
