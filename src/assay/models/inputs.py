"""What a decoder is given: token ids, and for prompts of unequal length the mask and positions that make them agree.

A padded prompt gives the numbers it gives alone only if every family is told where its tokens are. Families
that take ``position_ids`` are given them; the others (ALiBi, OPT) derive positions from the attention mask.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from assay.errors import BadInput

if TYPE_CHECKING:
    from assay.models.model import Model

Prompt = str | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts side by side.

    Attributes:
        input_ids: token ids, (batch, pos).
        attention_mask: 1 where a token stands and 0 where padding stands, (batch, pos); ``None`` without
            padding.
        position_ids: each token's place in its own prompt, (batch, pos); counted from the mask by default.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None

    def arguments(self, model: "Model") -> dict[str, Tensor]:
        """The keyword arguments of the module's forward: nothing but the ids where there is no padding."""
        given: dict[str, Tensor] = {"input_ids": self.input_ids}
        if self.attention_mask is not None:
            given["attention_mask"] = self.attention_mask
        positions = self.position_ids
        if positions is None and self.attention_mask is not None:
            positions = _counted(self.attention_mask)
        if positions is not None and "position_ids" in inspect.signature(model.module.forward).parameters:
            given["position_ids"] = positions
        return given

    def rows(self, start: int, stop: int) -> "Batch":
        """The batch of some of the rows."""
        parts = (self.input_ids, self.attention_mask, self.position_ids)
        return Batch(*(None if part is None else part[start:stop] for part in parts))  # type: ignore[arg-type]


def batch(
    model: "Model",
    inputs: "Batch | Prompt | Sequence[Prompt] | Mapping[str, Tensor]",
    *,
    padding_side: Literal["left", "right"] = "right",
) -> Batch:
    """Make a batch of one or several prompts.

    Args:
        model: gives the tokenizer, the context length and the device.
        inputs: a text, token ids (one prompt, or a (batch, pos) tensor), or a list of prompts of any lengths.
        padding_side: where shorter prompts are padded.

    Returns:
        The batch, on the model's device.

    Raises:
        BadInput: a mapping, an empty prompt, a token outside the vocabulary, or a prompt longer than the context.
    """
    if isinstance(inputs, Batch):
        return inputs
    prompts = [model.tokens(prompt) for prompt in _prompts(inputs)]
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if padding_side == "right" else slice(longest - len(prompt), longest)
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    if bool(mask.all()):
        return Batch(ids)
    return Batch(ids, mask, _counted(mask))


def _counted(mask: Tensor) -> Tensor:
    """Each token's place in its own prompt; 0 in the padding before it."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def few_logits(model: "Model") -> dict[str, int]:
    """Arguments of a pass whose logits nobody reads: most families then unembed the last position only."""
    takes = (
        model.anatomy is not None and "logits_to_keep" in inspect.signature(model.module.forward).parameters
    )
    return {"logits_to_keep": 1} if takes else {}


def _prompts(inputs: "Prompt | Sequence[Prompt] | Mapping[str, Tensor]") -> list[Prompt]:
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, Mapping):
        raise BadInput(
            "inputs came as a mapping; pass its input_ids, or assay.models.inputs.Batch for a padded batch"
        )
    if isinstance(inputs, Tensor):
        return [inputs] if inputs.ndim == 1 else list(inputs)
    if len(inputs) == 0:
        raise BadInput("no prompt was given: the list is empty")
    if all(isinstance(item, int) for item in inputs):
        return [inputs]  # type: ignore[list-item]
    return list(inputs)  # type: ignore[arg-type]
