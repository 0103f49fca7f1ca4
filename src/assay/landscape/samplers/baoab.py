r"""Underdamped Langevin dynamics by the BAOAB splitting: no first-order bias, and long strides along flat directions.

With :math:`h = \sqrt\varepsilon` and :math:`c = e^{-\alpha h}`, a step is

.. math:: p \leftarrow p - h \nabla U(w), \quad w \leftarrow w + \tfrac h2 p, \quad
          p \leftarrow c\,p + \sqrt{1 - c^2}\,\xi, \quad w \leftarrow w + \tfrac h2 p

(the two half kicks that meet between steps are one). Source: B. Leimkuhler and C. Matthews 2013, Applied Mathematics
Research eXpress. In a quadratic mode of curvature H the variance of the position is 1/H exactly, for every step size
below the limit of stability :math:`\varepsilon H < 4`; elsewhere the bias is of second order in h.

A direction held by :math:`\gamma` alone is forgotten in about :math:`1/\sqrt{\varepsilon\gamma}` steps, where Langevin
dynamics without momentum needs :math:`1/(\varepsilon\gamma)`.

The choice of the batch heats the chain: slopes whose covariance is C on top make E[U] too large by
:math:`\frac{\varepsilon}{8} \frac{1 + c}{1 - c} \operatorname{tr} C` to first order. What each draw adds to the bias is
read off the momenta after the kick, :math:`\frac{(1 + c)^2}{8} (\lVert p \rVert^2 - d)`; at rest its mean is that of
the virial less d/2, whatever the network.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assay.landscape.samplers.sampler import Chance, Potential, Seen
from assay.landscape.samplers.sghmc import State, require_friction


@dataclass(frozen=True)
class BAOAB:
    """Underdamped Langevin dynamics.

    Attributes:
        friction: alpha, per unit of time (a step takes the root of the step size), above 0. Directions of curvature H
            mix fastest near twice the root of H; on batches a higher one keeps the chain cooler.
    """

    name: ClassVar[str] = "baoab"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("temperature",)
    friction: float = 2.0

    def __post_init__(self) -> None:
        require_friction(self.friction)

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d), with momenta in equilibrium."""
        return State(position, noise, free)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        point, h = potential(state.position), step_size.sqrt()
        kept = torch.exp(-self.friction * h)
        momentum = state.momentum.addcmul(point.slope, -h)
        squared, free = torch.linalg.vecdot(momentum, momentum), state.free[:, 0]
        position = state.position.addcmul(momentum, h / 2)
        momentum = momentum.mul_(kept).addcmul_(chance.noise, (1 - kept**2).sqrt())
        bias = (1 + kept[:, 0]) ** 2 / 8 * (squared - free)
        after = State(position.addcmul_(momentum, h / 2), momentum, state.free)
        return after, Seen(point, bias, (squared / free,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U] on all of the data: none."""
        return torch.zeros_like(step_size * squared_slope)
