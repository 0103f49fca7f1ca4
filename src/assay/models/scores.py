"""Attention scores: what softmax is given, read from the module's own call of its attention kernel."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.edits import Edit
from assay.models.inputs import batch
from assay.models.intervention import Inputs, intervene
from assay.models.model import Model
from assay.models.pattern import SCORES_NDIM, SOFTMAX, AttentionPatterns, attention_scores


def scores(model: Model, inputs: Inputs, edits: Mapping[str, Edit] | None = None) -> dict[int, Tensor]:
    """Read the attention scores of one forward pass.

    Args:
        model: a decoder.
        inputs: prompts of one length.
        edits: edits of the pass.

    Returns:
        Scores by layer, (row, head, query, key), positions encoded, scaled and masked: softmax over keys gives the
        pattern.

    Raises:
        BadInput: a block whose attention goes through no softmax over keys.
    """
    given = batch(model, inputs)  # type: ignore[arg-type]
    attentions = {i: block.attention for i, block in enumerate(model.parts.blocks) if block.attention}
    watched: dict[nn.Module, list[str]] = {module: [f"{i}"] for i, module in attentions.items()}
    captured: dict[str, Tensor] = {}
    rows, positions = given.input_ids.shape
    with _AttentionScores(watched, {}, (), captured, set(), shape=(rows, positions)):
        intervene(model, given, edits or {}, capture=())
    missing = sorted(set(range(model.n_layers)) - set(map(int, captured)))
    if missing:
        raise BadInput(f"{model.source}: blocks {missing} have no attention scores that could be read")
    return {layer: captured[f"{layer}"] for layer in range(model.n_layers)}


class _AttentionScores(AttentionPatterns):
    """Keeps what softmax is given, where its parent keeps what it gives."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Read the scores of a kernel; the call itself is passed on as it is."""
        kwargs = kwargs or {}
        names = self._inside
        if names and func is F.scaled_dot_product_attention:
            self._captured[names[0]] = attention_scores(*args, **kwargs)
        elif names and func in SOFTMAX and args[0].ndim in SCORES_NDIM:
            whole = args[0].reshape(self._rows, -1, *args[0].shape[-2:])
            sink = whole.shape[-1] - whole.shape[-2] == 1  # one key more, that no token has
            if sink:
                raise BadInput(
                    "attention has a sink beside its keys; the softmax of scores alone is not its pattern"
                )
            self._captured[names[0]] = whole
        return func(*args, **kwargs)
