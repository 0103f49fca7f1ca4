"""Samplers of a density exp(-U), each one file: settings, a state, ``init`` and a pure ``step``."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from assay.errors import BadInput
from assay.landscape.samplers.baoab import BAOAB
from assay.landscape.samplers.hmc import HMC
from assay.landscape.samplers.mala import MALA
from assay.landscape.samplers.psgld import PSGLD
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.samplers.sghmc import SGHMC
from assay.landscape.samplers.sgld import SGLD
from assay.landscape.samplers.sgnht import SGNHT

SAMPLERS: dict[str, Any] = {each.name: each for each in (SGLD, PSGLD, SGHMC, SGNHT, BAOAB, MALA, HMC)}
"""Every sampler by its name."""


def sampler_of(name: str, settings: Mapping[str, Any] | None = None) -> Sampler:
    """Build a sampler from its name and settings.

    Args:
        name: a key of `SAMPLERS`.
        settings: fields of that sampler; what is not given has its default.

    Raises:
        BadInput: there is no such sampler, or it has no such setting.
    """
    if name not in SAMPLERS:
        raise BadInput(f"sampler {name!r}: there is no such one; samplers are {', '.join(SAMPLERS)}.")
    known = [field.name for field in fields(SAMPLERS[name])]
    if unknown := sorted(set(settings or {}) - set(known)):
        raise BadInput(
            f"sampler {name!r} has no setting {', '.join(unknown)}; it has {', '.join(known) or 'none'}."
        )
    return SAMPLERS[name](**settings or {})
