r"""Langevin dynamics with momentum on all of the data, each step accepted or rejected.

.. math:: p = c\,p_0 + \sqrt{1 - c^2}\,\xi, \quad p' = p - \tfrac h2 \nabla U(w), \quad w' = w + h\,p', \quad
          p_1 = p' - \tfrac h2 \nabla U(w')

with :math:`h = \sqrt\varepsilon`; accepted with probability :math:`\min(1, e^{-\Delta(U + \lVert p \rVert^2 / 2)})`,
else the chain stays and its momentum turns round: :math:`-p`. Source: A. Horowitz 1991, Physics Letters B 268. It is
exact at every step size, in whatever potential; it costs one gradient a step, as the same without the test does
(`assay.landscape.samplers.persistent`). At c = 0 it is MALA, step for step.

What it costs in many dimensions is reach, since a momentum that turns round is lost. In d directions of curvature H
the mean energy error of a step is :math:`d\,(\varepsilon H)^3 / 32` to leading order.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assay.landscape.samplers import mala
from assay.landscape.samplers.persistent import require_share
from assay.landscape.samplers.sampler import Chance, Point, Potential, Seen


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
        momentum: of unit variance, (chain, d).
        point: what is known there; None before the first step.
    """

    position: Tensor
    momentum: Tensor
    point: Point | None


@dataclass(frozen=True)
class AdjustedSGLD:
    """Langevin dynamics with momentum that accepts or rejects.

    Attributes:
        momentum: c, the share of the momentum that a step keeps, from 0 to below 1.
    """

    name: ClassVar[str] = "sgld"
    exact: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("acceptance",)
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require_share(self.momentum)

    @property
    def warm_up(self) -> int:
        """None."""
        return 0

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d), with momenta in equilibrium."""
        return State(position, noise, None)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        before, h = state.point or potential(state.position), step_size.sqrt()
        begun = torch.add(state.momentum * self.momentum, chance.noise, alpha=(1 - self.momentum**2) ** 0.5)
        half = begun.addcmul(before.slope, h, value=-0.5)
        proposal = state.position.addcmul(half, h)
        after = potential(proposal)
        ended = half.addcmul_(after.slope, h, value=-0.5)
        # (a - b)(a + b) loses less to rounding than a difference of squares
        spent = torch.linalg.vecdot(begun - ended, begun + ended).double() / 2
        chosen, acceptance = mala.accept(
            mala.State(state.position, before),
            mala.State(proposal, after),
            before.potential - after.potential + spent,
            chance,
        )
        assert chance.uniform is not None
        accepted = (chance.uniform[:, 0] < acceptance)[:, None]  # as `mala.accept` decides
        now = State(chosen.position, torch.where(accepted, ended, -begun), chosen.point)
        return now, Seen(before, torch.zeros_like(acceptance), (acceptance,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]: none."""
        return torch.zeros_like(step_size * squared_slope)
