"""Reference material by name, so that every verb and command works on it: ``assay.load("zoo:induction")``."""

import string
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.zoo import copier, induction

PREFIX = "zoo:"
SEED = 0
"""Of the weights, so that a name stands for the same model at each call."""
LETTERS = string.ascii_lowercase + string.ascii_uppercase


def _copier() -> tuple[nn.Module, str]:
    made = copier.copier(generator=torch.Generator().manual_seed(SEED))
    return made, "^" + LETTERS[: made.config.vocab_size - 1]


def _induction() -> tuple[nn.Module, str]:
    made = induction.transformer(generator=torch.Generator().manual_seed(SEED))
    return made, LETTERS[: induction.VOCABULARY]


MATERIAL: dict[str, Callable[[], tuple[nn.Module, str]]] = {"copier": _copier, "induction": _induction}
"""Makes each model, and names its tokens, one letter a token."""


def reference(source: str) -> Model:
    """Make a model whose circuit is known.

    Args:
        source: ``zoo:copier``, whose weights are written down, or ``zoo:induction``, which is trained here in about
            ten seconds.

    Returns:
        The model, with a tokenizer of single letters with spaces between them.

    Raises:
        BadInput: another name.
    """
    name = source.removeprefix(PREFIX)
    if name not in MATERIAL:
        raise BadInput(f"{source!r}: the zoo has {', '.join(PREFIX + known for known in MATERIAL)}")
    module, letters = MATERIAL[name]()
    return wrap(module, _tokenizer(letters))


def _tokenizer(letters: str) -> PreTrainedTokenizerFast:
    unknown = "?"  # one past the vocabulary, so that it is refused
    words = models.WordLevel({letter: i for i, letter in enumerate(letters + unknown)}, unk_token=unknown)
    made = Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown)
