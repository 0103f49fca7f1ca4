"""Densities with one parameter vector and a known degeneracy, as modules whose loss can be sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalCrossing(nn.Module):
    """The potential K = |w_1|^p_1 |w_2|^p_2 ..., at its minimum w = 0.

    Its learning coefficient is the smallest 1 / p_i, as often as it is attained. Called with a batch of n
    inputs, whatever they are, it gives K for each of them: (n,).
    """

    def __init__(self, powers: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("powers", torch.tensor([float(power) for power in powers]))
        self.weight = nn.Parameter(torch.zeros(len(powers)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Give K once for each row of ``inputs``, (n, ...) -> (n,)."""
        powers = self.get_buffer("powers")
        return (self.weight.abs() ** powers).prod().expand(len(inputs))


class Separable(nn.Module):
    """The potential K = |w_1|^p_1 + |w_2|^p_2 + ..., at its minimum w = 0.

    Its learning coefficient is the sum of 1 / p_i; with all p_i = 2 it is a Gaussian's, d/2.
    """

    def __init__(self, powers: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("powers", torch.tensor([float(power) for power in powers]))
        self.weight = nn.Parameter(torch.zeros(len(powers)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Give K once for each row of ``inputs``, (n, ...) -> (n,)."""
        powers = self.get_buffer("powers")
        return (self.weight.abs() ** powers).sum().expand(len(inputs))
