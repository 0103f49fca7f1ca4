"""Losses: what is sampled. Any function of module and batch that gives one value for each example will do.

A loss that depends on the module through its outputs alone is an `OutputLoss`; for these a plain stack of linear
layers is differentiated by hand, which is faster. An `AnchorLoss` compares outputs with those at the anchor, which
is a minimum of it by construction: it measures how degenerate a behaviour is, not how well it was trained.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from assay.errors import BadInput
from assay.models.identity import identity

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]
"""loss(module, batch) -> one value per example, (example,), or per token, (example, token)."""


@dataclass(frozen=True)
class OutputLoss:
    """A loss of the module's outputs: batch[0] is the input, batch[1] the target.

    Attributes:
        of: outputs (example, ...) and targets (example, ...) -> (example,) or (example, token).
    """

    of: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Give the loss of each example."""
        return self.of(outputs_of(module, batch[0]), batch[1])


@dataclass(frozen=True)
class AnchorLoss:
    """A distance of the module's outputs from its outputs at the anchor; batch[0] is the input.

    `target` binds it: it keeps the anchor's outputs as targets where they are small, and has them computed
    again for each batch where they are not.

    Attributes:
        of: outputs and the anchor's outputs (example, ..., unit) -> (example,) or (example, token); zero where
            they are equal, nowhere negative.
    """

    of: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Refuse: without an anchor it has no value.

        Raises:
            BadInput: always.
        """
        raise BadInput("a loss to the anchor needs one: pass it to `learning_coefficient` or `target`.")


@dataclass(frozen=True)
class Recomputed:
    """An `AnchorLoss` that computes the anchor's outputs for every batch.

    Attributes:
        preset: the loss.
        anchor: the module's parameters at the anchor, by name.
    """

    preset: AnchorLoss
    anchor: Mapping[str, Tensor] = field(repr=False)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Give the loss of each example."""
        with torch.no_grad():
            before = outputs_of(module, batch[0], self.anchor)
        return self.preset.of(outputs_of(module, batch[0]), before)


def outputs_of(module: nn.Module, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Give a module's outputs, of a Hugging Face model the logits; with other weights where these are given."""
    outputs = module(inputs) if weights is None else functional_call(module, dict(weights), (inputs,))
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def next_token(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each token given those before it, in nats; batch[0] holds ids (example, position).

    Returns:
        (example, position - 1).
    """
    scores, ids = outputs_of(module, batch[0]), batch[0]
    # the last position is scored too, and left out: leaving it out before would copy all scores
    following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    return _cross_entropy(scores, following)[:, :-1]


def _cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    each = functional.cross_entropy(scores.flatten(0, -2), classes.flatten(), reduction="none")
    return each.view(classes.shape)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.shape != targets.shape:  # which would be broadcast, each output against every target
        raise BadInput(
            f"squared_error of outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: expected one shape; "
            "targets[:, None] makes a column."
        )
    each = (outputs - targets).square()
    return each if each.ndim == 1 else each.flatten(1).sum(1)


def _squared_distance(outputs: Tensor, before: Tensor) -> Tensor:
    each = (outputs - before).square().sum(-1)
    return each if each.ndim == 1 else each.flatten(1)


def _kl(outputs: Tensor, before: Tensor) -> Tensor:
    expected, found = before.log_softmax(-1), outputs.log_softmax(-1)
    each = (expected.exp() * (expected - found)).sum(-1)
    return each if each.ndim == 1 else each.flatten(1)


squared_error = OutputLoss(_squared_error)
"""Squared distance of outputs and targets, summed over output units."""
cross_entropy = OutputLoss(_cross_entropy)
"""Cross entropy of class scores (example, ..., class) with class numbers (example, ...), in nats."""
kl_to_anchor = AnchorLoss(_kl)
"""KL(anchor || module) of the distributions whose scores are the last axis of the outputs, in nats."""
squared_distance_to_anchor = AnchorLoss(_squared_distance)
"""Squared distance from the anchor's outputs, summed over the last axis."""

PRESETS: Mapping[str, Loss] = {
    "next_token": next_token,
    "squared_error": squared_error,
    "cross_entropy": cross_entropy,
    "kl_to_anchor": kl_to_anchor,
    "squared_distance_to_anchor": squared_distance_to_anchor,
}
"""Ready-made losses by name."""


def find_loss(loss: Loss | str) -> Loss:
    """Give the loss that a name stands for; a loss stands for itself.

    Raises:
        BadInput: no ready-made loss has that name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in PRESETS:
        raise BadInput(
            f"no loss is called {loss!r}; ready-made are {', '.join(PRESETS)}. Or pass a function."
        )
    return PRESETS[loss]


def loss_name(loss: Loss | str) -> str:
    """Name a loss so that two that differ are called differently: its own name, or that of a function and a hash.

    The hash is that of a function's source, of the plain values it closes over, and of its defaults, so that a
    run is not continued with a loss that was edited in between.
    """
    found = find_loss(loss)
    found = found.preset if isinstance(found, Recomputed) else found
    own = found.of if isinstance(found, OutputLoss | AnchorLoss) else found
    # a loss to the anchor is called the same before it is bound to one and after
    known = (name for name, preset in PRESETS.items() if getattr(preset, "of", preset) is own)
    return next(known, None) or identity(own)
