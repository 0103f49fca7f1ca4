"""Horizons within a tolerance, and those that the growth of the residual stream's norm predicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.errors import BadInput
from assay.estimates.estimate import Floats, mean_interval
from assay.models.partial import Recording

SHARES = tuple(float(share) for share in np.geomspace(1.0, 1e-3, 10))
"""Sizes of random directions, as shares of the last stream's norm."""
FIRST_LAYERS = 2
"""Left out of the fit of the growth: the embedding, and what the first block makes of it, are of another scale."""
LEVEL = 0.95


def check_tolerances(tolerances: Sequence[float]) -> None:
    """Refuse tolerances that no divergence stays within, or that are given twice.

    Args:
        tolerances: nats.

    Raises:
        BadInput: none, one that is not positive, or one twice.
    """
    if not tolerances or min(tolerances) <= 0 or len(set(tolerances)) < len(tolerances):
        raise BadInput(f"tolerances={tuple(tolerances)}: give positive numbers of nats, each once")


def norms_of(recording: Recording) -> Tensor:
    """The mean norm of the residual stream, position 0 apart, entering each block and at the end: (row, 2, L + 1)."""
    norm = torch.stack([resid.norm(dim=-1) for resid in recording.resid], -1)  # row, pos, layer
    return torch.stack([norm[:, 0], norm[:, 1:].mean(1)], 1)


def growth_of(norm: Floats) -> Floats:
    """The factor by which norms grow a layer: a straight line through their logarithms, first layers left out.

    Args:
        norm: (..., layer).

    Returns:
        (...).
    """
    first = min(FIRST_LAYERS, norm.shape[-1] - 2)
    layers = np.arange(first, norm.shape[-1])
    centred = layers - layers.mean()
    return np.asarray(np.exp((np.log(norm[..., first:]) * centred).sum(-1) / (centred**2).sum()))


def smallest_horizon(kl: Floats, horizons: Sequence[int], tolerance: float) -> Floats:
    """The smallest k from which on the KL stays within a tolerance.

    Args:
        kl: (..., horizon), nats.
        horizons: the k, ascending.
        tolerance: nats.

    Returns:
        (...); one more than the largest k where even that is not enough.
    """
    within = np.flip(np.logical_and.accumulate(np.flip(kl <= tolerance, -1), -1), -1)
    ends = np.array([*horizons, horizons[-1] + 1], dtype=np.float64)
    return np.asarray(ends[len(horizons) - within.sum(-1)])


def predicted_horizon(growth: Floats, disturbed: Floats, tolerance: float) -> Floats:
    """The number of layers in which the stream outgrows a share of itself that does no more than a tolerance.

    Args:
        growth: factor a layer, (...).
        disturbed: KL of random directions of the sizes :data:`SHARES`, (..., share), nats.
        tolerance: nats.

    Returns:
        Layers, (...); infinite where the stream does not grow or no share is small enough.
    """
    logs = np.log(np.maximum(disturbed, 1e-12))
    wanted = np.log(tolerance)
    flat = logs.reshape(-1, logs.shape[-1])
    share = np.array([_crossing(row, float(wanted)) for row in flat]).reshape(logs.shape[:-1])
    grows = growth > 1
    layers = np.divide(np.abs(share), np.log(growth, where=grows, out=np.ones_like(growth)))
    return np.where(grows, layers, np.inf)


def _crossing(logs: Floats, wanted: float) -> float:
    """The logarithm of the largest share whose KL is within the tolerance, between two of them on a straight line."""
    shares = np.log(SHARES)
    if logs[0] <= wanted:
        return 0.0
    if logs[-1] > wanted:
        return -np.inf
    after = int(np.argmax(logs <= wanted))
    part = (logs[after - 1] - wanted) / (logs[after - 1] - logs[after])
    return float(shares[after - 1] + part * (shares[after] - shares[after - 1]))


def horizon_variables(
    kl: Floats,
    horizons: Sequence[int],
    norm: Floats,
    disturbed: Floats,
    tolerances: Sequence[float],
    *,
    a_block: int,
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Horizons, norms, growth and predictions, with percentile intervals of a bootstrap over inputs.

    Args:
        kl: (input, horizon).
        horizons: the k, ascending.
        norm: (input, 2, layer).
        disturbed: (input, share).
        tolerances: nats.
        a_block: steps of k in one block.
        resamples: of the bootstrap.
        rng: draws the resamples.

    Returns:
        Variables; of one input without intervals.
    """
    one = len(kl) == 1
    draws = rng.integers(len(kl), size=(1 if one else resamples, len(kl)))
    whole = np.arange(len(kl))[None]
    means = {
        rows: (kl[chosen].mean(1), norm[chosen].mean(1), disturbed[chosen].mean(1))
        for rows, chosen in (("value", whole), ("drawn", draws))
    }
    found: dict[str, Any] = {}

    def add(name: str, dims: tuple[str, ...], value: Floats, drawn: Floats) -> None:
        found[name] = (dims, np.where(np.isfinite(value), value, np.nan), {"allow_nan": True})
        if not one:
            tails = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
            found[f"{name}_low"], found[f"{name}_high"] = (
                (dims, np.where(np.isfinite(end), end, np.nan), {"allow_nan": True}) for end in tails
            )

    def all_of(rows: str) -> tuple[Floats, Floats, Floats]:
        k, n, d = means[rows]
        growth = growth_of(n[:, 1])
        smallest = np.stack([smallest_horizon(k, horizons, t) for t in tolerances], -1)
        predicted = np.stack([a_block * predicted_horizon(growth, d, t) for t in tolerances], -1)
        return growth, smallest, predicted

    value, drawn = all_of("value"), all_of("drawn")
    add("growth", (), np.asarray(value[0][0]), drawn[0])
    add("smallest_horizon", ("within",), value[1][0], drawn[1])
    add("predicted_horizon", ("within",), value[2][0], drawn[2])
    for name, dims, samples in (("norm", ("place", "layer"), norm), ("disturbed", ("share",), disturbed)):
        for part, values in zip(("", "_stderr"), mean_interval(samples), strict=False):
            if not (part and one):
                found[f"{name}{part}"] = (dims, values)
    return found
