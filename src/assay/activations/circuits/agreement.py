"""How far predicted effects agree with exact ones: which are patched exactly, and what these say."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.estimates.correlation import spearman
from assay.estimates.estimate import Floats, proportion


def first_and_random(predicted: Tensor, allowed: Tensor, count: int, seed: int) -> Tensor:
    """Choose what is patched exactly: first the half with the largest predictions, then others drawn at random.

    Args:
        predicted: of any shape.
        allowed: which of them there are, alike.
        count: how many at most.
        seed: of the random ones.

    Returns:
        Their indices, (chosen, dimension).
    """
    size = torch.where(allowed, predicted.abs(), -1).flatten()
    there = allowed.flatten().nonzero()[:, 0]
    count = min(count, len(there))
    first = size.topk(count // 2).indices
    rest = there[~torch.isin(there, first)]
    generator = torch.Generator().manual_seed(seed)
    drawn = rest[torch.randperm(len(rest), generator=generator)[: count - len(first)]]
    return torch.stack(torch.unravel_index(torch.cat([first, drawn]), predicted.shape), -1)


def agreement(predicted: Floats, exact: Floats, dim: str, seed: int) -> dict[str, Any]:
    """Rank correlation of sizes, and the share of random ones that were missed.

    Missed are those whose exact effect is larger than that of half of those ranked first.

    Args:
        predicted: (chosen,), the first half those ranked first.
        exact: likewise.
        dim: name of their dimension; ``<dim>_missed`` marks the missed.
        seed: of the bootstrap.

    Returns:
        Variables of a dataset.
    """
    top = len(exact) // 2
    sizes = np.abs(predicted), np.abs(exact)
    rank = spearman(*sizes, interval="bootstrap", rng=np.random.default_rng(seed))
    missed = sizes[1] > np.median(sizes[1][:top])
    missed[:top] = False
    share = proportion(int(missed.sum()), len(exact) - top)
    undefined = {"allow_nan": True}  # where nothing varies
    return {
        "rank_correlation": ((), rank.value, undefined),
        "rank_correlation_low": ((), rank.low, undefined),
        "rank_correlation_high": ((), rank.high, undefined),
        f"{dim}_missed": ((dim,), missed),
        "missed_share": ((), share.value),
        "missed_share_low": ((), share.low),
        "missed_share_high": ((), share.high),
    }
