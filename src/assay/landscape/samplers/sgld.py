r"""Stochastic gradient Langevin dynamics.

.. math:: w' = w - \frac{\varepsilon}{2} \nabla U(w) + \sqrt{\varepsilon}\,\xi, \qquad \xi \sim N(0, I)

Source: M. Welling and Y. W. Teh 2011, ICML. There is no acceptance step, so the step size biases the draws: in a
quadratic mode of curvature h the variance is :math:`1/(h(1 - \varepsilon h/4))` instead of 1/h, which makes
E[U] too large by :math:`\frac{\varepsilon}{8} E\lVert\nabla U\rVert^2` to first order, minibatch noise included.
"""

from typing import NamedTuple

from torch import Tensor


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
    """

    position: Tensor


def init(position: Tensor) -> State:
    """Begin at a position, (chain, d)."""
    return State(position)


def step(state: State, gradient: Tensor, noise: Tensor, step_size: Tensor) -> State:
    """Take one step of every chain.

    Args:
        state: where the chains are.
        gradient: of the potential U, (chain, d).
        noise: standard normal, (chain, d).
        step_size: epsilon of each chain, (chain, 1).
    """
    return State((noise * step_size.sqrt()).addcmul_(gradient, step_size, value=-0.5).add_(state.position))


def bias(step_size: Tensor, squared_gradient: Tensor) -> Tensor:
    """Give the first-order bias of E[U]: a step size, times the mean of the squared norm of gradients, over 8."""
    return step_size * squared_gradient / 8
