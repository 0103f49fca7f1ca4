"""Masks of parameters: one head or one MLP moves, and the rest of a language model stays.

The refined coefficient of a part is that of the loss as a function of the part's own weights (G. Wang et al. 2024,
arXiv 2410.02984).
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.model import Model
from assay.models.sites import find_port

Mask = dict[str, Tensor]
"""Parameter name -> bool tensor of its shape, true where it moves."""


def head_mask(model: Model, layer: int, head: int) -> Mask:
    """Let one attention head move: its rows of the query, key and value projections, its columns of the output's.

    With grouped queries several heads read the same keys and values. The key and value rows that this head reads
    are in its mask, and so in that of every other head of its group. Biases go with their rows; the bias of the
    output projection belongs to no head.

    Args:
        model: a decoder.
        layer: of the head; negative ones count from the last.
        head: which query head.

    Raises:
        BadInput: no such layer or head, or attention weights that are not laid out by head.
    """
    layer = _layer(model, layer)
    block = model.parts.blocks[layer]
    if not 0 <= head < block.n_heads:
        raise BadInput(f"head {head} of layer {layer}: there are {block.n_heads}, numbered from 0.")
    names = _names(model)
    mask: Mask = {}
    group = block.n_heads // block.n_kv_heads
    for site, index in (("q", head), ("k", head // group), ("v", head // group), ("z", head)):
        port = find_port(model.parts, model.module, f"{site}.{layer}")
        assert port.module is not None
        weight = port.module.weight
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            raise BadInput(
                f"the {site} projection of layer {layer} is no matrix, so no rows of it are one head's."
            )
        reads = site == "z"
        axis = _axis(port.module, inputs=reads)
        units = torch.arange(weight.shape[axis])[None, None]
        own = port.read(units)[0, 0, index].to(weight.device)
        for parameter in (weight,) if reads else (weight, getattr(port.module, "bias", None)):
            if parameter is not None:
                part = mask.setdefault(names[parameter], torch.zeros_like(parameter, dtype=torch.bool))
                part.index_fill_(axis if parameter.ndim == 2 else 0, own, value=True)
    return mask


def mlp_mask(model: Model, layer: int) -> Mask:
    """Let one MLP move: every weight and bias of it.

    Args:
        model: a decoder.
        layer: of the MLP; negative ones count from the last.

    Raises:
        BadInput: no such layer, or a block whose MLP is not a module of its own.
    """
    layer = _layer(model, layer)
    block = model.parts.blocks[layer]
    if block.mlp is None or block.mlp is block.module:
        raise BadInput(
            f"the MLP of layer {layer} is not a module of its own: make the mask of its layers by hand."
        )
    names = _names(model)
    return {names[part]: torch.ones_like(part, dtype=torch.bool) for part in block.mlp.parameters()}


def mask_of(module: nn.Module | Model, mask: object) -> Mapping[str, Tensor] | None:
    """Give the mask that is meant: a mapping, one vector (`flat_mask`) or words (`named_mask`); None for none.

    Raises:
        BadInput: something else, or one that does not fit.
    """
    if isinstance(mask, str):
        return named_mask(module, mask)
    if isinstance(mask, Tensor):
        return flat_mask(module, mask)
    if mask is not None and not isinstance(mask, Mapping):
        raise BadInput(
            f"the mask is a {type(mask).__name__}: expected a mapping from parameter names to bool tensors, one bool "
            "tensor over all parameters, or words such as 'layers.0.*'."
        )
    return cast("Mapping[str, Tensor] | None", mask)


def named_mask(module: nn.Module | Model, words: str) -> Mask:
    """Give the mask of a component or of parameters by name.

    Args:
        module: a network, or a model as `assay.load` gives it.
        words: of a model ``head.3.5`` or ``mlp.3``; otherwise the name of a parameter, in which ``*`` and ``?``
            stand for any letters and any letter.

    Raises:
        BadInput: no such component, or no parameter of that name.
    """
    match = re.fullmatch(r"head\.(\d+)\.(\d+)|mlp\.(\d+)", words)
    if match and isinstance(module, Model):
        layer, head, mlp = match.groups()
        return mlp_mask(module, int(mlp)) if mlp else head_mask(module, int(layer), int(head))
    bare = module.module if isinstance(module, Model) else module
    named = {
        name: torch.ones_like(value, dtype=torch.bool)
        for name, value in bare.named_parameters()
        if fnmatchcase(name, words)
    }
    if not named:
        some = ", ".join(name for name, _ in [*bare.named_parameters()][:8])
        raise BadInput(
            f"mask={words!r} is no parameter's name; the first are {some}. Of a model that `assay.load` gives it may "
            "also be head.LAYER.HEAD or mlp.LAYER."
        )
    return named


def flat_mask(module: nn.Module | Model, mask: Tensor) -> Mask:
    """Give the mask that one vector over all parameters is.

    Args:
        module: a network, or a model as `assay.load` gives it.
        mask: bool, (d,), in the order of those of ``module.parameters()`` that require grad.

    Raises:
        BadInput: another shape or dtype.
    """
    bare = module.module if isinstance(module, Model) else module
    movable = {name: value for name, value in bare.named_parameters() if value.requires_grad}
    sizes = [value.numel() for value in movable.values()]
    if mask.shape != (sum(sizes),) or mask.dtype != torch.bool:
        raise BadInput(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}: expected bool of ({sum(sizes)},), an entry for "
            "each parameter that requires grad; or a mapping from parameter names to masks of their shapes."
        )
    parts = zip(movable.items(), mask.split(sizes), strict=True)
    return {name: part.view_as(value) for (name, value), part in parts if bool(part.any())}


def flattened(mask: Mapping[str, object], parameters: Mapping[str, Tensor]) -> Tensor:
    """Give the vector over the parameters that a mask names, (d,) bool, in their order.

    Raises:
        BadInput: a mask of another shape or dtype than its parameter's, or one that lets nothing move.
    """
    parts: list[Tensor] = []
    for name, value in parameters.items():
        part, shape = mask[name], tuple(value.shape)
        if not isinstance(part, Tensor) or tuple(part.shape) != shape or part.dtype != torch.bool:
            found = (
                f"{part.dtype} of shape {tuple(part.shape)}"
                if isinstance(part, Tensor)
                else type(part).__name__
            )
            raise BadInput(f"the mask of {name} is {found}: expected a tensor of bool of {shape}.")
        parts.append(part.flatten().to(value.device))
    flat = torch.cat(parts)
    if not bool(flat.any()):
        raise BadInput("the mask lets no parameter move: set it true where weights are to be sampled.")
    return flat


def described(mask: Mask) -> str:
    """Say what a mask lets move: parameters by name, and how many entries of each where these are not all."""
    parts: list[str] = []
    for name, part in mask.items():
        count = int(part.sum())
        if count:
            parts.append(name if count == part.numel() else f"{name} ({count:,} of {part.numel():,})")
    return ", ".join(parts)


def _layer(model: Model, layer: int) -> int:
    count = model.n_layers
    if not -count <= layer < count:
        raise BadInput(f"layer {layer}: {model.source} has layers 0 to {count - 1}.")
    return layer % count


def _names(model: Model) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.module.named_parameters()}


def _axis(projection: nn.Module, *, inputs: bool) -> int:
    """Which axis of a weight its inputs or outputs are; GPT-2's ``Conv1D`` keeps the transpose."""
    transposed = type(projection).__name__ == "Conv1D"
    return int(inputs) ^ int(transposed)
