"""What is sampled: a module's weights, a loss, and the data the loss is taken over."""

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from assay.errors import BadInput
from assay.landscape.losses import Loss

Data = Tensor | tuple[Tensor, ...] | list[Tensor] | Dataset[Any] | DataLoader[Any]


@dataclass(frozen=True, eq=False)
class Target:
    """A module at its anchor, a loss and data; make it with `target`.

    Attributes:
        module: the network; its present weights are the anchor. It is not changed.
        loss: of module and batch, one value for each example or token.
        data: tensors whose first axis counts the n examples.
        mask: which of the d sampled parameters move, (d,) bool; None lets all of them.
        source: what run folders call it.
    """

    module: nn.Module
    loss: Loss
    data: tuple[Tensor, ...]
    mask: Tensor | None
    source: str

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.data[0])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """In which precision."""
        return next(iter(self.parameters.values())).dtype

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is sampled: the parameters that require grad, by name, in the module's order."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector of all of them."""
        places, start = dict[str, slice](), 0
        for name, value in self.parameters.items():
            places[name] = slice(start, start + value.numel())
            start += value.numel()
        return places

    def anchor(self) -> Tensor:
        """Copy the present weights into one flat vector, (d,)."""
        return torch.cat([value.detach().flatten() for value in self.parameters.values()])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """View a flat vector (d,) as named parameters."""
        return {name: flat[place].view_as(self.parameters[name]) for name, place in self.places.items()}

    def weight_hash(self) -> str:
        """Hash the weights, the buffers and the mask: names, shapes, dtypes, bytes."""
        mask = {} if self.mask is None else {"mask": self.mask}
        return _digest({**dict(self.module.named_parameters()), **dict(self.module.named_buffers()), **mask})

    def data_hash(self) -> str:
        """Hash the data."""
        return _digest({str(index): part for index, part in enumerate(self.data)})

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Put the module into eval mode for a while, and every part of it back into its own mode after."""
        training = [part for part in self.module.modules() if part.training]
        self.module.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True


def target(
    module: nn.Module,
    loss: Loss,
    data: Data,
    *,
    mask: Mapping[str, Tensor] | None = None,
    source: str | None = None,
) -> Target:
    """Bring together what is sampled.

    Args:
        module: any network; its present weights are the anchor.
        loss: ``loss(module, batch)`` with one value for each example, (example,) or (example, token).
        data: a tensor, a tuple of tensors of one length, a ``Dataset`` or a ``DataLoader`` (whose dataset is
            taken; batches are drawn anew).
        mask: parameter name -> bool tensor of its shape, true where it moves; parameters not named stay.
        source: what run folders call it; the module's class when not given.

    Raises:
        BadInput: no parameter requires grad, data on another device or of unequal lengths, a mask that does
            not fit, weights that are not finite, or a loss that is not one finite value for each example.
    """
    tensors = _tensors(data)
    made = Target(module, loss, tensors, None, source or type(module).__name__)
    if not made.parameters:
        raise BadInput(
            f"no parameter of {type(module).__name__} requires grad, so there is nothing to sample. Call "
            "module.requires_grad_(True), or only on the parts to be sampled."
        )
    if len({len(part) for part in tensors}) != 1 or made.n == 0:
        raise BadInput(f"the data have lengths {[len(part) for part in tensors]}: expected one, above 0.")
    if elsewhere := {str(part.device) for part in tensors if part.device != made.device}:
        raise BadInput(
            f"the module is on {made.device}, data on {', '.join(sorted(elsewhere))}: move one to the other."
        )
    if not bool(made.anchor().isfinite().all()):
        raise BadInput("the module's weights are NaN or infinite at the anchor: look at its training.")
    _try(made)
    return Target(module, loss, tensors, _flat_mask(made, mask), made.source)


def _tensors(data: Data) -> tuple[Tensor, ...]:
    """Bring data into memory as tensors whose first axis counts examples."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, Tensor):
        return (data,)
    if isinstance(data, tuple | list) and data:
        return tuple(data)
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        items = [data[index] for index in range(len(data))]  # pyright: ignore[reportArgumentType]
        rows = [item if isinstance(item, tuple | list) else (item,) for item in items]
        return tuple(
            torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*rows, strict=True)
        )
    raise BadInput(
        f"data is a {type(data).__name__}: expected a tensor, a tuple of tensors, a Dataset with a length, or "
        "a DataLoader of one."
    )


def _try(made: Target) -> None:
    """Refuse a loss that is not one finite value for each example."""
    few = tuple(part[:2] for part in made.data)
    with torch.no_grad(), made.evaluating():
        values = made.loss(made.module, few)
    if values.ndim not in (1, 2) or len(values) != len(few[0]):
        raise BadInput(
            f"the loss of {len(few[0])} examples has shape {tuple(values.shape)}: expected one value for each "
            'example (or each token of each), before any mean. With torch losses pass reduction="none".'
        )
    if not bool(values.isfinite().all()):
        raise BadInput("the loss is NaN or infinite at the anchor: look at the weights and the data.")


def _flat_mask(made: Target, mask: Mapping[str, Tensor] | None) -> Tensor | None:
    if mask is None:
        return None
    if unknown := sorted(set(mask) - set(made.parameters)):
        raise BadInput(f"the mask names {unknown}; parameters that can move: {', '.join(made.parameters)}.")
    flat = torch.zeros(len(made.anchor()), dtype=torch.bool, device=made.device)
    for name, part in mask.items():
        shape = tuple(made.parameters[name].shape)
        if tuple(part.shape) != shape or part.dtype != torch.bool:
            raise BadInput(
                f"the mask of {name} is {part.dtype} of shape {tuple(part.shape)}: expected bool of {shape}."
            )
        flat[made.places[name]] = part.flatten().to(flat.device)
    if not bool(flat.any()):
        raise BadInput("the mask lets no parameter move: set it true where weights are to be sampled.")
    return flat


def _digest(parts: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {tuple(part.shape)} {part.dtype}\n".encode())
        digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
