"""A labelled dataset as two files that any tool can read: numbers in safetensors, everything else in JSON."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load, save

from assay.errors import BadInput

SCHEMA_VERSION = 1


def encode(dataset: xr.Dataset, extra: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Give the bytes of ``result.safetensors`` and of ``result.json``.

    Args:
        dataset: variables and coordinates of numbers, booleans or text.
        extra: more JSON values to keep in the second file.

    A variable of anything else (dates, complex numbers, objects) is a ``TypeError``.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    described: dict[str, dict[str, Any]] = {"coords": {}, "variables": {}}
    for part, members in (("coords", dataset.coords), ("variables", dataset.data_vars)):
        for key, variable in members.items():
            name, values = str(key), variable.to_numpy()
            entry = {"dims": list(variable.dims), "attrs": plain(variable.attrs)}
            if values.dtype.kind in "biuf":
                arrays[name] = np.ascontiguousarray(values).reshape(values.shape)
            else:
                entry["text"] = _texts(name, values)
            described[part][name] = entry
    numbers = save(arrays)
    document = {
        "schema_version": SCHEMA_VERSION,
        "sizes": {str(dim): size for dim, size in dataset.sizes.items()},
        **described,
        "attrs": plain(dataset.attrs),
        "safetensors_sha256": hashlib.sha256(numbers).hexdigest(),
        **extra,
    }
    return numbers, json.dumps(document, allow_nan=False, indent=1).encode()


def decode(numbers: bytes, document: bytes) -> tuple[xr.Dataset, dict[str, Any]]:
    """Give the dataset back from the bytes of the two files, with the whole JSON document.

    Raises:
        BadInput: when either is damaged, or they do not belong together.
    """
    try:
        described = json.loads(document)
        version, expected = int(described["schema_version"]), described["safetensors_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"result.json is damaged or truncated, or describes no result ({error!r}).") from error
    if version > SCHEMA_VERSION:
        raise BadInput(
            f"the result has schema version {version}, this Assay reads up to {SCHEMA_VERSION}: upgrade it."
        )
    if hashlib.sha256(numbers).hexdigest() != expected:
        raise BadInput(
            "result.safetensors is not the file that result.json describes: truncated or replaced."
        )
    try:
        return _assembled(described, load(numbers)), described
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"result.json and result.safetensors do not make a data set ({error!r}).") from error


def _assembled(described: Mapping[str, Any], arrays: Mapping[str, Any]) -> xr.Dataset:
    sizes = described["sizes"]
    coords, variables = (
        {name: _variable(name, entry, arrays, sizes) for name, entry in described[part].items()}
        for part in ("coords", "variables")
    )
    return xr.Dataset(variables, coords=coords, attrs=described["attrs"])


def _variable(
    name: str, entry: Mapping[str, Any], arrays: Mapping[str, Any], sizes: Mapping[str, int]
) -> tuple[list[str], Any, dict[str, Any]]:
    """Give one variable as xarray takes it: dims, values, attributes."""
    if "text" not in entry:
        return entry["dims"], arrays[name], entry["attrs"]
    # object, for numpy's fixed-width text silently drops trailing NUL characters
    flat = np.empty(len(entry["text"]), dtype=object)
    flat[:] = entry["text"]
    return entry["dims"], flat.reshape([sizes[dim] for dim in entry["dims"]]), entry["attrs"]


def _texts(name: str, values: np.ndarray[Any, Any]) -> list[str]:
    flat = values.ravel().tolist()
    if not all(isinstance(value, str) for value in flat):
        raise TypeError(f"variable {name!r} of dtype {values.dtype} holds neither numbers nor text only")
    return [str(value) for value in flat]


def plain(value: Any) -> Any:
    """Give ``value`` as JSON can hold it: numpy scalars as numbers, tuples and arrays as lists, NaN as text.

    Raises:
        TypeError: when it is none of text, number, boolean, None, or a mapping or sequence of those.
    """
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")
