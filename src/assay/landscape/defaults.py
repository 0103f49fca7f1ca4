"""What a run takes where nothing is set: how many examples in a batch, how many steps, how much momentum."""

from assay.landscape.gradients import everything
from assay.landscape.target import Target

MOMENTUM = 0.9
"""Share of the momentum kept on all of the data: flat directions are explored 19 times as fast."""
BATCH_WORK = 1e8
"""Examples (or tokens) times parameters up to which each step takes all of the data."""
STEPS, WORK = (2_000, 20_000), 1e12
"""Fewest and most steps of a chain, and the parameters times examples times chains that a budget pays for."""


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
    return model.d * tokens * (everything(model)[0].shape[1] if examples is None else examples)
