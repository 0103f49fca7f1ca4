"""The checker that the import hook puts around every function of the library in tests."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

UNCHECKED: list[Callable[..., Any]] = []
"""Functions with an annotation that beartype cannot read, such as a numpy array of either of two dtypes."""

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as PEP 484 has it


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return _check(function)
    except BeartypeDecorHintException:
        UNCHECKED.append(function)
        return function
