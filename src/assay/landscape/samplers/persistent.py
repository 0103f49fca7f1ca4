r"""Langevin dynamics that keeps part of its noise from step to step.

A Langevin step is one leapfrog step of length :math:`h = \sqrt\varepsilon` from a momentum drawn anew. Here a share c
of the momentum is kept instead,

.. math:: q = p - \tfrac h2 \nabla U(w), \quad r = c\,q + \sqrt{1 - c^2}\,\xi, \quad
          p' = r - \tfrac h2 \nabla U(w), \quad w' = w + h\,p'

so that c = 0 is stochastic gradient Langevin dynamics, step for step. In a quadratic mode of curvature H the leapfrog
step conserves :math:`H (1 - \varepsilon H / 4) w^2 + p^2`, whatever c; so the draws have the same variance
:math:`1/(H(1 - \varepsilon H/4))` and E[U] the same bias :math:`\frac{\varepsilon}{8} E\lVert\nabla U\rVert^2` as
without momentum, while a flat direction is explored (1 + c) / (1 - c) times as fast. The kept part is the partial
refreshment of A. Horowitz 1991, Physics Letters B 268.

The choice of a batch heats what is kept: with slopes whose covariance is C on top, the bias grows by
:math:`\frac{\varepsilon}{4}\frac{c}{1 - c} \operatorname{tr} C`, which the law above leaves out. So it wants all of the
data in each step.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.landscape.samplers import sgld
from assay.landscape.samplers.sampler import Chance, Potential, Seen


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
        momentum: of unit variance, (chain, d).
    """

    position: Tensor
    momentum: Tensor


def require_share(momentum: float) -> None:
    """Refuse a share of the momentum, kept from step to step, that is not one."""
    if not 0 <= momentum < 1:
        raise BadInput(f"momentum={momentum}: from 0 to below 1, else a chain never forgets.")


@dataclass(frozen=True)
class PersistentSGLD:
    """Langevin dynamics with momentum.

    Attributes:
        momentum: c, the share of the momentum that a step keeps, from 0 to below 1.
    """

    name: ClassVar[str] = "sgld"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ()
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require_share(self.momentum)

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d), with momenta in equilibrium."""
        return State(position, noise)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        point, h, kept = potential(state.position), step_size.sqrt(), self.momentum
        momentum = (state.momentum * kept).addcmul_(point.slope, h, value=-(1 + kept) / 2)
        momentum.add_(chance.noise, alpha=(1 - kept**2) ** 0.5)
        seen = Seen(point, self.bias(step_size[:, 0], point.squared_slope))
        return State(torch.addcmul(state.position, momentum, h), momentum), seen

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]: that of Langevin dynamics without momentum."""
        return sgld.bias(step_size, squared_slope)
