"""Blocks in another order are what full forwards with replaced blocks give."""

from dataclasses import replace

import pytest
import torch

from assay.errors import BadInput
from assay.models.courses import course_streams, run_courses, shared_end, shared_start, usual
from assay.models.model import wrap
from assay.models.partial import Recording, record
from families import FAMILIES, VOCABULARY
from reference.courses_slow import slow_course

LENGTH = 9
COURSES = [
    ((1,), (2,)), ((0,), (2,)), ((0,), (1,)),  # each left out
    ((1,), (0,), (2,)), ((2,), (1,), (0,)),  # in another order
    ((0,), (1,), (1,), (2,)), ((0, 1), (2,)), ((0,), (1, 2, 1)),  # repeated, side by side
    (), ((0,), (1,), (2,)),
]  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def recording(kind: str) -> Recording:
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    return record(wrap(FAMILIES[kind].build()), ids)


@pytest.mark.parametrize(("average", "max_rows"), [(False, None), (True, 4)])
def test_a_course_is_that_of_replaced_blocks(
    kind: str, recording: Recording, average: bool, max_rows: int | None
) -> None:
    courses = [tuple(step for step in course if max(step) < 3) for course in COURSES]
    layers = len(recording.resid) - 1
    courses = [(*course, *usual(layers)[3:]) for course in courses]
    found = run_courses(
        recording, courses, lambda logits: logits, positions=range(LENGTH), average=average, max_rows=max_rows
    )
    for course, logits in zip(courses, found, strict=True):
        expected = slow_course(
            recording.blocks.model.module, FAMILIES[kind].blocks, recording.ids, course, average=average
        )
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_usual_course_and_the_streams_are_the_recorded_ones(recording: Recording) -> None:
    layers = len(recording.resid) - 1
    streams = course_streams(recording, [usual(layers), usual(layers)[:1], usual(layers)[1:]])
    assert torch.equal(streams[0], recording.resid[-1]) and torch.equal(streams[1], recording.resid[1])
    assert not torch.allclose(streams[2], recording.resid[-1], atol=1e-3)


def test_where_a_course_leaves_the_usual_one_and_comes_back() -> None:
    assert [shared_start(course, 3) for course in COURSES] == [0, 1, 2, 0, 0, 2, 0, 1, 0, 3]
    assert [shared_end(course, 3) for course in COURSES] == [1, 2, 3, 2, 3, 1, 2, 3, 3, 0]


def test_only_what_differs_is_computed(recording: Recording) -> None:
    """Leaving out each of L layers takes L (L - 1) / 2 blocks, in as many calls as there are layers but the first."""
    layers, calls = len(recording.resid) - 1, []
    hooks = [  # called where a block really runs
        block.attention_out.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))  # type: ignore[union-attr]
        for block in recording.blocks.model.parts.blocks
    ]
    try:
        without = [tuple(step for step in usual(layers) if step != (left,)) for left in range(layers)]
        course_streams(recording, without)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == [2 * others for others in range(1, layers)]


def test_bad_courses_are_refused(recording: Recording) -> None:
    for course in (((0,), (9,)), ((),), ((-1,),)):
        with pytest.raises(BadInput, match="one or several of the layers 0 to"):
            run_courses(recording, [course], lambda logits: logits)
    with pytest.raises(BadInput, match="for once, so that its layers cannot be run in another order"):
        run_courses(replace(recording, fallback="for once"), [()], lambda logits: logits)
