"""What a run takes where nothing is set: by which steps, how many examples in a batch, how many steps."""

from collections.abc import Mapping
from typing import Any

from assay.landscape.gradients import rows_of_everything
from assay.landscape.samplers import sampler_of
from assay.landscape.samplers.adjusted import AdjustedSGLD
from assay.landscape.samplers.persistent import PersistentSGLD
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.target import Target

MOMENTUM = 0.9
"""Share of the momentum kept on all of the data: flat directions are explored 19 times as fast."""
EXACT = 32
"""Parameters up to which each step is accepted or rejected.

With the bias tolerated, epsilon H is 0.2 where all directions are alike; there so many make a mean energy error of
0.2^3 d / 32 = 0.008, which refuses one step in twenty: momentum that turns round so often reaches half as far.
"""
BATCH_WORK = 1e8
"""Examples (or tokens) times parameters up to which each step takes all of the data."""
STEPS, WORK = (2_000, 20_000), 1e12
"""Fewest and most steps of a chain, and the parameters times examples times chains that a budget pays for."""


def stepping(name: str, settings: Mapping[str, Any], parameters: int, batch: int | None) -> Sampler:
    """Build a sampler; of "sgld" the kind that suits the size of what is sampled.

    Args:
        name: of the sampler.
        settings: as `assay.landscape.samplers.settings.sampler_settings_of` gives them.
        parameters: that are sampled.
        batch: examples in a batch; None for all of the data.

    Raises:
        BadInput: a setting out of range.
    """
    if name != "sgld":
        return sampler_of(name, settings)
    kept = settings.get("momentum", 0.0 if batch else MOMENTUM)
    if settings.get("adjusted", batch is None and kept > 0 and parameters <= EXACT):
        return AdjustedSGLD(kept)
    return PersistentSGLD(kept) if kept else sampler_of("sgld")


def cheap_batch(model: Target) -> int | None:
    """Give as many examples as are cheap, between 16 and 512; None where all of the data are."""
    if work(model, None) <= BATCH_WORK:
        return None
    return min(model.n, max(16, min(512, int(BATCH_WORK / work(model, 1)))))


def affordable_steps(model: Target, examples: int | None, chains: int) -> int:
    """Give the steps of each chain that a budget of work allows."""
    fewest, most = STEPS
    return int(min(most, max(fewest, WORK / (work(model, examples) * chains))))


def work(model: Target, examples: int | None) -> int:
    """Give the parameters times the examples (or tokens) of a step of one chain; None for all of the data."""
    each = model.data[0][0]
    tokens = 1 if each.is_floating_point() else max(1, each.numel())
    return model.d * tokens * (rows_of_everything(model) if examples is None else examples)
