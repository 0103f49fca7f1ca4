r"""Stochastic gradient Hamiltonian Monte Carlo: momentum, friction, and noise that makes up for what batches add.

With :math:`h = \sqrt\varepsilon` and :math:`a = 1 - e^{-\alpha h}`, the part of the momentum lost in a step,

.. math:: p' = (1 - a)\,p - h \nabla U(w) + \sqrt{2 (a - \hat b)}\,\xi, \qquad w' = w + h\,p', \qquad
          \hat b = \varepsilon \hat C / 2

Source: T. Chen, E. Fox and C. Guestrin 2014, ICML (their v is hp, their eta :math:`\varepsilon`). :math:`\hat C` is the
variance of a coordinate of the slope that comes from the choice of the batch.

In a quadratic mode of curvature H, with true variance C of the slope, the variance is

.. math:: \frac{1 + \varepsilon\,(C - \hat C) / (2a)}{H\,(1 - \varepsilon H / (2(2 - a)))}

so that E[U] is too large by :math:`\frac{\varepsilon}{4 (2 - a)} E\lVert\nabla U\rVert^2` on all of the data; with
batches by far more, unless the friction is high or :math:`\hat C` good. What each draw adds to the bias is read off
the momenta, :math:`\frac{2 - a}{4} \lVert p \rVert^2 - \frac d2`, which counts both: at rest its mean is that of the
virial less d/2, whatever the network.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.landscape.samplers.sampler import Chance, Potential, Seen


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
        momentum: of unit variance, (chain, d).
        free: number of coordinates that move, (chain, 1).
    """

    position: Tensor
    momentum: Tensor
    free: Tensor


@dataclass(frozen=True)
class SGHMC:
    """Stochastic gradient Hamiltonian Monte Carlo.

    Attributes:
        friction: alpha, per unit of time (a step takes the root of the step size), above 0.
        noise: C, the variance of a coordinate of the slope of U by the choice of the batch; 0 on all of the data.
            More of it than the friction takes away in a step is not made up for.
    """

    name: ClassVar[str] = "sghmc"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("temperature",)
    friction: float = 10.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        require_friction(self.friction)
        if not self.noise >= 0:
            raise BadInput(f"noise={self.noise}: a variance is not negative.")

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
        lost = -torch.expm1(-self.friction * h)
        spread = (2 * (lost - step_size * self.noise / 2)).clamp_min(0).sqrt()
        momentum = (state.momentum * (1 - lost)).addcmul_(point.slope, -h).addcmul_(chance.noise, spread)
        squared = torch.linalg.vecdot(state.momentum, state.momentum)
        free = state.free[:, 0]
        bias = (2 - lost[:, 0]) / 4 * squared - free / 2
        after = State(state.position.addcmul(momentum, h), momentum, state.free)
        return after, Seen(point, bias, (squared / free,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U] on all of the data."""
        return step_size * squared_slope / (4 * (1 + torch.exp(-self.friction * step_size.sqrt())))


def require_friction(friction: float) -> None:
    """Refuse a friction that is not positive."""
    if not friction > 0:
        raise BadInput(f"friction={friction}: it must be above 0, else a chain never forgets.")
