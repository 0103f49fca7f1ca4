"""A measurement: settings -> independent units -> labelled dataset. One class per method, found by name."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xarray as xr
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from assay.errors import BadInput
from assay.estimates.checks import Check

Pieces = dict[str, Tensor]

ROOMS = ("landscape", "activations", "interactions", "dictionaries", "audits")

_UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a measurement that can run alone, be stored and be skipped on resume.

    Attributes:
        name: unique in the plan and safe as a file name, for example ``"position-007"``.
        detail: JSON-able arguments of this unit.
        cost: work relative to the other units of the plan, for the expected time; positive.
    """

    name: str
    detail: Mapping[str, Any]
    cost: float = 1.0

    def __post_init__(self) -> None:
        if not _UNIT_NAME.fullmatch(self.name):
            raise ValueError(
                f"unit name {self.name!r}: use 1-120 letters, digits, '.', '_' or '-'; start with a letter"
            )
        if not self.cost > 0:
            raise ValueError(f"unit {self.name!r} has cost {self.cost}; a cost is positive")


class Measurement(ABC):
    """One method. Subclasses are ``@dataclass(frozen=True, kw_only=True)`` whose fields are the settings.

    A setting is an int, a float, a str, a bool, None or a tuple of those, and its annotation can be resolved
    at run time (import the types it names outside ``TYPE_CHECKING``). A class that states its own ``name``
    is registered under it.

    Attributes:
        name: what run folders, the command line and the chart module are called.
        revision: raised whenever the same settings give other numbers, so that no old folder is continued.
        made_by: the call that makes what is measured, where this is more than a model that `assay.load` gives.
        registry: every measurement known so far, by name.
    """

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    made_by: ClassVar[str | None] = None
    registry: ClassVar[dict[str, type["Measurement"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            return
        known = Measurement.registry.get(cls.name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"two measurements are called {cls.name!r}: {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}"
            )
        Measurement.registry[cls.name] = cls

    def prepare(self, model: Any) -> Any:
        """Do the work that every unit of one process shares; deterministic."""
        return None

    @abstractmethod
    def plan(self, model: Any) -> Sequence[Unit]:
        """List the units. The same settings and model give the same list."""

    @abstractmethod
    def measure(self, model: Any, unit: Unit, shared: Any) -> Pieces:
        """Measure one unit: a pure function that returns named tensors; ``shared`` is what `prepare` gave."""

    @abstractmethod
    def combine(self, model: Any, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Build the labelled dataset from the pieces of every unit, by unit name in the order of the plan."""

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Judge the result: a function of the dataset alone."""
        return []

    def memory(self, model: Any) -> int | None:
        """Estimate the peak bytes needed beyond the weights; None where that is not known."""
        return None

    def data_hash(self) -> str | None:
        """Hash the data that settings only point at (a file); None where the settings hold all data."""
        return None


def stored_form(pieces: Pieces) -> Pieces:
    """Copy the pieces as a file would give them back, so that a resumed run adds up the same bytes."""
    return {
        name: pieces[name].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name in sorted(pieces)
    }


def settings(measurement: Measurement) -> dict[str, Any]:
    """Give the settings as JSON values, from which `from_settings` builds an equal measurement.

    A setting that has the wrong type, or is not finite, is `BadInput`.
    """
    cls = type(measurement)
    return {
        name: json.loads(adapter.dump_json(_validated(cls, name, adapter, getattr(measurement, name))))
        for name, adapter in _adapters(cls).items()
    }


def from_settings(name: str, values: Mapping[str, Any]) -> Measurement:
    """Build the measurement called ``name`` from JSON values.

    Raises:
        BadInput: when no measurement has that name, or a setting is unknown, missing or of the wrong type.
    """
    cls = find(name)
    adapters = _adapters(cls)
    if unknown := sorted(set(values) - set(adapters)):
        raise BadInput(
            f"{name} has no setting {', '.join(map(repr, unknown))}. Its settings: {', '.join(adapters)}."
        )
    required = {field.name for field in _settings_fields(cls) if _is_required(field)}
    if missing := sorted(required - set(values)):
        raise BadInput(f"{name} needs the setting {', '.join(map(repr, missing))}, which has no default.")
    return cls(**{key: _validated(cls, key, adapters[key], value) for key, value in values.items()})


def find(name: str) -> type[Measurement]:
    """Give the measurement called ``name``; one of Assay's own is imported from the module of that name.

    Raises:
        BadInput: when no measurement has that name.
    """
    if name not in Measurement.registry and name.isidentifier():
        for room in ROOMS:
            parent, module = f"assay.{room}", f"assay.{room}.{name}"
            if importlib.util.find_spec(parent) and importlib.util.find_spec(module):
                importlib.import_module(module)
    if name not in Measurement.registry:
        known = ", ".join(sorted(Measurement.registry)) or "none"
        raise BadInput(
            f"no measurement is called {name!r}. Loaded: {known}. One of your own must be imported first."
        )
    return Measurement.registry[name]


def _settings_fields(cls: type[Measurement]) -> list[dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(cls) or inspect.isabstract(cls):
        raise TypeError(f"{cls.__qualname__} must be a concrete @dataclass(frozen=True, kw_only=True)")
    return [field for field in dataclasses.fields(cls) if field.init]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _adapters(cls: type[Measurement]) -> dict[str, TypeAdapter[Any]]:
    """Give a strict validator for each setting."""
    hints = typing.get_type_hints(cls, include_extras=True)
    strict = ConfigDict(strict=True)
    return {field.name: TypeAdapter(hints[field.name], config=strict) for field in _settings_fields(cls)}


def _validated(cls: type[Measurement], name: str, adapter: TypeAdapter[Any], value: Any) -> Any:
    """Pass one setting through JSON, so that what is computed is what the run folder can give back."""
    try:
        return adapter.validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        expected = typing.get_type_hints(cls)[name]
        problem = error.errors()[0]["msg"]
        raise BadInput(
            f"setting {name!r} of {cls.name} is {value!r}: expected {expected}. {problem}."
        ) from error
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"setting {name!r} of {cls.name} is {value!r}, which a run folder cannot hold ({error}); "
            "use finite numbers, text, true or false, None, or tuples of those."
        ) from error
