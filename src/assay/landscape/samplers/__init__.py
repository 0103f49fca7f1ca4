"""Samplers of a density exp(-U), each one file: settings, a state, ``init`` and a pure ``step``."""

from typing import Any

from assay.errors import BadInput
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.samplers.sgld import SGLD

SAMPLERS: dict[str, Any] = {each.name: each for each in (SGLD,)}
"""Every sampler by its name."""


def sampler_of(name: str, settings: dict[str, Any] | None = None) -> Sampler:
    """Build a sampler from its name and settings.

    Args:
        name: a key of `SAMPLERS`.
        settings: fields of that sampler; what is not given has its default.

    Raises:
        BadInput: there is no such sampler, or it has no such setting.
    """
    if name not in SAMPLERS:
        raise BadInput(f"sampler {name!r}: there is no such one; samplers are {', '.join(SAMPLERS)}.")
    known = SAMPLERS[name].__dataclass_fields__
    if unknown := sorted(set(settings or {}) - set(known)):
        raise BadInput(
            f"sampler {name!r} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}."
        )
    return SAMPLERS[name](**settings or {})
