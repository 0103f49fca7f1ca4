r"""Rewiring: a recorded run in which blocks no longer read all that came before them.

The residual stream is a sum, :math:`x_r = e + \sum_{s<r} c_s`, of the embedding and of what each source wrote. A reader
is an attention, an MLP, or the readout at the end; a source is the embedding, an attention or an MLP. With
:math:`K_{rs}` 1 where reader :math:`r` reads source :math:`s` and 0 where it reads something else, :math:`v_s`, in its
place,

.. math:: x_r = \sum_{s<r} K_{rs} c_s + (1 - K_{rs}) v_s

What a source writes is taken from the edited run itself, so that changes compound, or from the recorded one. It is the
difference it makes to the stream, in every family, whatever norms or factors stand behind it. Where attention and MLP
read the same stream side by side, a block is one reader and one source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.blocks import BlockCall
from assay.models.courses import no_prefix, require_blocks
from assay.models.intervention import Wiring
from assay.models.model import Model
from assay.models.partial import MEMORY_BUDGET, Metric, Recording, default_rows, measured


def has_sublayers(model: Model) -> bool:
    """Whether attention and MLP read the stream one after the other in every block."""
    return len(model.sites("resid_mid")) == model.n_layers


def middle_sites(model: Model) -> list[str]:
    """The sites a recording needs for sublayers to be told apart; none where blocks are readers as a whole."""
    return model.sites("resid_mid") if has_sublayers(model) else []


def written(recording: Recording) -> list[Tensor]:
    """What each source of a recorded run wrote: the embedding, then attention and MLP of each block, or the block.

    Args:
        recording: a run recorded with :func:`middle_sites`.

    Returns:
        Tensors (row, pos, d_model); they add up to the last residual stream.
    """
    stream = [recording.resid[0]]
    for layer, after in enumerate(recording.resid[1:]):
        stream += [recording.sites[site] for site in (f"resid_mid.{layer}",) if site in recording.sites]
        stream.append(after)
    return [stream[0], *(after - before for before, after in zip(stream, stream[1:], strict=False))]


@dataclass(frozen=True, eq=False)
class Rewiring:
    """Which sources each reader reads.

    Attributes:
        reads: (reader, source), true where it does; readers are attention and MLP of each block (or the blocks), then
            the readout; sources are the embedding, then the readers before the readout. A source does not count for
            the readers up to the one it is.
        original: sources write what they wrote in the recorded run; only the readout reads the edited run's.
    """

    reads: Tensor
    original: bool = False

    def drops(self, reader: int) -> bool:
        """Whether a reader misses a source before it."""
        return not bool(self.reads[reader, : reader + 1].all())


def run_rewired(
    recording: Recording,
    rewirings: Sequence[Rewiring],
    instead: Sequence[Tensor],
    metric: Metric,
    *,
    positions: Sequence[int] = (-1,),
    keep_first: bool = True,
    max_rows: int | None = None,
) -> Tensor:
    """Run a recorded run's inputs with other wirings, and measure each.

    Args:
        recording: a run recorded with :func:`middle_sites`.
        rewirings: who reads what.
        instead: what is read in place of each source, broadcastable to (row, pos, d_model).
        metric: from logits (rewiring, row, position, vocabulary) to any tensor (rewiring, row, ...); or a
            :class:`assay.models.partial.StreamMetric`.
        positions: the positions that the metric reads.
        keep_first: position 0 is left as it is.
        max_rows: most rows in one pass; from free memory by default.

    Returns:
        The metric, (rewiring, row, ...).

    Raises:
        BadInput: masks of another size than the model, or a family whose blocks cannot be run on their own.
    """
    require_blocks(recording)
    clean = written(recording)
    for rewiring in rewirings:
        if tuple(rewiring.reads.shape) != (len(clean), len(clean)):
            raise BadInput(
                f"a wiring of shape {tuple(rewiring.reads.shape)}; there are {len(clean)} readers and sources"
            )
    rows = len(recording.ids)
    stored = sum(part.numel() * part.element_size() for part in clean)  # an edited run's own sources are kept
    size = min(
        max(1, (max_rows if max_rows is not None else default_rows(recording)) // rows),
        max(1, MEMORY_BUDGET // stored),
    )
    calls, found = recording.blocks.calls(recording.ids[0], 0), []
    with torch.no_grad():
        for start in range(0, len(rewirings), size):
            some = rewirings[start : start + size]
            streams = [_Stream(rewiring, clean, instead) for rewiring in some]
            ends = _run(recording, streams, calls, keep_first=keep_first)
            found.append(measured(recording, ends[:, list(positions)], len(some), metric))
    return torch.cat(found)


class _Stream:
    """One rewiring under way: what its sources have written, and what its next reader reads."""

    def __init__(self, rewiring: Rewiring, clean: Sequence[Tensor], instead: Sequence[Tensor]) -> None:
        self.rewiring, self._clean, self._instead = rewiring, clean, instead
        self._own: list[Tensor] = list(clean)
        self._edited = [False] * len(clean)
        self._sum, self._read = torch.zeros_like(clean[0]), list[bool]()

    def is_edited(self, reader: int) -> bool:
        """Whether a reader may read anything else than in the recorded run."""
        if self.rewiring.drops(reader):
            return True
        return any(self._edited[: reader + 1]) and not self.rewiring.original

    def at(self, reader: int) -> Tensor:
        """What a reader reads, (row, pos, d_model); readers are asked for in ascending order."""
        own = self._clean if self.rewiring.original else self._own
        reads: list[bool] = self.rewiring.reads[reader, : reader + 1].tolist()
        for source, now in enumerate(reads):
            before = self._read[source] if source < len(self._read) else None
            if before is None:
                self._sum = self._sum + (own[source] if now else self._instead[source])
            elif before != now:
                change = own[source] - self._instead[source]
                self._sum = self._sum + (change if now else -change)
        self._read = reads
        return self._sum

    def wrote(self, source: int, value: Tensor) -> None:
        """Keep what a source wrote in the edited run."""
        self._own[source], self._edited[source] = value, True

    def end(self) -> Tensor:
        """What the readout reads, whose sources are always the edited run's."""
        reads: list[bool] = self.rewiring.reads[-1].tolist()
        parts = zip(reads, self._own, self._instead, strict=True)
        return sum(
            (own if read else instead for read, own, instead in parts), torch.zeros_like(self._clean[0])
        )


def _run(
    recording: Recording, streams: Sequence[_Stream], calls: Sequence[BlockCall], *, keep_first: bool
) -> Tensor:
    """The streams that the readout reads, (rewiring x row, pos, d_model)."""
    halves = bool(recording.sites)
    for layer, call in enumerate(calls):
        readers = (2 * layer, 2 * layer + 1) if halves else (layer,)
        active = [stream for stream in streams if any(stream.is_edited(reader) for reader in readers)]
        if active:
            _run_block(recording, active, call, layer, keep_first=keep_first)
    return _placed([stream.end() for stream in streams], recording.resid[-1], keep_first=keep_first)


def _run_block(
    recording: Recording, active: Sequence[_Stream], call: BlockCall, layer: int, *, keep_first: bool
) -> None:
    """One block of every stream: what its readers read, and what they write."""
    rows, site = len(recording.ids), f"resid_mid.{layer}"
    halves = site in recording.sites
    reader = 2 * layer if halves else layer
    before = _placed([stream.at(reader) for stream in active], recording.resid[layer], keep_first=keep_first)
    read = before  # by the last reader so far

    def between(middle: Tensor) -> Tensor:
        """Keep what attention wrote, and give the MLP what it reads."""
        nonlocal read
        for stream, part in zip(active, (middle - before).split(rows), strict=True):
            stream.wrote(reader + 1, part)
        clean = recording.sites[site]
        read = _placed([stream.at(reader + 1) for stream in active], clean, keep_first=keep_first)
        return read

    wiring = Wiring.of(
        recording.blocks.model, {site: between} if halves else {}, (), (len(before), before.shape[1])
    )
    with wiring.connected():
        after = call(before.clone(), no_prefix(recording))  # the edit in the middle is made in place
    wiring.check_reached()
    for stream, part in zip(active, (after - read).split(rows), strict=True):
        stream.wrote(reader + (2 if halves else 1), part)


def _placed(parts: list[Tensor], clean: Tensor, *, keep_first: bool) -> Tensor:
    """Streams side by side, (stream x row, pos, d_model), position 0 as it was where it is kept."""
    whole = torch.stack(parts)
    if keep_first:
        whole[:, :, 0] = clean[:, 0]
    return whole.flatten(0, 1)
