r"""The Metropolis-adjusted Langevin algorithm: a Langevin step on all of the data, accepted or rejected.

.. math:: w' = w - \frac{\varepsilon}{2} \nabla U(w) + \sqrt\varepsilon\,\xi \quad\text{with probability}\quad
          \min\Bigl(1, \frac{e^{-U(w')}\,q(w \mid w')}{e^{-U(w)}\,q(w' \mid w)}\Bigr)

Source: G. Roberts and R. Tweedie 1996, Bernoulli 2. It is exact at every step size; what a large one costs is
acceptance. With :math:`p = \xi - \frac{\sqrt\varepsilon}{2} (\nabla U(w) + \nabla U(w'))` the logarithm of the ratio is
:math:`U(w) - U(w') + \frac12 \lVert \xi \rVert^2 - \frac12 \lVert p \rVert^2`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assay.landscape.samplers.sampler import Chance, Point, Potential, Seen
from assay.landscape.samplers.sgld import moved


class State(NamedTuple):
    """Where the chains are.

    Attributes:
        position: (chain, d).
        point: what is known there; None before the first step.
    """

    position: Tensor
    point: Point | None


@dataclass(frozen=True)
class MALA:
    """The Metropolis-adjusted Langevin algorithm. It has no settings but the step size."""

    name: ClassVar[str] = "mala"
    exact: ClassVar[bool] = True
    reports: ClassVar[tuple[str, ...]] = ("acceptance",)

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
        """Take one step of every chain; see `Sampler`."""
        before = state.point or potential(state.position)
        proposal = moved(state.position, before.slope, chance.noise, step_size)
        after = potential(proposal)
        chosen, acceptance = accept(
            State(state.position, before),
            State(proposal, after),
            log_ratio(before, after, chance.noise, step_size),
            chance,
        )
        return chosen, Seen(before, torch.zeros_like(acceptance), (acceptance,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U]: none."""
        return torch.zeros_like(step_size * squared_slope)


def log_ratio(before: Point, after: Point, noise: Tensor, step_size: Tensor) -> Tensor:
    """Give the logarithm of the acceptance ratio of a Langevin step, (chain,), float64.

    Args:
        before: where it sets out.
        after: where it leads.
        noise: that it was taken with, (chain, d).
        step_size: epsilon, (chain, 1).
    """
    back = noise - step_size.sqrt() / 2 * (before.slope + after.slope)
    # (noise - back)(noise + back) loses less to rounding than a difference of squares
    return before.potential - after.potential + torch.linalg.vecdot(noise - back, noise + back).double() / 2


def accept(before: State, after: State, log_ratio: Tensor, chance: Chance) -> tuple[State, Tensor]:
    """Accept each chain's proposal with probability min(1, e^log_ratio); NaN is never accepted.

    Returns:
        Where the chains are now, and the probability of acceptance, (chain,).
    """
    assert chance.uniform is not None and before.point is not None and after.point is not None
    probability = log_ratio.clamp_max(0).exp().nan_to_num(0.0)
    accepted = chance.uniform[:, 0] < probability

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted if new.ndim == 1 else accepted[:, None], new, old)

    point = Point(*(chosen(new, old) for new, old in zip(after.point, before.point, strict=True)))
    return State(chosen(after.position, before.position), point), probability
