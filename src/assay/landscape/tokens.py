"""Texts and token files as data of a language model: rows of token ids of one length."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from assay.errors import BadInput
from assay.models.model import Model

CONTEXT = 256
"""Tokens in a row unless said otherwise; fewer for a model whose context is shorter."""


def token_rows(model: Model, path: str | Path, *, context: int | None = None) -> Tensor:
    """Read a file as rows of token ids, one after the other and without overlap; the rest of a row is left out.

    Args:
        model: whose tokenizer reads a text, and whose vocabulary bounds the ids.
        path: a ``.safetensors`` file with one integer tensor, (token,) or (row, token); any other file is a text
            in UTF-8.
        context: tokens in a row; 256 when not given, or as many as the model's context has. Rows of a token
            file stay as they are when not given.

    Returns:
        Ids (row, context), on the model's device.

    Raises:
        BadInput: the file cannot be read or holds less than a row, the model has no tokenizer for a text, ids
            are outside the vocabulary, or the context is longer than the model's.
    """
    path = Path(path).expanduser()
    longest = model.context_length
    if context is not None and (context < 2 or (longest is not None and context > longest)):
        raise BadInput(f"context={context}: expected 2 to {longest or 'any number of'} tokens.")
    ids = _stored(path) if path.suffix == ".safetensors" else _written(model, path)
    if ids.ndim == 2 and context is None:
        rows = ids
        if longest is not None and rows.shape[1] > longest:
            raise BadInput(
                f"{str(path)!r} has rows of {rows.shape[1]} tokens, the model's context has {longest}."
            )
    else:
        context = context or min(CONTEXT, longest or CONTEXT)
        flat = ids.flatten()
        if len(flat) < context:
            raise BadInput(
                f"{str(path)!r} holds {len(flat)} tokens, less than one row of {context}: take a longer text, or "
                "a shorter context."
            )
        rows = flat[: len(flat) // context * context].view(-1, context)
    require_known(model, rows, f" in {str(path)!r}")
    return rows.to(model.device)


def require_known(model: Model, rows: Tensor, where: str = "") -> None:
    """Refuse token ids outside a model's vocabulary.

    Args:
        model: a language model; of another kind nothing is known.
        rows: ids (row, token).
        where: that they come from, for the message.

    Raises:
        BadInput: with the range of the ids.
    """
    if model.anatomy is not None and not 0 <= int(rows.min()) <= int(rows.max()) < model.anatomy.vocabulary:
        raise BadInput(
            f"token ids{where} run from {int(rows.min())} to {int(rows.max())}, the vocabulary from 0 to "
            f"{model.anatomy.vocabulary - 1}: were they made with another tokenizer?"
        )


def _written(model: Model, path: Path) -> Tensor:
    if model.tokenizer is None:
        raise BadInput(
            f"{model.source} has no tokenizer, so the text {str(path)!r} cannot be read: pass token ids."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the file {str(path)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"the text in {str(path)!r} is not UTF-8: byte {error.start} cannot be decoded."
        ) from error
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if (
        backend is None
    ):  # a tokenizer in Python warns of texts beyond the context, which are cut into rows here
        return torch.tensor(model.tokenizer(text, verbose=False)["input_ids"])
    return torch.tensor(backend.encode(text).ids)


def _stored(path: Path) -> Tensor:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"the token file {str(path)!r} cannot be read: {error}.") from error
    if len(tensors) != 1:
        raise BadInput(f"{str(path)!r} holds {sorted(tensors)}: expected one tensor of token ids.")
    (ids,) = tensors.values()
    if ids.dtype.is_floating_point or ids.dtype == torch.bool or ids.ndim not in (1, 2) or not len(ids):
        raise BadInput(
            f"{str(path)!r} holds {ids.dtype} of shape {tuple(ids.shape)}: expected whole numbers, (token,) or "
            "(row, token)."
        )
    return ids.long()
