"""Texts that come with the house: facts a small model knows, names of subjects, a passage whose name recurs.

All were written for this project, for SmolLM2-135M-Instruct and its tokenizer;
`tests/activations/test_material.py` holds them to what is said here. Each loader reads its file once.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from assay.errors import BadInput


@dataclass(frozen=True)
class Fact:
    """A true sentence that the model completes.

    Attributes:
        subject: whom or what the sentence is about; stands in the prompt exactly once.
        relation: what is said of the subject, for grouping, for example ``"capital"``.
        prompt: the sentence up to where its answer begins.
        answer: what follows the prompt, with its leading space; the model ranks each of its tokens first.
    """

    subject: str
    relation: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A short text in which an unusual name recurs, so that its second half can only be copied.

    Attributes:
        text: the whole passage.
        name: the name that recurs; several tokens, the same ones at each occurrence.
        answer: the last occurrence of the name without its first token.
        replacements: other names of as many tokens; put in place of an earlier occurrence, they take the
            answer away from the model.
    """

    text: str
    name: str
    answer: str
    replacements: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The text up to and including the first token of the last occurrence: the answer follows."""
        return self.text[: self.text.rindex(self.name) + len(self.name) - len(self.answer)]


def facts_of(text: str) -> tuple[Fact, ...]:
    """Read facts written as JSON.

    Args:
        text: a list of objects with "subject", "prompt", "answer", and "relation" where there is one.

    Raises:
        BadInput: something else.
    """
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"the facts are not JSON ({error}): a file of facts is given as @FILE") from error
    wanted = {"subject", "prompt", "answer"}
    if not isinstance(rows, list) or not all(_is_fact(row, wanted) for row in rows):
        raise BadInput(
            'the facts are not a list of objects like {"subject": "France", "prompt": "The capital of France is", '
            '"answer": " Paris"}, each of whose values is text'
        )
    return tuple(Fact(**{"relation": "", **row}) for row in rows)


def _is_fact(row: object, wanted: set[str]) -> bool:
    return (
        isinstance(row, dict)
        and wanted <= set(row) <= {*wanted, "relation"}
        and all(isinstance(value, str) for value in row.values())
    )


@cache
def facts() -> tuple[Fact, ...]:
    """The facts, grouped by relation."""
    return tuple(Fact(**row) for row in _read("facts.json"))


@cache
def subjects() -> tuple[str, ...]:
    """Names of people, places, works and substances; the spread of their embeddings scales the noise."""
    return tuple(_read("subjects.json"))


@cache
def passage() -> Passage:
    """The passage that the survey shows when it is given no text."""
    fields = _read("passage.json")
    return Passage(**fields | {"replacements": tuple(fields["replacements"])})


def _read(name: str) -> Any:
    return json.loads(files(__name__).joinpath(name).read_text(encoding="utf-8"))
