"""Data in memory: tensors whose first axis counts examples, from whatever holds these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from assay.errors import BadInput


@runtime_checkable
class Rows(Protocol):
    """Examples by number: tensors, tuples of them, or rows by name with ``input_ids``."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, number: int, /) -> Any:
        """One example."""
        ...


Data = Tensor | tuple[Tensor, ...] | list[Tensor] | Dataset[Any] | DataLoader[Any] | Rows | str | Path


def tensors_of(data: Data) -> tuple[Tensor, ...]:
    """Bring data into memory.

    Args:
        data: as `assay.landscape.target.target` takes them, but for files.

    Raises:
        BadInput: of another kind, of unequal lengths, or examples that are not numbers of one shape.
    """
    found = _found(data.dataset if isinstance(data, DataLoader) else data)
    lengths = [len(part) if part.ndim else None for part in found]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise BadInput(
            f"the data have lengths {lengths}: expected one, above 0; the first axis counts examples."
        )
    return found


def _found(data: Any) -> tuple[Tensor, ...]:
    if isinstance(data, Tensor):
        return (data,)
    if isinstance(data, tuple | list) and data and all(isinstance(part, Tensor) for part in data):
        return tuple(cast("tuple[Tensor, ...]", data))
    if not isinstance(data, Rows) or not len(data):
        raise BadInput(
            f"data is a {type(data).__name__}: expected a tensor, a tuple of tensors, a Dataset with a length, or "
            "a DataLoader of one."
        )
    rows = [_columns(data[number]) for number in range(len(data))]
    try:
        return tuple(
            torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*rows, strict=True)
        )
    except (RuntimeError, TypeError, ValueError) as error:  # of other lengths, other shapes, or no numbers
        raise BadInput(
            f"the examples of a {type(data).__name__} do not fit into one tensor: {error}. Every one has to have the "
            "same parts, of the same shapes, and of numbers: cut or pad them, and leave other columns out."
        ) from error


def _columns(item: Any) -> Sequence[Any]:
    """The parts of one example; of rows by name, as Hugging Face datasets have them, the token ids."""
    if isinstance(item, Mapping):
        return (item["input_ids"],) if "input_ids" in item else tuple(item.values())
    return item if isinstance(item, tuple | list) else (item,)
