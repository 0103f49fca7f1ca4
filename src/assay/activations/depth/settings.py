"""Settings of several numbers, as they are given."""

from collections.abc import Sequence
from typing import TypeVar

Number = TypeVar("Number", int, float)


def numbers_of(given: Sequence[Number] | Number) -> tuple[Number, ...]:
    """One number or several, as several.

    Args:
        given: a number, or some: layers, horizons, tolerances.

    Returns:
        The numbers.
    """
    return (given,) if isinstance(given, int | float) else tuple(given)
