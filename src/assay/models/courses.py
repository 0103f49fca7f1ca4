r"""Courses: a recorded run's blocks in another order, some left out, repeated, or side by side.

A course is a sequence of steps, a step one or several layers that read the same residual stream:

.. math:: x \leftarrow x + c \sum_{l \in \mathrm{step}} (B_l(x) - x)

with :math:`c` 1, or 1 over the step's size where the layers of a step are averaged. The usual course is every layer
alone, in order. A block keeps the arguments of its own place (its window, its rotary table), wherever it stands.

What a course shares with the usual one before it first leaves it is taken from the recorded run; courses that next need
the same step take it in one batch. So leaving out each of L layers in turn costs about half of the blocks' L forwards.

Sources: Veit et al. 2016 (1605.06431); Lad et al. 2024 (2406.19384); Sun et al. 2024 (2407.09298).
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.blocks import BlockCall, PrefixCache, PrefixLayer
from assay.models.partial import Metric, Recording, default_rows, measured

Step = tuple[int, ...]
Course = tuple[Step, ...]


def usual(layers: int) -> Course:
    """The course a model takes: every layer alone, in order."""
    return tuple((layer,) for layer in range(layers))


def shared_start(course: Course, layers: int) -> int:
    """How many steps a course has in common with the usual one before it leaves it."""
    steps = zip(course, usual(layers), strict=False)
    return next((i for i, (own, step) in enumerate(steps) if own != step), min(len(course), layers))


def shared_end(course: Course, layers: int) -> int:
    """From which layer on a course goes the usual way to the end; L where its end is its own."""
    steps = zip(reversed(course), reversed(usual(layers)), strict=False)
    return layers - next((i for i, (own, step) in enumerate(steps) if own != step), min(len(course), layers))


def run_courses(
    recording: Recording,
    courses: Sequence[Course],
    metric: Metric,
    *,
    positions: Sequence[int] = (-1,),
    average: bool = False,
    max_rows: int | None = None,
    afresh: bool = False,
) -> Tensor:
    """Take a recorded run's inputs through other courses, and measure each.

    Args:
        recording: the run.
        courses: which steps, in which order; an empty course goes from the embedding to the readout.
        metric: from logits (course, row, position, vocabulary) to any tensor (course, row, ...); or a
            :class:`assay.models.partial.StreamMetric`.
        positions: the positions that the metric reads.
        average: layers of a step are averaged, not added.
        max_rows: most rows (courses x recorded rows) in one pass; from free memory by default.
        afresh: take nothing but the embedding from the recorded run, to test what is otherwise taken.

    Returns:
        The metric, (course, row, ...).

    Raises:
        BadInput: a layer out of range, or a family whose blocks cannot be run on their own.
    """
    found: list[Tensor] = []
    read = list(positions)
    with torch.no_grad():
        for streams in _passes(recording, courses, average=average, max_rows=max_rows, afresh=afresh):
            ends = torch.cat([stream[:, read] for stream in streams])
            found.append(measured(recording, ends, len(streams), metric))
    return torch.cat(found)


def course_streams(
    recording: Recording, courses: Sequence[Course], *, average: bool = False, max_rows: int | None = None
) -> Tensor:
    """The residual stream at the end of each course, (course, row, pos, d_model).

    Args and errors are those of :func:`run_courses`.
    """
    with torch.no_grad():
        passes = list(_passes(recording, courses, average=average, max_rows=max_rows))
    return torch.stack([stream for streams in passes for stream in streams])


def _passes(
    recording: Recording,
    courses: Sequence[Course],
    *,
    average: bool,
    max_rows: int | None,
    afresh: bool = False,
) -> Generator[list[Tensor]]:
    """As many courses at a time as a pass has room for."""
    require_blocks(recording)
    layers, rows = len(recording.resid) - 1, len(recording.ids)
    for course in courses:
        if not all(step and all(0 <= layer < layers for layer in step) for step in course):
            raise BadInput(f"course {course}: a step is one or several of the layers 0 to {layers - 1}")
    size = max(1, (max_rows if max_rows is not None else default_rows(recording)) // rows)
    calls = recording.blocks.calls(recording.ids[0], 0)
    for start in range(0, len(courses), size):
        yield _run(recording, courses[start : start + size], calls, average=average, afresh=afresh)


def require_blocks(recording: Recording) -> None:
    """Refuse a family whose blocks cannot be run on their own.

    Raises:
        BadInput: it is one.
    """
    if recording.fallback:
        raise BadInput(
            f"{recording.blocks.model.source}: {recording.fallback}, so that its layers cannot be run in another "
            "order; `assay doctor` says more"
        )


def no_prefix(recording: Recording) -> PrefixCache:
    """The cache of a block that is called on whole prompts."""
    return PrefixCache([PrefixLayer(None, None, 0) for _ in recording.blocks.model.parts.blocks])


def _run(
    recording: Recording,
    courses: Sequence[Course],
    calls: Sequence[BlockCall],
    *,
    average: bool,
    afresh: bool,
) -> list[Tensor]:
    """The streams at the ends of some courses, the lowest step that is waited for always next."""
    done = [0 if afresh else shared_start(course, len(calls)) for course in courses]
    streams = [recording.resid[start] for start in done]
    while waiting := [i for i, course in enumerate(courses) if done[i] < len(course)]:
        step = min(courses[i][done[i]] for i in waiting)
        chosen = [i for i in waiting if courses[i][done[i]] == step]
        resid = torch.cat([streams[i] for i in chosen])
        outputs = [calls[layer](resid, no_prefix(recording)) for layer in step]
        after = _joined(resid, outputs, average=average)
        for i, stream in zip(chosen, after.split(len(recording.ids)), strict=True):
            streams[i], done[i] = stream, done[i] + 1
    return streams


def _joined(resid: Tensor, outputs: Sequence[Tensor], *, average: bool) -> Tensor:
    """The stream after a step, from what each of its blocks made of the stream before."""
    if len(outputs) == 1:
        return outputs[0]
    written = torch.stack([output - resid for output in outputs])
    return resid + (written.mean(0) if average else written.sum(0))
