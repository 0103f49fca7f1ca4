r"""The singular fluctuation: how much the loss of each example varies over the posterior.

.. math:: \nu = \frac{\beta}{2} \sum_i \mathrm{Var}_w[\ell_i(w)]

where :math:`\ell_i` is the loss of example i, a negative log likelihood, summed over its T tokens. Chains sample the
mean over all tokens at :math:`n\beta`, so that the sum has the inverse temperature :math:`\beta = n\beta / (nT)`. Where
a look at the anchor does not go through all examples, those it goes through stand for all. It is d/2 in a regular
model, and WAIC's penalty. Source: S. Watanabe 2010, JMLR 11:3571.
"""

import torch
from torch import Tensor

from assay.landscape.chains import Walker
from assay.landscape.minimum import each_loss
from assay.landscape.target import Target

APART = 25
"""Steps between two draws that are looked at."""


def fluctuation(target: Target, walking: Walker, draws: int, n_beta: float) -> Tensor:
    """Walk on, and estimate the singular fluctuation from each chain.

    Args:
        target: what is sampled.
        walking: chains at rest.
        draws: looked at in each chain, at least 2.
        n_beta: number of samples times inverse temperature.

    Returns:
        (chain,), float64.
    """
    sums: list[Tensor] = []
    tokens = 1
    for _ in range(draws):
        walking.advance(APART)
        each = [each_loss(target, flat[None]).view(target.seen, -1) for flat in walking.position]
        tokens = each[0].shape[1]
        sums.append(torch.stack([part.sum(1) for part in each]).cpu())
    return n_beta / tokens / 2 * torch.stack(sums).var(0, correction=1).mean(1)
