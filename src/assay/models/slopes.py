"""Slopes of a number made of the last logits, by activations at sites: one forward and one backward pass."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.models.edits import Edit
from assay.models.intervention import Inputs, forward
from assay.models.model import Model


@dataclass(frozen=True, eq=False)
class Slopes:
    """What one differentiated pass leaves.

    Attributes:
        value: the number of each row, (row,).
        logits: at the last position, (row, vocabulary).
        activations: by site, (row, pos, ...).
        gradients: of each row's number by its activations; alike. Zero where the number does not depend on them.
    """

    value: Tensor
    logits: Tensor
    activations: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


def slopes(
    model: Model,
    inputs: Inputs,
    sites: Sequence[str],
    number: Callable[[Tensor], Tensor],
    edits: Mapping[str, Edit] | None = None,
) -> Slopes:
    """Differentiate a number made of the logits at the last position.

    Args:
        model: a decoder.
        inputs: prompts of one length.
        sites: by which activations.
        number: from logits (row, vocabulary) to one number a row.
        edits: edits of the pass itself; what is edited is seen, and differentiated by, after its edit.

    Returns:
        The numbers, and their slopes.

    Raises:
        BadInput: an unknown site, or one this architecture does not have.
    """
    with frozen(model.module):
        seen, output = forward(model, inputs, edits or {}, sites, grad=True)
        with torch.enable_grad():
            logits = output.logits[:, -1]
            value = number(logits)
            total = value.sum()
        found = torch.autograd.grad(
            total, [seen[site] for site in sites], allow_unused=True, materialize_grads=True
        )
    held = {site: value.detach() for site, value in seen.items()}
    return Slopes(value.detach(), logits.detach(), held, dict(zip(sites, found, strict=True)))


def last_logits(
    model: Model, inputs: Inputs, sites: Sequence[str], edits: Mapping[str, Edit] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at the last position, and activations, of one pass without slopes.

    Args:
        model: a decoder.
        inputs: prompts of one length.
        sites: which activations.
        edits: edits of the pass.

    Returns:
        Logits (row, vocabulary), and the activations by site.

    Raises:
        BadInput: an unknown site, or one this architecture does not have.
    """
    seen, output = forward(model, inputs, edits or {}, sites)
    return output.logits[:, -1], seen


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Keep the weights out of the graph: no gradient of theirs is computed, nothing is kept for one.

    Args:
        module: whose weights.

    Yields:
        Nothing; weights that were trainable are so again afterwards.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
