"""A data set of a measurement: inputs of one length, cut from texts, and the positions that are read in them."""

from collections.abc import Sequence

import numpy as np
import torch

from assay.activations.prompt_pairs import Prompts, prompts_of
from assay.errors import BadInput
from assay.models.model import Model, Tokens


def inputs_of(
    model: Model, texts: Prompts, length: int | None, max_inputs: int | None = None
) -> tuple[Tokens, ...]:
    """Inputs of one length, from texts of any.

    Args:
        model: gives the tokenizer.
        texts: texts or token ids.
        length: cut the texts into inputs of this many tokens, what is left over unused; ``None`` to leave them whole.
        max_inputs: the first so many; ``None`` for all.

    Returns:
        Token ids of each input.

    Raises:
        BadInput: no text, none that is long enough, fewer than one asked for, or inputs longer than the context.
    """
    if max_inputs is not None and max_inputs < 1:
        raise BadInput(f"max_inputs={max_inputs}: the data set is empty; give 1 or more")
    prompts = prompts_of(model, texts, to_cut=length is not None)
    if length is None:
        return prompts[:max_inputs]
    if length < 2:
        raise BadInput(f"length={length}: an input needs two tokens or more")
    if model.context_length is not None and length > model.context_length:
        raise BadInput(f"length={length}: the context of {model.source} has {model.context_length} tokens")
    inputs = tuple(
        prompt[start : start + length]
        for prompt in prompts
        for start in range(0, len(prompt) - length + 1, length)
    )
    if not inputs:
        raise BadInput(f"length={length}: the longest text has {max(map(len, prompts))} tokens")
    return inputs[:max_inputs]


def check_inputs(inputs: Sequence[Tokens]) -> None:
    """Refuse inputs that cannot be paired or have no loss.

    Args:
        inputs: token ids of each input.

    Raises:
        BadInput: no input, different lengths, or a single token.
    """
    lengths = sorted({len(row) for row in inputs})
    if not lengths:
        raise BadInput("the data set is empty: pass texts, or token ids")
    if len(lengths) > 1:
        raise BadInput(f"the inputs have {lengths} tokens; make them equal, or pass length= to cut them")
    if lengths[0] < 2:
        raise BadInput("the inputs have one token; a loss needs a next token")


def check_scan(*, seed: int, resamples: int, baseline_inputs: int, max_rows: int | None) -> None:
    """Refuse settings out of range that every scan of a data set has.

    Args:
        seed: 0 or more.
        resamples: of the bootstrap, 2 or more.
        baseline_inputs: 0 or more.
        max_rows: 1 or more, or ``None``.

    Raises:
        BadInput: one is out of range.
    """
    if seed < 0:
        raise BadInput(f"seed={seed}: give 0 or more")
    if baseline_inputs < 0 or resamples < 2:
        raise BadInput("baseline_inputs must be at least 0, resamples at least 2")
    if max_rows is not None and max_rows < 1:
        raise BadInput(f"max_rows={max_rows}: a pass needs a row")


def positions_read(length: int, count: int | None, *, first: int = 0) -> tuple[int, ...]:
    """Positions evenly spread over an input, the last with a next token among them.

    Args:
        length: of the input, in tokens.
        count: how many; ``None`` for all.
        first: the first that may be read; those before it are left as they are, and clean by construction.

    Returns:
        The positions, ascending.

    Raises:
        BadInput: no position with a next token, or a count that is not from 1 to the number of those.
    """
    followed, since = length - 1 - first, f", from position {first} on" if first else ""
    if followed < 1:
        raise BadInput(f"an input of {length} tokens has no position with a next token{since}")
    if count is None:
        return tuple(range(first, length))
    if not 1 <= count <= followed:
        raise BadInput(
            f"read={count}: an input of {length} tokens has {followed} positions with a next token{since}"
        )
    return tuple(int(p) for p in np.linspace(length - 2, first, count).round().astype(int)[::-1])


def partners_of(count: int, generator: torch.Generator) -> list[int]:
    """Draw the other input that each is resampled from.

    Args:
        count: inputs of the data set, 2 or more.
        generator: draws the order in which each takes the next one's values, the last the first one's.

    Returns:
        The partner of each input: never itself, and each input the partner of one.
    """
    order = torch.randperm(count, generator=generator).tolist()
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [following[number] for number in range(count)]
