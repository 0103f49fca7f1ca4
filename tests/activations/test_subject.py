"""Subjects and answers: from text to token positions and ids, and what is refused."""

from typing import Any

import pytest

from assay.activations.subject import answer_tokens, subject_positions, with_replacement
from assay.errors import BadInput
from assay.models.model import Model, wrap
from families import FAMILIES

PROMPT = "Mrs Dursley had seen Mr Dursley near the old"


def shown(model: Model, prompt: str, positions: tuple[int, ...]) -> str:
    return "".join(model.token_texts([model.tokens(prompt)[p] for p in positions]))


def test_every_occurrence_is_found(tiny_llama: Model) -> None:
    positions = subject_positions(tiny_llama, PROMPT, "Dursley")
    assert shown(tiny_llama, PROMPT, positions) == " Dursley Dursley"
    assert list(positions) == sorted(set(positions))


@pytest.mark.parametrize(("occurrence", "follows"), [(0, " had"), (1, " near"), (-1, " near"), (-2, " had")])
def test_one_occurrence_may_be_asked_for(tiny_llama: Model, occurrence: int, follows: str) -> None:
    positions = subject_positions(tiny_llama, PROMPT, "Dursley", occurrence)
    assert shown(tiny_llama, PROMPT, positions) == " Dursley"
    rest = tiny_llama.token_texts(tiny_llama.tokens(PROMPT)[positions[-1] + 1 :])
    assert "".join(rest).startswith(follows)


def test_tokens_that_overlap_the_subject_belong_to_it(tiny_llama: Model) -> None:
    prompt = "The Eiffel Tower"
    whole = subject_positions(tiny_llama, prompt, "Eiffel")
    assert subject_positions(tiny_llama, prompt, "iffe") == whole
    assert shown(tiny_llama, prompt, whole) == " Eiffel"


def test_several_words_are_one_subject(tiny_llama: Model) -> None:
    positions = subject_positions(tiny_llama, "The Eiffel Tower is in Paris", "Eiffel Tower")
    assert shown(tiny_llama, "The Eiffel Tower is in Paris", positions) == " Eiffel Tower"
    assert list(positions) == list(range(positions[0], positions[-1] + 1))


def test_characters_of_several_bytes(tiny_llama: Model) -> None:
    prompt = "The café Zoë is in Paris"
    positions = subject_positions(tiny_llama, prompt, "Zoë")
    ids = [tiny_llama.tokens(prompt)[p] for p in positions]
    assert tiny_llama.tokenizer.decode(ids).strip() == "Zoë"


@pytest.mark.parametrize(
    ("subject", "expected"),
    [((2, 1), (1, 2)), ([0, 0], (0,)), ((-1,), (4,)), (slice(1, 3), (1, 2)), (slice(-2, None), (3, 4))],
)
def test_positions_may_be_given(tiny_llama: Model, subject: Any, expected: tuple[int, ...]) -> None:
    assert subject_positions(tiny_llama, [5, 6, 7, 8, 9], subject) == expected


@pytest.mark.parametrize(
    ("prompt", "subject", "occurrence", "message"),
    [
        (PROMPT, "Potter", None, "the subject 'Potter' is not in the prompt 'Mrs Dursley"),
        (PROMPT, "dursley", None, "letter by letter"),
        (PROMPT, "", None, "the subject '' is not in the prompt"),
        (PROMPT, "Dursley", 2, "occurrence=2: the subject 'Dursley' occurs 2 times, numbered from 0"),
        (PROMPT, "Dursley", -3, "occurrence=-3"),
        ([5, 6, 7], "Dursley", None, "the subject is a text and the prompt token ids"),
        ([5, 6, 7], (3,), None, r"subject positions \(3,\): the prompt has 3 tokens, positions 0 to 2"),
        ([5, 6, 7], (-4,), None, "positions 0 to 2"),
        ([5, 6, 7], (), None, "positions 0 to 2"),
        ([5, 6, 7], slice(3, 9), None, "positions 0 to 2"),
        ("", "Dursley", None, "the prompt is empty"),
    ],
)
def test_a_subject_that_is_not_there_is_refused(
    tiny_llama: Model, prompt: Any, subject: Any, occurrence: int | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        subject_positions(tiny_llama, prompt, subject, occurrence)


def test_a_text_needs_a_tokenizer() -> None:
    model = wrap(FAMILIES["llama"].build())
    with pytest.raises(BadInput, match="has no tokenizer"):
        subject_positions(model, "a text", "text")
    with pytest.raises(BadInput, match="the answer is a text and the model has no tokenizer: give token ids"):
        answer_tokens(model, [5, 6], " answer")


def test_a_replacement_has_as_many_tokens_and_stands_in_the_subjects_place(tiny_llama: Model) -> None:
    prompt = "The Eiffel Tower is near the Tower"
    for occurrence in (None, 0, 1, -1):
        replaced = with_replacement(tiny_llama, prompt, "Tower", "Paris", occurrence)
        old = tiny_llama.tokens(prompt)
        changed = tuple(i for i, (a, b) in enumerate(zip(old, replaced, strict=True)) if a != b)
        assert changed == subject_positions(tiny_llama, prompt, "Tower", occurrence)
    assert tiny_llama.tokenizer.decode(replaced) == "The Eiffel Tower is near the Paris"


@pytest.mark.parametrize(
    ("prompt", "replacement", "message"),
    [
        (
            "The Tower is",
            "Parisian city",
            "makes a prompt of .* tokens, 'Tower' one of 3; choose a replacement",
        ),
        ("The Tower is", "", "replace_with='' is no other subject"),
        ("The Tower is", "Tower", "replace_with='Tower' is no other subject"),
    ],
)
def test_a_replacement_that_does_not_fit_is_refused(
    tiny_llama: Model, prompt: str, replacement: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        with_replacement(tiny_llama, prompt, "Tower", replacement)


def test_an_answer_is_what_follows_the_prompt(tiny_llama: Model) -> None:
    answer = answer_tokens(tiny_llama, PROMPT, " gate in the rain")
    assert (*tiny_llama.tokens(PROMPT), *answer) == tiny_llama.tokens(PROMPT + " gate in the rain")
    assert len(answer) > 1
    assert answer_tokens(tiny_llama, PROMPT, [5, 6]) == (5, 6)
    assert answer_tokens(tiny_llama, [5, 6, 7], " gate") == tuple(tiny_llama.tokens(" gate"))


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        (PROMPT, "", "the answer '' is empty"),
        (PROMPT, "  ", "the answer '  ' is empty"),
        (PROMPT, [], "the prompt is empty"),
        (PROMPT, [100_000], "token ids run from 100000"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(
    tiny_llama: Model, prompt: str, answer: Any, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        answer_tokens(tiny_llama, prompt, answer)
