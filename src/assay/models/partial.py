r"""Exact partial forwards: many edited variants of one recorded run, computing only what an edit can change.

A variant that first edits layer l at position t leaves everything before layer l, and every position before
t, as the recorded run has it. So it starts from the recorded residual stream at layer l, holds only the
positions from t on, and reads the recorded keys and values for the positions before. Variants of one position
share a batch through the model's own blocks: it grows as deeper variants join. Only the positions a metric
reads are unembedded.

For state patching of all layers L and positions t >= b of a prompt of T tokens with S recorded rows, the work
is about S (T-b)^2/2 x L^2/2 block-tokens, where full forwards take S (T-b) L x T L.

The numbers are those of full forwards up to the order of summation. A family whose blocks cannot be run this
way is recognised by a self-test on the recorded run, and served by full forwards instead.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.blocks import BlockCall, Blocks, PrefixCache, PrefixLayer, new_cache
from assay.models.edits import Edit
from assay.models.gauges import free_memory
from assay.models.inputs import Batch, batch
from assay.models.intervention import Inputs, Wiring, forward
from assay.models.model import Model
from assay.models.variants import Planned, SiteEdit, Variant, edits_at, groups, planned

__all__ = ["Recording", "SiteEdit", "StreamMetric", "Variant", "default_rows", "partial_forward", "record"]

MEMORY_BUDGET = 2**29
"""Bytes the rows of one pass may take by default; less where half of the free memory is less."""
PROCESSOR_BUDGET = 2**27
"""The same on a processor, where larger passes are slower: the system hands out their memory afresh each time."""
READOUT_ROWS = 256
UNCALLABLE = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, StopIteration)
"""What a block that leans on its model raises when it is called without it."""
TOLERANCE = 2e-4
"""How far the self-test's residual stream may be from the recorded one, relative to a position's largest entry."""


@dataclass(frozen=True, eq=False)
class StreamMetric:
    """A metric that is given residual vectors rather than logits, to unembed them in its own way.

    Attributes:
        of: from what leaves the last block, (variant, row, position, d_model), to any tensor (variant, row, ...).
    """

    of: Callable[[Tensor], Tensor]


Metric: TypeAlias = "Callable[[Tensor], Tensor] | StreamMetric"


@dataclass(frozen=True, eq=False)
class Recording:
    """A run that variants start from.

    Attributes:
        blocks: the decoder's blocks.
        ids: token ids, (row, pos).
        embed: what the embedding gave, after any edit, (row, pos, d_model).
        resid: residual stream entering each block, and leaving the last: L + 1 tensors (row, pos, d_model).
        cache: each layer's keys and values, (row, head, pos, ...).
        sites: further sites that were asked for.
        fallback: why variants are run as full forwards; empty where partial forwards are exact.
    """

    blocks: Blocks
    ids: Tensor
    embed: Tensor
    resid: tuple[Tensor, ...]
    cache: tuple[tuple[Tensor, Tensor], ...]
    sites: Mapping[str, Tensor]
    fallback: str = ""

    def rows(self, start: int, stop: int) -> "Recording":
        """The recording of some of the rows."""
        return replace(
            self,
            ids=self.ids[start:stop],
            embed=self.embed[start:stop],
            resid=tuple(r[start:stop] for r in self.resid),
            cache=tuple((k[start:stop], v[start:stop]) for k, v in self.cache),
            sites={name: value[start:stop] for name, value in self.sites.items()},
        )

    def readout(self, resid: Tensor) -> Tensor:
        """Logits (row, vocabulary) of residual vectors (row, d_model) leaving the last block."""
        return self.blocks.readout(resid)


def record(
    model: Model, inputs: Inputs, *, sites: Sequence[str] = (), edits: Mapping[str, Edit] | None = None
) -> Recording:
    """Run the model once and keep what variants need.

    Args:
        model: a decoder.
        inputs: prompts of one length.
        sites: further sites to keep, for the values of later edits.
        edits: edits of this run itself, at ``embed`` (a corrupted run).

    Returns:
        The recording.

    Raises:
        BadInput: prompts of different lengths, or an edit elsewhere than at the embedding.
    """
    if set(edits or {}) - {"embed"}:
        raise BadInput(f"a recorded run is edited at 'embed' only, not at {sorted(edits or {})}")
    cache = new_cache()
    names = [f"resid_pre.{layer}" for layer in range(model.n_layers)] + [f"resid_post.{model.n_layers - 1}"]
    wanted = list(dict.fromkeys(["embed", *names, *sites]))
    given = _unpadded(model, inputs)
    held: tuple[tuple[Tensor, Tensor], ...] = ()
    try:
        captured, _ = forward(model, given, edits or {}, wanted, past_key_values=cache, use_cache=True)
        held = tuple(
            (layer.keys, layer.values) for layer in getattr(cache, "layers", ()) if layer.is_initialized
        )
    except BadInput:
        raise
    except UNCALLABLE:  # a family with a cache of its own kind: run it without, and its variants in full
        captured, _ = forward(model, given, edits or {}, wanted)
    recording = Recording(
        Blocks(model), given.input_ids, captured["embed"], tuple(captured[name] for name in names), held,
        {site: captured[site] for site in sites},
    )  # fmt: skip
    return replace(recording, fallback=_self_test(recording))


def partial_forward(
    recording: Recording,
    variants: Sequence[Variant],
    metric: Metric,
    *,
    positions: Sequence[int] = (-1,),
    max_rows: int | None = None,
) -> Tensor:
    """Run variants of a recorded run, and measure each.

    Args:
        recording: the run every variant starts from.
        variants: what each variant replaces.
        metric: from logits (variant, row, position, vocabulary) to any tensor (variant, row, ...); or a
            :class:`StreamMetric`.
        positions: the positions that the metric reads.
        max_rows: most rows (variants x recorded rows) in one pass; from free memory by default.

    Returns:
        The metric, (variant, row, ...), in the order of the variants.

    Raises:
        BadInput: no variants, a site outside the blocks, a position or head out of range, a value that does
            not fit, or ``max_rows`` below one variant.
        MemoryError: a pass did not fit; the message says what to set.
    """
    rows, length = recording.ids.shape
    if not positions or any(not -length <= p < length for p in positions):
        raise BadInput(f"positions {tuple(positions)} are read; the prompt has {length}")
    read = [p % length for p in positions]
    plan = planned(variants, len(recording.resid) - 1, length)
    results: list[Tensor | None] = [None] * len(plan)
    if max_rows is not None and max_rows < rows:
        raise BadInput(f"max_rows={max_rows} does not hold one variant of the {rows} recorded rows")

    def at_once(start: int) -> int:
        return (max_rows if max_rows is not None else default_rows(recording, length - start)) // rows

    run = _run_full if recording.fallback else _run_group
    with torch.no_grad():
        for group in groups(plan, at_once):
            with _memory_explained(len(group) * rows, rows):
                values = run(recording, group, metric, read)
            for variant, value in zip(group, values, strict=True):
                results[variant.index] = value
    return torch.stack([value for value in results if value is not None])


def default_rows(recording: Recording, positions: int | None = None) -> int:
    """Rows of one pass that fit the budget, by what a row holds at its widest: neurons, keys and values.

    Args:
        recording: the run.
        positions: how many positions a row of the pass holds, from a prompt's end; ``None`` for all.

    Returns:
        Rows, at least those of one variant.
    """
    resid, down = recording.resid[0], recording.blocks.model.parts.blocks[0].mlp_down
    weight = getattr(down, "weight", None)
    width = max(weight.shape) if isinstance(weight, Tensor) else 4 * resid.shape[-1]
    stored = sum(part.shape[1] * part.shape[-1] for part in recording.cache[0]) if recording.cache else 0
    held, length = positions or resid.shape[1], resid.shape[1]
    row = (held * (3 * width + 6 * resid.shape[-1]) + length * 3 * stored) * resid.element_size()
    budget = PROCESSOR_BUDGET if resid.device.type == "cpu" else MEMORY_BUDGET
    return max(len(resid), min(budget, free_memory(resid.device) // 2) // row)


def _run_group(recording: Recording, group: list[Planned], metric: Metric, read: list[int]) -> Tensor:
    start, layers = group[0].position, len(recording.resid) - 1
    calls = recording.blocks.calls(recording.ids[0, start:], start)
    resid = _run_blocks(recording, group, calls, _prefix(recording, start))
    ends = [
        resid[:, p - start] if p >= start else _repeated(recording.resid[layers][:, p], len(group))
        for p in read
    ]
    return measured(recording, torch.stack(ends, 1), len(group), metric)


def _run_blocks(
    recording: Recording, group: list[Planned], calls: Sequence[BlockCall], cache: PrefixCache
) -> Tensor:
    """Take a group through the blocks, each variant joining at its layer: (variant x row, pos, d_model)."""
    start, layers = group[0].position, len(recording.resid) - 1
    active: list[Planned] = []
    resid: Tensor | None = None
    for layer in range(group[0].layer, layers + 1):
        joining = [variant for variant in group if variant.layer == layer]
        if joining:
            fresh = _repeated(recording.resid[layer][:, start:], len(joining))
            resid = fresh if resid is None else torch.cat([resid, fresh])
            active += joining
        assert resid is not None  # the first layer of the range is the first variant's
        edits = edits_at(layer, active, len(recording.ids), start)
        if "resid_pre" in edits:
            resid = edits.pop("resid_pre")(resid)
        if layer < layers:
            named = {f"{name}.{layer}": edit for name, edit in edits.items()}
            wiring = Wiring.of(recording.blocks.model, named, (), (len(resid), resid.shape[1]))
            with wiring.connected():
                resid = calls[layer](resid, cache)
            wiring.check_reached()
    assert resid is not None
    return resid


def _run_full(recording: Recording, group: list[Planned], metric: Metric, read: list[int]) -> Tensor:
    """The same variants by full forwards, for families whose blocks cannot continue a prefix."""
    rows, layers = len(recording.ids), len(recording.resid) - 1
    edits: dict[str, Edit] = {"embed": _repeated(recording.embed, len(group))}
    for layer in range(layers + 1):
        for name, edit in edits_at(layer, group, rows, 0).items():
            edits[f"{name}.{layer}" if layer < layers else f"resid_post.{layers - 1}"] = edit
    last = f"resid_post.{layers - 1}"
    repeated = Batch(_repeated(recording.ids, len(group)))
    captured, _ = forward(recording.blocks.model, repeated, edits, [last])
    return measured(recording, captured[last][:, read], len(group), metric)


def measured(recording: Recording, ends: Tensor, variants: int, metric: Metric) -> Tensor:
    """The metric of the residual vectors that are read, unembedded a few rows at a time unless it does so itself.

    Args:
        recording: the run that the variants are of.
        ends: what leaves the last block, (variant x row, position, d_model).
        variants: how many.
        metric: from logits (variant, row, position, vocabulary) to any tensor (variant, row, ...); or a
            :class:`StreamMetric`.

    Returns:
        The metric, (variant, row, ...).
    """
    rows, positions = len(recording.ids), ends.shape[1]
    ends = ends.view(variants, rows, positions, -1)
    if isinstance(metric, StreamMetric):
        return metric.of(ends)
    step = max(1, READOUT_ROWS // (rows * positions))
    pieces = []
    for begin in range(0, variants, step):
        part = ends[begin : begin + step]
        logits = recording.readout(part.reshape(-1, part.shape[-1]))
        pieces.append(metric(logits.view(*part.shape[:3], -1)))
    return torch.cat(pieces)


def _self_test(recording: Recording) -> str:
    """Continue the recorded run from its middle: an empty string where that reproduces it, else why not.

    The last row is continued twice side by side, as two variants of it would be, with what the blocks are called
    with in the first row: a family that hands its blocks more of the tokens than the residual stream is found
    out where the rows' tokens differ.
    """
    length, layers = recording.ids.shape[1], len(recording.resid) - 1
    if len(recording.cache) != layers:
        return f"{len(recording.cache)} of {layers} blocks keep keys and values"
    start, one = length // 2, recording.rows(len(recording.ids) - 1, len(recording.ids))
    try:
        with torch.no_grad():
            calls, cache = one.blocks.calls(recording.ids[0, start:], start), _prefix(one, start)
            resid = _repeated(one.resid[0][:, start:], 2)
            for call in calls:
                resid = call(resid, cache)
    except UNCALLABLE as error:
        return f"its blocks cannot be called on their own ({type(error).__name__}: {error})"
    expected = one.resid[layers][:, start:]
    # position by position: the first is often so large that errors of the others would drown in it
    error = float(((resid - expected).abs().amax(-1) / expected.abs().amax(-1)).max())
    tolerance = TOLERANCE if expected.dtype in (torch.float32, torch.float64) else 5e-2
    if error <= tolerance:
        return ""
    return f"continuing a prefix changes its residual stream by {error:.1e} of a position's largest entry"


def _prefix(recording: Recording, stop: int) -> PrefixCache:
    """The recorded keys and values before a position."""
    return PrefixCache([PrefixLayer(k[..., :stop, :], v[..., :stop, :], stop) for k, v in recording.cache])


def _unpadded(model: Model, inputs: Inputs) -> Batch:
    made = batch(model, inputs)  # type: ignore[arg-type]
    if made.attention_mask is not None:
        raise BadInput(
            "the prompts have different numbers of tokens; partial forwards pair positions, make them equal"
        )
    return made


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor.expand(times, *tensor.shape).reshape(times * len(tensor), *tensor.shape[1:])


@contextmanager
def _memory_explained(rows: int, least: int) -> Generator[None]:
    """Turn the allocator's error, on a graphics card or on a processor, into one that says what to set.

    Args:
        rows: rows of the pass.
        least: rows of one variant, below which no pass can go.

    Raises:
        MemoryError: in place of the allocator's own.
        RuntimeError: any other, as it was.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = f"set max_rows to {max(least, rows // 2)} or less"
        if rows == least:
            advice = f"it is one variant of {least} recorded rows: record fewer (samples or prompts), or shorter ones"
        raise MemoryError(f"a pass of {rows} rows did not fit in memory; {advice}") from error
