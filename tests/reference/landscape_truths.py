"""Learning coefficients the slow way: by trying every subset, and by integrating."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def deep_linear_by_subsets(widths: Sequence[int], rank: int) -> set[tuple[float, int]]:
    """Every (lambda, m) that a subset satisfying Aoyagi's three conditions gives; the theorem says: one."""
    excess = [width - rank for width in widths]
    found = set()
    for size in range(2, len(excess) + 1):
        for inside in combinations(range(len(excess)), size):
            chosen = [excess[i] for i in inside]
            others = [excess[i] for i in range(len(excess)) if i not in inside]
            ell, total = size - 1, sum(chosen)
            if total < ell * max(chosen):
                continue
            if others and not (max(chosen) < min(others) and total < ell * min(others)):
                continue
            ceiling = -(-total // ell)
            a = total - (ceiling - 1) * ell
            coefficient = (rank * (widths[0] + widths[-1]) - rank**2) / 2 + a * (ell - a) / (4 * ell)
            coefficient -= ell * (ell - 1) / 4 * (total / ell) ** 2
            coefficient += sum(x * y for x, y in combinations(chosen, 2)) / 2
            found.add((round(coefficient, 9), a * (ell - a) + 1))
    return found


def tempered_excess(powers: Sequence[float], prior_powers: Sequence[float], n_beta: float) -> float:
    """E[n beta K] of K = prod w_i^p_i on the unit cube, by summing over -ln w on a grid, in one dimension.

    With t_i = -ln w_i, K = exp(-sum p_i t_i), and the prior gives each p_i t_i an exponential density of rate
    (h_i + 1) / p_i; the densities of the sum are convolved numerically.
    """
    step = 0.005
    grid = np.arange(0, 120, step)
    density = None
    for power, prior in zip(powers, prior_powers, strict=True):
        rate = (prior + 1) / power
        one = rate * np.exp(-rate * grid)
        if density is None:
            density = one
        else:
            size = 2 * len(grid)
            product = np.fft.irfft(np.fft.rfft(density, size) * np.fft.rfft(one, size), size)
            density = product[: len(grid)] * step
    assert density is not None
    scaled = n_beta * np.exp(-grid)
    weight = density * np.exp(-scaled)
    return float((scaled * weight).sum() / weight.sum())


def crossing_energy(powers: tuple[float, float], n_beta: float, localization: float) -> float:
    """E[n beta K] of K = |w_1|^p_1 |w_2|^p_2 under exp(-n beta K - localization / 2 ||w||^2), on a grid of ln w."""
    logarithm = np.linspace(-30, np.log(9), 4000)
    w = np.exp(logarithm)
    excess = n_beta * w[:, None] ** powers[0] * w[None, :] ** powers[1]
    squared = w[:, None] ** 2 + w[None, :] ** 2
    weight = np.exp(-excess - localization / 2 * squared) * w[:, None] * w[None, :]
    return float((excess * weight).sum() / weight.sum())
