"""Passes that begin at a block, where nothing before it changes: what enters it is computed once for a row of tokens.

While weights move in some blocks only, what enters the first of them depends on the tokens alone. It is kept for each
row of tokens as long as there is room, in the module's own dtype. A row is always computed by itself, so that its
numbers do not depend on the rows beside it, nor on what is kept: passes from an entry give the numbers of whole passes
up to the order of summation in the products before it.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from assay.models.blocks import Blocks
from assay.models.model import Model
from assay.models.partial import TOLERANCE, UNCALLABLE

TESTED = (2, 8)
"""Rows and tokens on which a family is tried."""


def first_read(model: Model, parameters: Iterable[nn.Parameter]) -> int:
    """Tell before which block none of some parameters is read; 0 where one may be read before the first.

    Args:
        model: a decoder.
        parameters: of it; at least one.
    """
    read = _readers(model)
    return min(read.get(parameter, 0) for parameter in parameters)


def _readers(model: Model) -> dict[nn.Parameter, int]:
    """Which block is the first to read a parameter; the last one for what is read after it."""
    parts = model.parts
    after = [part for part in (parts.final_norm, parts.unembed) if part is not None]
    read = {parameter: len(parts.blocks) - 1 for part in after for parameter in part.parameters()}
    read |= dict.fromkeys(parts.embed.parameters(), 0)
    for layer, block in reversed([*enumerate(parts.blocks)]):  # blocks may share: the first to read counts
        read |= dict.fromkeys(block.module.parameters(), layer)
    return read


class Entries:
    """What enters a block of a decoder, for each row of tokens that came by.

    Args:
        model: a decoder.
        layer: of the block; the weights that are read before it must stay as they are while passes begin there.
        room: bytes that may be kept.
    """

    def __init__(self, model: Model, layer: int, room: int) -> None:
        self._model, self._blocks, self._layer, self._room = model, Blocks(model), layer, room
        read = _readers(model)
        self._before = [value for value in model.module.parameters() if read.get(value, 0) < layer]
        self._kept: dict[bytes, Tensor] = {}
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._given: Tensor | None = None
        self._begun = False

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(entry.nbytes for entry in self._kept.values())

    def most(self, ids: Tensor) -> int:
        """Tell how many bytes are kept at most when some rows of tokens, (row, pos), came by."""
        each = self._model.d_model * next(self._model.module.parameters()).itemsize
        return min(self._room, ids.numel() * each)

    def serves(self, ids: Tensor) -> bool:
        """Tell whether a family's passes can begin at a block, by trying the first tokens of some rows.

        Args:
            ids: whole prompts, (row, pos).
        """
        rows, tokens = TESTED
        few = ids[:rows, :tokens]
        try:
            with torch.no_grad():
                whole = self._model.module(few).logits
                with self.begun():
                    found = self._model.module(few).logits
        except UNCALLABLE:
            return False
        self._kept.clear()
        allowed = max(TOLERANCE, 4 * torch.finfo(whole.dtype).eps)
        return float((found - whole).abs().max()) <= allowed * float(whole.abs().max())

    @contextmanager
    def begun(self) -> Generator[None]:
        """Begin the module's passes at the block for a while, where they are passes of ids (row, pos) and no more.

        Yields:
            Nothing; entered again from within, it changes nothing.
        """
        if self._begun:
            yield
            return
        stamp = tuple((value.data_ptr(), value._version) for value in self._before)  # pyright: ignore[reportPrivateUsage]
        if stamp != self._stamp:
            self._kept.clear()
            self._stamp = stamp
        hook = self._model.module.register_forward_pre_hook(self._look, with_kwargs=True)
        self._begun = True
        try:
            with self._blocks.entered(self._layer, lambda: self._given):
                yield
        finally:
            hook.remove()
            self._begun, self._given = False, None

    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find what enters the block in the pass that begins."""
        self._given = None
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].ndim == 2:
            self._given = torch.stack([self._entry(row) for row in args[0]])

    def _entry(self, row: Tensor) -> Tensor:
        """Give what enters the block for a row of ids (pos,): (pos, d_model)."""
        key = row.cpu().numpy().tobytes()
        found = self._kept.get(key)
        if found is None:
            found = self._blocks.entering(row[None], self._layer)[0]
            if (len(self._kept) + 1) * found.nbytes <= self._room:
                self._kept[key] = found
        return found
