r"""The stochastic gradient Nosé-Hoover thermostat: friction that finds by itself how much noise the batches add.

.. math:: dw = p\,dt, \qquad dp = -\nabla U\,dt - \xi p\,dt + \sqrt{2A}\,dW, \qquad
          d\xi = \frac1\mu \Bigl(\frac{\lVert p \rVert^2}{d} - 1\Bigr) dt

The friction :math:`\xi` rises where the momenta are hotter than 1, and so takes away whatever heat the choice of
the batch adds, provided it is the same in all directions. Source: N. Ding et al. 2014, NeurIPS; the steps are those of
the symmetric splitting of B. Leimkuhler and X. Shang 2016, SIAM Journal on Scientific Computing 38 (kick, half move,
half thermostat, friction and noise exactly, half thermostat, half move), :math:`h = \sqrt\varepsilon` long. The scheme
of the first paper has a bias of order h in E[U]; this one has none in a quadratic potential, and elsewhere one of order
:math:`h^2`. Where batches heat some directions more than others, the mean temperature is right and single ones are
not.
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
        friction: xi, (chain, 1).
        free: number of coordinates that move, (chain, 1).
    """

    position: Tensor
    momentum: Tensor
    friction: Tensor
    free: Tensor


@dataclass(frozen=True)
class SGNHT:
    """Stochastic gradient thermostat.

    Attributes:
        diffusion: A, of the noise put in, per unit of time (a step takes the root of the step size), above 0. On all
            of the data the friction settles there, with batches above it.
        inertia: mu, of the thermostat, in units of time squared, above 0; small, it answers fast.
    """

    name: ClassVar[str] = "sgnht"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("temperature", "friction")
    diffusion: float = 2.0
    inertia: float = 1.0

    def __post_init__(self) -> None:
        for name in ("diffusion", "inertia"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name}={getattr(self, name)}: it must be above 0.")

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d), with momenta and friction in equilibrium."""
        return State(position, noise, torch.full_like(free, self.diffusion), free)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        point, h = potential(state.position), step_size.sqrt()
        momentum = state.momentum.addcmul(point.slope, -h)
        position = state.position.addcmul(momentum, h / 2)
        temperature = _temperature(momentum, state.free)
        friction = state.friction + h / (2 * self.inertia) * (temperature - 1)
        momentum = momentum.mul_(torch.exp(-friction * h))
        momentum = momentum.addcmul_(chance.noise, self._spread(friction, h))
        friction = friction + h / (2 * self.inertia) * (_temperature(momentum, state.free) - 1)
        after = State(position.addcmul_(momentum, h / 2), momentum, friction, state.free)
        nothing = torch.zeros_like(point.loss)
        return after, Seen(point, nothing, (temperature[:, 0], friction[:, 0]))

    def _spread(self, friction: Tensor, h: Tensor) -> Tensor:
        """Give the standard deviation of what the noise adds in a step; the friction may be 0 or negative."""
        twice = 2 * friction * h
        ratio = torch.where(twice.abs() < 1e-4, 1 - twice / 2, -torch.expm1(-twice) / twice)
        return (2 * self.diffusion * h * ratio).sqrt()

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]: none, where batches heat all directions alike."""
        return torch.zeros_like(step_size * squared_slope)


def _temperature(momentum: Tensor, free: Tensor) -> Tensor:
    """Give the mean square of the momenta that move, (chain, 1)."""
    return torch.linalg.vecdot(momentum, momentum)[:, None] / free.clamp_min(1)
