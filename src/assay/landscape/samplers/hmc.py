r"""Hamiltonian Monte Carlo on all of the data: a trajectory of leapfrog steps, accepted or rejected as a whole.

.. math:: p \leftarrow p - \tfrac h2 \nabla U(w), \quad w \leftarrow w + h\,p, \quad
          p \leftarrow p - \tfrac h2 \nabla U(w)

repeated, with :math:`h = \sqrt\varepsilon` and fresh momenta at the start; accepted with probability
:math:`\min(1, e^{-\Delta(U + \lVert p \rVert^2 / 2)})`. Source: S. Duane et al. 1987, Physics Letters B 195; R. Neal
2011. It is exact at every step size. One leapfrog step is MALA. The length of a step is drawn anew for each
trajectory, independently of where the chain is, since a fixed one never mixes directions whose period divides it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.landscape.samplers.mala import State, accept
from assay.landscape.samplers.sampler import Chance, Potential, Seen


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo.

    Attributes:
        leapfrog: steps, and so gradients, of a trajectory, at least 1.
        jitter: the length of a step varies by this share up and down, in [0, 1).
    """

    name: ClassVar[str] = "hmc"
    exact: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("acceptance",)
    leapfrog: int = 10
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.leapfrog < 1:
            raise BadInput(f"leapfrog={self.leapfrog}: a trajectory has at least 1 step.")
        if not 0 <= self.jitter < 1:
            raise BadInput(f"jitter={self.jitter}: it must be at least 0 and below 1.")

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d)."""
        return State(position, None)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Walk one trajectory of every chain; see `Sampler`."""
        assert chance.uniform is not None
        before = state.point or potential(state.position)
        h = step_size.sqrt() * (1 + self.jitter * (2 * chance.uniform[:, 1:] - 1))
        point, position = before, state.position
        momentum = chance.noise.addcmul(before.slope, -h / 2)
        for left in range(self.leapfrog - 1, -1, -1):
            position = position.addcmul(momentum, h)
            point = potential(position)
            momentum = momentum.addcmul_(point.slope, -h if left else -h / 2)
        # (a - b)(a + b) loses less to rounding than a difference of squares
        spent = torch.linalg.vecdot(chance.noise - momentum, chance.noise + momentum).double() / 2
        chosen, acceptance = accept(
            State(state.position, before),
            State(position, point),
            before.potential - point.potential + spent,
            chance,
        )
        return chosen, Seen(before, torch.zeros_like(acceptance), (acceptance,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]: none."""
        return torch.zeros_like(step_size * squared_slope)
