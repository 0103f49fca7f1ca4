r"""Fixing what norms divide by: at a reference input, to one constant a site, or to nothing at all.

A norm divides by :math:`\sigma(x) = \sqrt{\mathrm{var}(x) + \epsilon}` (the mean square for RMSNorm). Here it divides
by a constant instead, and the model is a linear map between its non-linearities. ``freeze`` takes
:math:`\sigma` of one input at each position: exact there, first-order wrong elsewhere. ``scale`` takes one constant
for each norm, as in Heimersheim 2024, 2409.13710 (there with a table of constants), and further ones for special
positions. ``remove`` folds constants, gains, biases and centrings into the linear layers that follow, so that the
identity is left.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.anatomy import divisor
from assay.models.inputs import Prompt, few_logits
from assay.models.model import Model, Tokens
from assay.models.norms.finding import Norm, find_norms
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.folding import absorb, copied_model, is_tied, renamed, replace_norm

Value = TypeVar("Value")
ROUNDING = 1e-12
"""How far from one a gain may be, in float64, and still be none."""


def freeze(model: Model, reference: Prompt) -> Model:
    """Hold every norm's scale at what it is at each position of a reference input.

    Args:
        model: a decoder; it is copied, not changed.
        reference: a text, or token ids.

    Returns:
        The copy, named as such. On the reference, or its beginning, its logits are the model's up to rounding; an input
        longer than the reference is refused.

    Raises:
        BadInput: the model has no norms, or one that mixes up rows and positions.
    """
    tokens = model.tokens(reference)
    return next(frozen_at_each(model, [tokens]))


def frozen_at_each(model: Model, references: Sequence[Tokens]) -> Iterator[Model]:
    """:func:`freeze` at one reference after the other.

    Args:
        model: a decoder; it is copied once, not changed.
        references: token ids of each reference.

    Yields:
        The copy, frozen at each reference in turn: use it before asking for the next.

    Raises:
        BadInput: as for :func:`freeze`.
    """
    norms = find_norms(model)
    copied = copied_model(model)
    for norm in norms:
        if norm.axis < 0:
            raise BadInput(
                f"{model.source}: {norm.name} is given rows and positions as one axis: its scale cannot be held "
                "position by position; use assay.norms.scale(special=())"
            )
        scales = torch.ones((1,) * len(norm.shape))
        replace_norm(copied, norm, fixed(norm, scales, copied.dtype, endless=False))
    for tokens in references:
        for norm, scales in zip(norms, norm_scales(model, norms, tokens), strict=True):
            copied.module.get_submodule(norm.path).scale = scales
        yield renamed(copied, [f"norms frozen at a reference of {len(tokens)} tokens"])


def scale(
    model: Model,
    texts: "Prompt | Sequence[Prompt]",
    *,
    special: Sequence[int] = (0,),
    only: Sequence[str] = (),
    seed: int | None = None,
) -> Model:
    r"""Let every norm divide by one constant: the mean of its scale over all ordinary tokens of a data set.

    .. math:: \bar\sigma = \frac1N \sum_{\text{inputs}} \sum_{t \notin \text{special}} \sigma(x_t)

    Args:
        model: a decoder; it is copied, not changed.
        texts: the data set: texts, or token ids.
        special: positions with a constant of their own; the first one is very different in many models.
        only: the norms that are given one, by name (``ln2.3``) or by kind (``ln2``); all by default.
        seed: of a baseline: each norm is given the constant of another one, drawn by this seed. ``None`` for its own.

    Returns:
        The copy, named as such.

    Raises:
        BadInput: the model has no norms, or none of those named; no text reaches beyond the special positions, or they
            are out of range.
    """
    special, only = several("special", special), several("only", only)
    if any(position < 0 for position in special):
        raise BadInput(f"special={special}: positions are counted from 0, at the start of a prompt")
    copied = copied_model(model)
    norms = _chosen(model, find_norms(copied), only)
    rows = [model.tokens(text) for text in prompts(texts)]
    constants = _mean_scales(copied, norms, rows, sorted(set(special)))
    order = list(range(len(norms)))
    if seed is not None:
        order = _exchanged(constants, torch.Generator().manual_seed(seed))
    for norm, index in zip(norms, order, strict=True):
        replace_norm(copied, norm, fixed(norm, constants[index], copied.dtype))
    apart = f", positions {', '.join(map(str, special))} apart" if special else ""
    whose = "a fixed scale" if seed is None else "another norm's scale"
    which = f"its {', '.join(only)} " if only else ""
    return renamed(copied, [f"{which}norms given {whose}{apart}"])


def remove(model: Model, *, untie: bool = True) -> Model:
    r"""Replace every norm by the identity, its constants folded into the linear layers that read it.

    .. math:: W' = W \operatorname{diag}(w / \sigma) \,\bigl(I - \tfrac1d \mathbf 1 \mathbf 1^\top\bigr), \qquad
              c' = c + W b

    A constant :math:`\sigma` is that of :func:`scale` or that of a huge epsilon, :math:`\sqrt\epsilon`: then this is
    exact (of the latter up to :math:`\mathrm{var}(x) / 2\epsilon`). A norm that still looks at its input is removed all
    the same, with :math:`\sigma = 1`: another model. A norm that is read by other things than linear layers is left as
    the affine map that it is.

    Args:
        model: a decoder; it is copied, not changed.
        untie: give the copy an unembedding of its own where it is tied to the embedding; without it, the final norm is
            left as the affine map that it is.

    Returns:
        The copy, named as such.

    A model without norms, or one whose norms have scales of their own at some positions, is `BadInput`.
    """
    return remove_in_place(copied_model(model), untie=untie)


def remove_in_place(model: Model, *, untie: bool = True) -> Model:
    """What :func:`remove` does, without the copy; for a model nobody else holds.

    Raises:
        BadInput: a norm has scales of their own at some positions.
    """
    kept, untied = 0, False
    norms = find_norms(model)
    for norm in norms:
        if norm.by_position:
            raise BadInput(
                f"{model.source}: {norm.name} has scales of their own at some positions, which no weight can hold. Fix "
                "one for all positions: assay.norms.scale(model, texts, special=())"
            )
    for norm in norms:
        sigma = _constant(norm)
        tied = any(is_tied(model, path) for path in norm.readers)
        if norm.obstacle() or (tied and not untie):
            replace_norm(model, norm, fixed(norm, sigma.expand(norm.shape[:-1] + (1,)), model.dtype))
            kept += 1
            continue
        untied |= absorb(model, norm, norm.gain / sigma, norm.bias, centre=norm.centring)
        replace_norm(model, norm, FixedNorm(torch.ones_like(sigma, dtype=model.dtype)))
    left = f", {kept} of {len(norms)} left as affine maps" if kept else ""
    live = "" if all(norm.is_fixed for norm in norms) else " though they were live"
    return renamed(model, [f"norms removed{live}{left}", *(["unembedding untied"] if untied else [])])


def prompts(texts: "Prompt | Sequence[Prompt]") -> list[Prompt]:
    """The prompts of a data set that may be a single one.

    Raises:
        BadInput: there is none.
    """
    if isinstance(texts, str):
        return [texts]
    listed = list(texts)
    if not listed:
        raise BadInput("the data set is empty: pass texts, or token ids")
    return [texts] if all(isinstance(item, int) for item in listed) else listed  # type: ignore[list-item]


def several(name: str, given: Sequence[Value] | Value) -> tuple[Value, ...]:
    """The values of a setting that takes several.

    Raises:
        BadInput: it was given a single one.
    """
    if isinstance(given, str | int):
        raise BadInput(f"{name}={given!r}: give a sequence, even of one: {name}=({given!r},)")
    return tuple(cast("Sequence[Value]", given))


def fixed(norm: Norm, scales: Tensor, dtype: torch.dtype, *, endless: bool = True) -> FixedNorm:
    """The norm with a constant scale: gain and bias left out where they are one and zero.

    Args:
        norm: what it replaces.
        scales: what it divides by, of the norm's shape with a last axis of 1.
        dtype: of gain, bias and scale.
        endless: the last scale holds for all further positions.
    """
    gain, bias = (part.reshape(norm.shape[1:]) for part in (norm.gain, norm.bias))
    return FixedNorm(
        scales.to(dtype),
        gain.to(dtype) if (gain - 1).abs().max() > ROUNDING else None,
        bias.to(dtype) if bias.any() else None,
        centring=norm.centring,
        axis=max(norm.axis, 0),
        endless=endless,
    )


def norm_scales(model: Model, norms: Sequence[Norm], tokens: Tokens) -> list[Tensor]:
    """What every norm divides by on one prompt.

    Args:
        model: the model that ``norms`` were found in.
        norms: the norms.
        tokens: token ids.

    Returns:
        One tensor a norm: its input's shape, with a last axis of 1.
    """
    found: dict[str, Tensor] = {}

    with torch.no_grad(), ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.module.register_forward_pre_hook(partial(_watch, found, norm.name)).remove)
        model.module(input_ids=torch.tensor([tokens], device=model.device), **few_logits(model))
    return [found[norm.name] for norm in norms]


def _watch(found: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    found[name] = divisor(module, args[0])


def _chosen(model: Model, norms: Sequence[Norm], only: Sequence[str]) -> list[Norm]:
    """The norms of the names or kinds given; all where none is."""
    unknown = [name for name in only if all(name not in (norm.name, norm.kind) for norm in norms)]
    if unknown:
        kinds = ", ".join(dict.fromkeys(norm.kind for norm in norms))
        raise BadInput(f"{model.source} has no norm {unknown[0]!r}; its norms are of the kinds {kinds}")
    return [norm for norm in norms if not only or norm.name in only or norm.kind in only]


def _mean_scales(
    model: Model, norms: Sequence[Norm], rows: Sequence[Tokens], special: Sequence[int]
) -> list[Tensor]:
    """Each norm's constants: along its axis the positions up to the last special one, then all further ones."""
    slots = special[-1] + 2 if special else 1
    sums, counts = torch.zeros(len(norms), slots, dtype=torch.float64), torch.zeros(slots)
    for row in rows:
        slot = torch.tensor([p if p in special else slots - 1 for p in range(len(row))])
        counts += slot.bincount(minlength=slots)
        for total, norm, scales in zip(sums, norms, norm_scales(model, norms, row), strict=True):
            if norm.axis < 0 and special:
                raise BadInput(
                    f"{model.source}: {norm.name} is given rows and positions as one axis, so that no position can be "
                    "held apart: pass special=()"
                )
            by_position = scales.double().cpu().movedim(max(norm.axis, 0), 0).flatten(1).mean(1)
            total.index_add_(0, slot, by_position)
    if not counts[-1]:
        raise BadInput(
            f"no text has a token beyond the special positions {tuple(special)}: pass longer texts"
        )
    if beyond := [position for position in special if not counts[position]]:
        raise BadInput(f"special={tuple(special)}: no text has a token at {beyond[0]}; pass longer texts")
    means = sums / counts.clamp_min(1)
    means = torch.where(counts > 0, means, means[:, -1:])  # positions that nobody called special
    return [
        mean.view([slots if axis == max(norm.axis, 0) else 1 for axis in range(len(norm.shape))]).to(
            model.device
        )
        for norm, mean in zip(norms, means, strict=True)
    ]


def _exchanged(constants: Sequence[Tensor], generator: torch.Generator) -> list[int]:
    """For each norm the index of another one of the same shape; its own where there is no other."""
    order = list(range(len(constants)))
    for shape in {tuple(tensor.shape) for tensor in constants}:
        alike = [i for i in order if tuple(constants[i].shape) == shape]
        cycle = [alike[i] for i in torch.randperm(len(alike), generator=generator).tolist()]
        for here, there in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            order[here] = there
    return order


def _constant(norm: Norm) -> Tensor:
    """What a norm divides by whatever its input; 1 where that depends on it."""
    if isinstance(norm.module, FixedNorm):
        return norm.module.scale.double()
    sigma = norm.epsilon**0.5 if norm.is_fixed else 1.0
    return torch.full((1,) * len(norm.shape), sigma, dtype=torch.float64, device=norm.gain.device)
