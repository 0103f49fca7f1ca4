"""Reading the settings of a sampler, as a mapping or in words."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, cast

from assay.errors import BadInput
from assay.landscape.samplers import SAMPLERS, sampler_of

Setting = bool | int | float
LANGEVIN: Mapping[str, type] = {"momentum": float, "adjusted": bool}
"""Settings of "sgld", whose kinds are several samplers."""


def sampler_settings_of(
    sampler: str, given: Mapping[str, float] | Sequence[str] | str | None, momentum: float | None = None
) -> dict[str, Setting]:
    """Read the settings of a sampler; what is not given it takes by itself (`assay.landscape.defaults.stepping`).

    Args:
        sampler: its name.
        given: settings by name, words such as ``friction=5.0``, or one such word.
        momentum: another way to give that of "sgld".

    Returns:
        Settings by name, in order of the alphabet.

    Raises:
        BadInput: no such sampler or setting, a value of another type, or a setting given twice.
    """
    sampler_of(sampler)
    known = {field.name: field.type for field in fields(SAMPLERS[sampler])} if sampler != "sgld" else LANGEVIN
    pairs = _pairs(given)
    if momentum is not None:
        pairs.append(("momentum", momentum))
    found: dict[str, Setting] = {}
    for name, value in sorted(pairs, key=lambda pair: pair[0]):
        if name not in known:
            raise BadInput(
                f"sampler {sampler!r} has no setting {name!r}; it has {', '.join(known) or 'none'}."
            )
        if name in found:
            raise BadInput(f"{name} of sampler {sampler!r} is given twice: give it once.")
        found[name] = _value(f"{name} of sampler {sampler!r}", value, known[name])
    return found


def _pairs(given: object) -> list[tuple[str, Any]]:
    """Read names and values, of whatever was passed."""
    if isinstance(given, Mapping):
        return list(cast("Mapping[str, Any]", given).items())
    words = [given] if isinstance(given, str) else given or ()
    pairs: list[tuple[str, Any]] = []
    for word in cast("Sequence[object]", words) if isinstance(words, Sequence) else [words]:
        name, equals, value = word.partition("=") if isinstance(word, str) else ("", "", "")
        if not equals:
            raise BadInput(f"sampler_settings has {word!r}: write a name and a value, such as friction=5.0.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _value(name: str, value: Any, kind: Any) -> Setting:
    """Read a value of a type, or a word for it."""
    written = str(value).lower()
    if kind is bool and written in ("true", "false"):
        return written == "true"
    if kind is not bool:
        with suppress(ValueError):
            number = float(written)
            if math.isfinite(number) and (kind is float or number.is_integer()):
                return kind(number)
    expected = "true or false" if kind is bool else "a whole number" if kind is int else "a number"
    raise BadInput(f"{name} is {value!r}: expected {expected}.")
