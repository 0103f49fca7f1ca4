"""Data in memory: tensors whose first axis counts examples, from whatever holds these."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    default_collate,
    default_convert,
)

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
        BadInput: of another kind, of unequal lengths, examples that are not numbers of one shape, or a loader that
            takes other examples each time.
    """
    found = _found(_handed_out(data) if isinstance(data, DataLoader) else data)
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
    if isinstance(data, Mapping) and isinstance(data.get("input_ids"), Tensor):
        return (data["input_ids"],)
    if isinstance(data, Mapping | IterableDataset) or not isinstance(data, Rows) or not len(data):
        raise BadInput(
            f"data is a {type(data).__name__}: expected a tensor, a tuple of tensors, a Dataset with a length whose "
            "examples are had by number, or a DataLoader of one."
        )
    rows = [_columns(_row(data, number)) for number in range(len(data))]
    try:
        return tuple(
            torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*rows, strict=True)
        )
    except (RuntimeError, TypeError, ValueError) as error:  # of other lengths, other shapes, or no numbers
        raise BadInput(
            f"the examples of a {type(data).__name__} do not fit into one tensor: {error}. Every one has to have the "
            "same parts, of the same shapes, and of numbers: cut or pad them, and leave other columns out."
        ) from error


def _row(data: Rows, number: int) -> Any:
    try:
        return data[number]
    except (LookupError, NotImplementedError) as error:
        raise BadInput(
            f"data is a {type(data).__name__} of length {len(data)}, which gives no example {number}: "
            f"{type(error).__name__} {error}."
        ) from error


def _columns(item: Any) -> Sequence[Any]:
    """The parts of one example; of rows by name, as Hugging Face datasets have them, the token ids."""
    if isinstance(item, Mapping):
        return (item["input_ids"],) if "input_ids" in item else tuple(item.values())
    return item if isinstance(item, tuple | list) else (item,)


def _handed_out(loader: DataLoader[Any]) -> Any:
    """The examples that a loader's sampler takes, as its ``collate_fn`` puts all of them together."""
    if isinstance(loader.dataset, IterableDataset):
        return loader.dataset  # which is refused by its name
    rows = Subset(loader.dataset, _taken(loader))
    if loader.collate_fn in (default_collate, default_convert):
        return rows
    if loader.batch_sampler is None:
        return default_collate([loader.collate_fn(row) for row in rows])
    return loader.collate_fn([*rows])


def _taken(loader: DataLoader[Any]) -> list[int]:
    """The numbers of the examples that a loader's sampler takes, ascending."""
    batches = loader.batch_sampler
    # what is left over of the last batch is not left out
    sampler: Any = batches.sampler if type(batches) is BatchSampler else batches or loader.sampler

    def read() -> Iterator[Any]:
        return chain.from_iterable(sampler) if sampler is batches else iter(sampler)

    most = len(cast("Rows", loader.dataset)) + 1
    with torch.random.fork_rng(devices=[]):  # samplers that shuffle draw from the global generator
        one, two = ([*islice(each, most)] for each in (read(), read()))
    if not all(isinstance(number, int) for number in one) or len({*one}) < len(one) or {*one} != {*two}:
        raise BadInput(
            f"the DataLoader's {type(sampler).__name__} takes examples more than once, or others each time: expected "
            "their numbers, the same ones, each once, in whatever order. Pass those to be sampled as a Dataset."
        )
    return sorted(one)
