r"""Stochastic gradient Langevin dynamics.

.. math:: w' = w - \frac{\varepsilon}{2} \nabla U(w) + \sqrt{\varepsilon}\,\xi, \qquad \xi \sim N(0, I)

Source: M. Welling and Y. W. Teh 2011, ICML. There is no acceptance step, so the step size biases the draws: in a
quadratic mode of curvature h the variance is :math:`1/(h(1 - \varepsilon h/4))` instead of 1/h, which makes
E[U] too large by :math:`\frac{\varepsilon}{8} E\lVert\nabla U\rVert^2` to first order, minibatch noise included.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from assay.landscape.samplers.sampler import Chance, Potential, Seen


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
    """

    position: Tensor


@dataclass(frozen=True)
class SGLD:
    """Stochastic gradient Langevin dynamics. It has no settings but the step size."""

    name: ClassVar[str] = "sgld"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ()

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d)."""
        return State(position)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        point = potential(state.position)
        return State(moved(state.position, point.slope, chance.noise, step_size)), Seen(
            point, bias(step_size[:, 0], point.squared_slope)
        )

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]; see `bias`."""
        return bias(step_size, squared_slope)


def moved(position: Tensor, slope: Tensor, noise: Tensor, step_size: Tensor) -> Tensor:
    """Give where a Langevin step leads, (chain, d)."""
    return position.addcmul(noise, step_size.sqrt()).addcmul_(slope, step_size, value=-0.5)


def bias(step_size: Tensor, squared_slope: Tensor) -> Tensor:
    """Give the first-order bias of E[U]: a step size, times the mean of the squared norm of slopes, over 8."""
    return step_size * squared_slope / 8
