"""Densities with one parameter vector and a known degeneracy, as modules whose loss can be sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormalCrossing(nn.Module):
    r"""The potential K = |w_1|^p_1 |w_2|^p_2 ..., at its minimum w = 0, under the prior |w_1|^h_1 |w_2|^h_2 ...

    Its learning coefficient is the smallest (h_i + 1) / p_i, as often as it is attained. A sampler of the loss knows
    no prior of this kind; so the parameters are :math:`v_i = \mathrm{sign}(w_i)\,|w_i|^{h_i + 1}`, whose prior is flat
    as :math:`dv = (h + 1)\,|w|^h\,dw`, and in which the power of :math:`|v_i|` is :math:`p_i / (h_i + 1)`. Called with
    a batch of n inputs, whatever they are, it gives K for each of them: (n,).

    Args:
        powers: p_i.
        prior_powers: h_i, above -1; all 0 when not given.

    Raises:
        ValueError: when there is no power, there are not as many of both, or a p_i / (h_i + 1) is below 1, where the
            potential has no slope at its minimum.
    """

    weight: nn.Parameter

    def __init__(self, powers: Sequence[float], prior_powers: Sequence[float] | None = None) -> None:
        super().__init__()
        priors = [0.0] * len(powers) if prior_powers is None else prior_powers
        if len(priors) != len(powers) or any(prior <= -1 for prior in priors):
            raise ValueError(f"{powers=}, {prior_powers=}: expected one above -1 for each power")
        _hold(self, [power / (prior + 1) for power, prior in zip(powers, priors, strict=True)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Give K once for each row of ``inputs``, (n, ...) -> (n,)."""
        powers = self.get_buffer("powers")
        return (self.weight.abs() ** powers).prod().expand(len(inputs))


class Separable(nn.Module):
    """The potential K = |w_1|^p_1 + |w_2|^p_2 + ..., at its minimum w = 0.

    Its learning coefficient is the sum of 1 / p_i; with all p_i = 2 it is a Gaussian's, d/2.

    Args:
        powers: p_i.

    Raises:
        ValueError: when there is no power, or one is below 1.
    """

    weight: nn.Parameter

    def __init__(self, powers: Sequence[float]) -> None:
        super().__init__()
        _hold(self, powers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Give K once for each row of ``inputs``, (n, ...) -> (n,)."""
        powers = self.get_buffer("powers")
        return (self.weight.abs() ** powers).sum().expand(len(inputs))


def _hold(module: nn.Module, powers: Sequence[float]) -> None:
    """Give a module its powers and parameters."""
    exponents = torch.tensor([float(power) for power in powers])
    if not len(exponents) or not bool(((exponents >= 1) & exponents.isfinite()).all()):
        raise ValueError(f"powers {exponents.tolist()}: expected one or more, each finite and at least 1")
    module.register_buffer("powers", exponents)
    module.register_parameter("weight", nn.Parameter(torch.zeros(len(exponents))))
