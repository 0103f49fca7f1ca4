r"""The singular fluctuation: how much the loss of each example varies over the posterior.

.. math:: \nu = \frac{\beta}{2} \sum_i \mathrm{Var}_w[\ell_i(w)]

where :math:`\ell_i` is the loss of example i (a negative log likelihood, summed over tokens) and
:math:`\beta = n\beta / n`. It is d/2 in a regular model, and WAIC's penalty. Source: S. Watanabe 2010, JMLR 11:3571.
"""

import copy

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from assay.landscape.chains import Walker
from assay.landscape.target import Target

APART = 25
"""Steps between two draws that are looked at."""


def fluctuation(target: Target, walking: Walker, draws: int, beta: float) -> Tensor:
    """Walk on, and estimate the singular fluctuation from each chain.

    Args:
        target: what is sampled.
        walking: chains at rest.
        draws: looked at in each chain, at least 2.
        beta: inverse temperature.

    Returns:
        (chain,), float64.
    """
    each: list[Tensor] = []
    for _ in range(draws):
        walking.advance(APART)
        each.append(torch.stack([losses(target, flat) for flat in walking.position]))
    return beta / 2 * torch.stack(each).var(0, correction=1).sum(1)


def losses(target: Target, flat: Tensor) -> Tensor:
    """Give the loss of every example at weights (d,), summed over tokens: (n,), float64."""
    shared = {id(part): part for part in target.module.buffers()}
    module = copy.deepcopy(target.module, shared).eval()
    here = dict(module.named_parameters())
    vector_to_parameters(flat, [here[name] for name in target.parameters])
    with torch.no_grad():
        parts = [target.loss(module, block) for block in target.blocks()]
    return torch.cat(
        [part.double().flatten(1).sum(1) if part.ndim > 1 else part.double() for part in parts]
    ).cpu()
