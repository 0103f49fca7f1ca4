r"""An exact sampler for deep linear networks: the oracle that other samplers are judged by.

The localized posterior of a deep linear network,

.. math:: p(w) \propto \exp\bigl(-n\beta\,\lVert (W_L \cdots W_1 - P)\,S \rVert^2
          - \tfrac{\gamma}{2} \lVert w - w^* \rVert^2\bigr), \qquad S S^T = E[x x^T],

is Gaussian in each layer when the others are held. With A the product of the layers after layer l, and B of those
before, times S, the precision of :math:`W_l` is :math:`2 n\beta\,(B B^T \otimes A^T A) + \gamma I`; it is diagonal in
the eigenbases of :math:`A^T A` and :math:`B B^T`, so a layer is drawn exactly in one go. There is no step size and no
bias; in practice hardly any autocorrelation. Computed in float64. Cost of a sweep: two eigendecompositions a layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gibbs(
    anchor: Sequence[Tensor],
    *,
    n_beta: float,
    localization: float = 1.0,
    covariance: Tensor | None = None,
    chains: int = 16,
    sweeps: int = 400,
    burn_in: int = 100,
    generator: torch.Generator,
) -> Tensor:
    """Sample the localized posterior of a deep linear network around weights that realise the target.

    Args:
        anchor: w*, one (output, input) tensor a layer; the target P is their product.
        n_beta: number of samples times inverse temperature.
        localization: gamma, the precision of the Gaussian around the anchor.
        covariance: E[x x^T] of the inputs, (d_0, d_0), positive definite; the identity when not given.
        chains: independent chains, drawn together.
        sweeps: draws kept of each chain.
        burn_in: sweeps thrown away before them.
        generator: on the processor.

    Returns:
        n_beta times the excess loss at each draw, (chain, sweep), float64: its mean is the learning coefficient.
    """
    anchors = [layer.double() for layer in anchor]
    root = torch.eye(anchors[0].shape[1], dtype=torch.float64)
    if covariance is not None:
        root = torch.linalg.cholesky(covariance.double())
    target = root
    for layer in anchors:
        target = layer @ target
    layers = [layer.expand(chains, *layer.shape).clone() for layer in anchors]
    excess = torch.empty(chains, sweeps, dtype=torch.float64)
    for sweep in range(-burn_in, sweeps):
        before = root.expand(chains, *root.shape)
        after = _products_after(layers)
        for index, layer in enumerate(layers):
            noise = torch.randn(layer.shape, generator=generator, dtype=torch.float64)
            layers[index] = _draw(
                after[index], before, target, anchors[index], 2 * n_beta, localization, noise
            )
            before = layers[index] @ before
        if sweep >= 0:
            excess[:, sweep] = n_beta * (before - target).square().sum((-2, -1))
    return excess


def _products_after(layers: list[Tensor]) -> list[Tensor]:
    """Multiply, for each layer, those after it: (chain, d_L, d_l)."""
    outputs = layers[-1].shape[-2]
    whole = torch.eye(outputs, dtype=torch.float64).expand(len(layers[0]), outputs, outputs)
    products = [whole]
    for layer in reversed(layers[1:]):
        whole = whole @ layer
        products.append(whole)
    return products[::-1]


def _draw(
    after: Tensor,
    before: Tensor,
    target: Tensor,
    anchor: Tensor,
    strength: float,
    localization: float,
    noise: Tensor,
) -> Tensor:
    """Draw one layer given the others, (chain, d_l, d_{l-1}), in the eigenbases of its precision."""
    from_left, left = torch.linalg.eigh(after.mT @ after)
    from_right, right = torch.linalg.eigh(before @ before.mT)
    curvature = from_left.clamp_min(0)[:, :, None] * from_right.clamp_min(0)[:, None, :]
    precision = strength * curvature + localization
    pull = strength * (after.mT @ target @ before.mT) + localization * anchor
    rotated = (left.mT @ pull @ right) / precision + noise * precision.rsqrt()
    return left @ rotated @ right.mT
