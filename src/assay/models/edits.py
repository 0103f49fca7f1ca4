"""Edits: what to put at a site, and where in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from assay.errors import BadInput

Edit: TypeAlias = "Tensor | float | Callable[[Tensor], Tensor] | At | Sequence[Edit]"
Indices: TypeAlias = "int | Sequence[int] | slice | None"


@dataclass(frozen=True)
class At:
    """An edit of part of a site; made by :func:`at`."""

    value: "Edit"
    where: dict[str, Indices]


def at(
    value: "Edit",
    *,
    rows: Indices = None,
    positions: Indices = None,
    heads: Indices = None,
    neurons: Indices = None,
) -> At:
    """Restrict an edit to rows of the batch, positions, heads, or entries of the last axis.

    Args:
        value: a tensor broadcastable to the part, a number, a function from the part to its replacement,
            another restricted edit, or a sequence of these, applied in order.
        rows: rows of the batch.
        positions: token positions (query positions for ``pattern``); negative ones count from the end.
        heads: heads of ``q``, ``k``, ``v``, ``z`` or ``pattern``.
        neurons: entries of the last axis: neurons of ``mlp_act``, coordinates of a residual site.

    Returns:
        The edit, for ``intervene(model, inputs, {site: edit})``.
    """
    named = {"rows": rows, "positions": positions, "heads": heads, "neurons": neurons}
    return At(value, {name: indices for name, indices in named.items() if indices is not None})


def apply(edit: "Edit", tensor: Tensor, axes: dict[str, int], site: str) -> Tensor:
    """The tensor after an edit; the given tensor is left as it was.

    Args:
        edit: what to put there.
        tensor: the site's value.
        axes: which axis rows, positions, heads and neurons are.
        site: the site's name, for messages.

    Returns:
        A tensor of the same shape.

    Raises:
        BadInput: the replacement's shape does not fit, a function returned no tensor, the site has no such
            axis, or an index is out of range.
    """
    if isinstance(edit, At):
        index = _index(edit.where, tensor, axes, site)
        result = tensor.clone()
        result[index] = apply(edit.value, tensor[index], axes, site)
        return result
    if isinstance(edit, Tensor):
        return _fit(edit, tensor, site)
    if callable(edit):
        returned: Any = edit(tensor)
        if not isinstance(returned, Tensor):
            raise BadInput(f"the edit at {site!r} returned {type(returned).__name__}, not a tensor")
        return _fit(returned, tensor, site)
    if isinstance(edit, Sequence):
        for step in edit:
            tensor = apply(step, tensor, axes, site)
        return tensor
    return torch.full_like(tensor, float(edit))


def _fit(value: Tensor, tensor: Tensor, site: str) -> Tensor:
    value = value.to(tensor)
    if value.shape == tensor.shape:
        return value
    try:
        return value.expand_as(tensor)
    except RuntimeError:
        raise BadInput(
            f"the edit at {site!r} has shape {tuple(value.shape)}, which does not broadcast to the part it replaces, "
            f"{tuple(tensor.shape)}"
        ) from None


def _index(
    where: dict[str, Indices], tensor: Tensor, axes: dict[str, int], site: str
) -> tuple[Tensor | slice, ...]:
    """An index that takes the cross product of the lists given (numpy's ``ix_``)."""
    chosen = {
        axes[name] % tensor.ndim: _positions(name, indices, tensor, axes, site)
        for name, indices in where.items()
    }
    lists = sorted(chosen)
    first, last = (lists[0], lists[-1]) if lists else (0, -1)
    index: list[Tensor | slice] = [slice(None)] * tensor.ndim
    for axis in range(first, last + 1):  # every axis between, so that numpy's rules keep their order
        values = chosen.get(axis, torch.arange(tensor.shape[axis], device=tensor.device))
        index[axis] = values.view([-1 if other == axis else 1 for other in range(first, last + 1)])
    return tuple(index)


def _positions(name: str, indices: Indices, tensor: Tensor, axes: dict[str, int], site: str) -> Tensor:
    if name in ("positions", "heads") and axes[name] >= tensor.ndim - 1:  # the last axis is the neurons'
        raise BadInput(f"site {site!r} has no {name}: its activation has the shape {tuple(tensor.shape)}")
    size = tensor.shape[axes[name]]
    if isinstance(indices, slice):
        return torch.arange(size, device=tensor.device)[indices]
    listed = [indices] if isinstance(indices, int) else list(indices or ())
    wanted = torch.tensor(listed, dtype=torch.long, device=tensor.device)
    if wanted.numel() and (int(wanted.min()) < -size or int(wanted.max()) >= size):
        raise BadInput(
            f"{name} {wanted.tolist()} at site {site!r}: there are {size}, numbered 0 to {size - 1}"
        )
    return wanted % size
