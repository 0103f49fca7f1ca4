r"""The constants that lose least in the place of a component, learned by gradient descent.

.. math:: a^* = \arg\min_a \; \mathrm{mean}_x \, \mathrm{KL}\bigl(p(x) \,\|\, \tilde p_{c := a}(x)\bigr)

A mean is a constant, and carries no information, but is not the one that disturbs least (Li and Janson 2024,
2409.09951). Adam on the whole data set, at the positions that are read, from the mean, without randomness; of all
constants on the way the best is kept, so that it never loses more than the mean there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.activations.components.component import Component
from assay.activations.components.replacements import Statistics
from assay.activations.divergence import kl_divergence, log_probabilities
from assay.errors import BadInput
from assay.models.edits import Edit
from assay.models.intervention import capture, intervene
from assay.models.model import Model, Tokens

Constants = Mapping[str, Mapping[str, Tensor]]
INPUTS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Aim:
    """What constants are to leave as it is.

    Attributes:
        model: the decoder.
        inputs: token ids of the data set, all of one length.
        read: the positions at which the divergence is taken.
        clean: the clean log-probabilities of each batch.
    """

    model: Model
    inputs: Sequence[Tokens]
    read: list[int]
    clean: Sequence[Tensor]


@dataclass(frozen=True)
class Descent:
    """How constants are learned.

    Attributes:
        steps: over the whole data set.
        rate: step of Adam, in standard deviations of the component.
    """

    steps: int
    rate: float


def optimal_constants(
    model: Model,
    inputs: Sequence[Tokens],
    components: Sequence[Component],
    known: Statistics,
    descent: Descent,
    *,
    read: Sequence[int],
) -> Constants:
    """Learn the best constant of each component.

    Args:
        model: a decoder.
        inputs: token ids of the data set, all of one length.
        components: which, each by itself.
        known: statistics of the data set at their sites.
        descent: how.
        read: the positions at which the divergence is taken.

    Returns:
        By component and site, as wide as the component's part, float32.

    Raises:
        BadInput: an edge: what stands in for it is not an edit of one place.
    """
    if edges := [component.name for component in components if component.kind == "edge"]:
        raise BadInput(f"value='optimal' is not learned for edges ({edges[0]}); take zero, mean or resample")
    aim = Aim(model, inputs, list(read), _clean(model, inputs))
    return {component.name: _learned(aim, component, known, descent) for component in components}


def _learned(aim: Aim, component: Component, known: Statistics, descent: Descent) -> dict[str, Tensor]:
    start = {site: component.part(known.mean[site][None])[0].to(aim.model.dtype) for site in component.sites}
    scale = {site: component.part(known.deviation[site][None])[0].norm() for site in component.sites}
    held = {site: value.clone().requires_grad_() for site, value in start.items()}
    groups = [
        {"params": [held[site]], "lr": descent.rate * float(scale[site]) / held[site].numel() ** 0.5}
        for site in held
    ]
    optimiser = torch.optim.Adam(groups)
    best, least = start, float("inf")
    for step in range(descent.steps + 1):
        loss = _mean_kl(aim, component, held, backward=step < descent.steps)
        if loss < least:
            best, least = {site: value.detach().clone() for site, value in held.items()}, loss
        if step < descent.steps:
            optimiser.step()
            optimiser.zero_grad()
    return best


def _clean(model: Model, inputs: Sequence[Tokens]) -> list[Tensor]:
    """The clean log-probabilities of each batch."""
    batches = [inputs[start : start + INPUTS_AT_ONCE] for start in range(0, len(inputs), INPUTS_AT_ONCE)]
    return [
        log_probabilities(capture(model, [list(row) for row in some], "logits")["logits"]) for some in batches
    ]


def _mean_kl(aim: Aim, component: Component, held: Mapping[str, Tensor], *, backward: bool) -> float:
    """KL(clean || edited), the mean over inputs and the positions read; gradients are added to what is held."""
    total = 0.0
    edits: dict[str, Edit] = {site: _put(component, site, value) for site, value in held.items()}
    for number, logs in enumerate(aim.clean):
        rows = [list(row) for row in aim.inputs[number * INPUTS_AT_ONCE : (number + 1) * INPUTS_AT_ONCE]]
        edited = intervene(aim.model, rows, edits, grad=backward)["logits"][:, aim.read]
        with torch.set_grad_enabled(backward):
            kl = kl_divergence(logs[:, aim.read], log_probabilities(edited)).mean(-1).sum() / len(aim.inputs)
        if backward:
            for value, gradient in zip(
                held.values(), torch.autograd.grad(kl, list(held.values())), strict=True
            ):
                value.grad = gradient if value.grad is None else value.grad + gradient
        total += float(kl.detach())
    return total


def _put(component: Component, site: str, value: Tensor) -> Callable[[Tensor], Tensor]:
    """The edit of a whole site that puts a value in the place of the component's part."""

    def edit(whole: Tensor) -> Tensor:
        placed = component.edit(site, whole, value.expand_as(component.part(whole)))
        if placed.head is None:
            return placed.value
        chosen = torch.zeros(whole.shape[2], 1, dtype=torch.bool, device=whole.device)
        chosen[placed.head] = True
        return torch.where(chosen, placed.value[:, :, None], whole)

    return edit
