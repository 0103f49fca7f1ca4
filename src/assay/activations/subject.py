"""Finding a subject in a prompt, putting another in its place, and reading an answer: text to token positions."""

from collections.abc import Sequence

from assay.errors import BadInput
from assay.models.model import Model, Tokens


def subject_positions(
    model: Model,
    prompt: str | Sequence[int],
    subject: str | slice | Sequence[int],
    occurrence: int | None = None,
) -> tuple[int, ...]:
    """Token positions of a subject.

    Args:
        model: gives the tokenizer.
        prompt: the prompt as text, or as token ids.
        subject: the text, every token that overlaps it; or token positions, or a slice of them.
        occurrence: which one of several, from 0, negative from the end; all of them by default.

    Returns:
        Positions, ascending.

    Raises:
        BadInput: the subject is not in the prompt, or a position is out of range.
    """
    length = len(model.tokens(prompt))
    if not isinstance(subject, str):
        chosen = (
            tuple(range(length))[subject]
            if isinstance(subject, slice)
            else tuple(sorted({p % length for p in subject}))
        )
        if not chosen or (not isinstance(subject, slice) and not all(-length <= p < length for p in subject)):
            raise BadInput(
                f"subject positions {subject}: the prompt has {length} tokens, positions 0 to {length - 1}"
            )
        return chosen
    if not isinstance(prompt, str):
        raise BadInput(
            "the subject is a text and the prompt token ids: give the prompt as text, or the subject as positions"
        )
    starts = _occurrences(prompt, subject)
    if not starts:
        raise BadInput(
            f"the subject {subject!r} is not in the prompt {prompt!r}; it must stand there letter by letter"
        )
    if occurrence is not None and not -len(starts) <= occurrence < len(starts):
        raise BadInput(
            f"occurrence={occurrence}: the subject {subject!r} occurs {len(starts)} times, numbered from 0"
        )
    wanted = starts if occurrence is None else [starts[occurrence]]
    spans = _token_spans(model, prompt)
    ends = [(start, start + len(subject)) for start in wanted]
    return tuple(i for i, (a, b) in enumerate(spans) if any(a < end and b > start for start, end in ends))


def with_replacement(
    model: Model, prompt: str, subject: str, replacement: str, occurrence: int | None = None
) -> Tokens:
    """The prompt's tokens with another subject of the same number of tokens.

    Args:
        model: gives the tokenizer.
        prompt: the prompt.
        subject: what is replaced.
        replacement: what replaces it.
        occurrence: which one; all by default.

    Returns:
        Token ids, as many as the prompt's, differing only where the subject stands.

    Raises:
        BadInput: the replacement is empty or the subject itself, has another number of tokens, or changes
            tokens beside the subject.
    """
    if not replacement.strip() or replacement == subject:
        raise BadInput(f"replace_with={replacement!r} is no other subject than {subject!r}")
    positions = subject_positions(model, prompt, subject, occurrence)
    if occurrence is None:
        text = prompt.replace(subject, replacement)
    else:
        start = _occurrences(prompt, subject)[occurrence]
        text = prompt[:start] + replacement + prompt[start + len(subject) :]
    old, new = model.tokens(prompt), model.tokens(text)
    if len(old) != len(new):
        raise BadInput(
            f"replace_with={replacement!r} makes a prompt of {len(new)} tokens, {subject!r} one of {len(old)}; "
            "choose a replacement with as many tokens as the subject"
        )
    changed = {i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    if not changed <= set(positions):
        raise BadInput(
            f"replace_with={replacement!r} changes tokens beside the subject too: {sorted(changed - set(positions))}"
        )
    return new


def answer_tokens(model: Model, prompt: str | Sequence[int], answer: str | Sequence[int]) -> Tokens:
    """Token ids of an answer as it continues a prompt.

    Args:
        model: gives the tokenizer.
        prompt: the prompt.
        answer: the text, with its leading space where it has one; or token ids.

    Returns:
        The ids.

    Raises:
        BadInput: an empty answer, or one the tokenizer cannot make.
    """
    if not isinstance(answer, str):
        return model.tokens(answer)
    if not answer.strip():
        raise BadInput(f"the answer {answer!r} is empty")
    before = model.tokens(prompt)
    if isinstance(prompt, str):
        whole = model.tokens(prompt + answer)
        rest, unknown = whole[len(before) :], getattr(model.tokenizer, "unk_token_id", None)
        if whole[: len(before)] == before and rest and unknown not in rest:
            return rest
    if model.tokenizer is None:
        raise BadInput("the answer is a text and the model has no tokenizer: give token ids")
    ids = tuple(int(i) for i in model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    if not ids or model.tokenizer.unk_token_id in ids or model.tokenizer.decode(list(ids)) != answer:
        raise BadInput(
            f"the tokenizer cannot make the answer {answer!r} after this prompt: it reads it as "
            f"{model.token_texts(ids)}. Give the answer with its leading space, and end the prompt without one"
        )
    return ids


def _occurrences(text: str, part: str) -> list[int]:
    starts, at = [], text.find(part) if part else -1
    while at >= 0:
        starts.append(at)
        at = text.find(part, at + len(part))
    return starts


def _token_spans(model: Model, prompt: str) -> list[tuple[int, int]]:
    """Where each token begins and ends in the text; special tokens are empty spans."""
    if model.tokenizer is None or not model.tokenizer.is_fast:
        raise BadInput(
            "finding a subject by its text needs a fast tokenizer; give the subject as token positions"
        )
    encoded = model.tokenizer(prompt, return_offsets_mapping=True)
    return [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
