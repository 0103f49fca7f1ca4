r"""Preconditioned stochastic gradient Langevin dynamics, with a preconditioner that is estimated and then frozen.

.. math:: w' = w - \frac{\varepsilon}{2} G \nabla U(w) + \sqrt{\varepsilon G}\,\xi, \qquad
          G_i \propto \frac{1}{\delta\,\bar s + s_i}, \qquad s_i = \sqrt{E[(\partial_i U)^2]}

Source: C. Li, C. Chen, D. Carlson and L. Carin 2016, AAAI, where G changes at every step and a term
:math:`\sum_j \partial_j G_{ij}` is needed to keep the density; implementations leave it out, and are biased. Here the
first ``adapt`` steps are plain Langevin steps. The mean square of the slopes over their second half gives G, which
does not change after that, so that no term is missing.

G is scaled so that :math:`\sum_i G_i s_i^2 = \sum_i s_i^2`: the step size then means what it means without
preconditioner, since the first-order bias :math:`\frac{\varepsilon}{8} E \sum_i G_i\,(\partial_i U)^2` is the same,
while flat directions are walked faster.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.landscape.samplers.sampler import Chance, Potential, Seen
from assay.landscape.samplers.sgld import bias


class State(NamedTuple):
    """Where the chains are, and how they are preconditioned.

    Attributes:
        position: (chain, d).
        scale: G, (chain, d).
        root: of G, (chain, d); taking it anew at each step costs as much as the noise.
        squares: sum of squared slopes so far, (chain, d).
        start: where they began, the anchor, (chain, d).
        free: number of coordinates that move, (chain, 1).
        taken: steps so far.
    """

    position: Tensor
    scale: Tensor
    root: Tensor
    squares: Tensor
    start: Tensor
    free: Tensor
    taken: int


@dataclass(frozen=True)
class PSGLD:
    """Preconditioned Langevin dynamics.

    Attributes:
        adapt: steps before the preconditioner is frozen, at least 2; they belong to the burn-in.
        damping: delta, in units of the root mean square slope: directions that are flatter than this are not
            walked any faster. Above 0; large, it is plain Langevin dynamics.
    """

    name: ClassVar[str] = "psgld"
    exact: ClassVar[bool] = False
    reports: ClassVar[tuple[str, ...]] = ("scaled_virial",)
    adapt: int = 200
    damping: float = 0.1

    def __post_init__(self) -> None:
        if self.adapt < 2:
            raise BadInput(f"adapt={self.adapt}: the preconditioner is estimated from at least 2 steps.")
        if not self.damping > 0:
            raise BadInput(f"damping={self.damping}: it must be above 0.")

    @property
    def warm_up(self) -> int:
        """Steps before the preconditioner is frozen."""
        return self.adapt

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> State:
        """Begin at a position, (chain, d), without preconditioner."""
        one = torch.ones_like(position)
        return State(position, one, one, torch.zeros_like(position), position, free, 0)

    def step(
        self, state: State, potential: Potential, chance: Chance, step_size: Tensor
    ) -> tuple[State, Seen]:
        """Take one step of every chain; see `Sampler`."""
        point = potential(state.position)
        scale, root, squares = state.scale, state.root, state.squares
        if self.adapt // 2 <= state.taken < self.adapt:
            squares = squares.addcmul(point.slope, point.slope)
        elif state.taken == self.adapt:
            scale = preconditioner(squares, state.free, self.damping)
            root, squares = scale.sqrt(), squares[:, :0]  # the sums are of no more use
        scaled = point.slope * scale
        virial = torch.linalg.vecdot(state.position - state.start, scaled) / 2
        position = state.position.addcmul(chance.noise * root, step_size.sqrt())
        position = position.addcmul_(scaled, step_size, value=-0.5)
        after = State(position, scale, root, squares, state.start, state.free, state.taken + 1)
        added = bias(step_size[:, 0], torch.linalg.vecdot(point.slope, scaled))
        return after, Seen(point, added, (virial,))

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U], from the squared norm of slopes weighted by G."""
        return bias(step_size, squared_slope)


def preconditioner(squares: Tensor, free: Tensor, damping: float) -> Tensor:
    """Give G, (chain, d), from sums of squared slopes (chain, d) and the number of coordinates that move."""
    slopes, total = squares.sqrt(), squares.sum(1, keepdim=True)
    scale = 1 / (damping * (total / free).sqrt() + slopes)
    scale = scale * (total / (scale * squares).sum(1, keepdim=True))
    return scale.where(total > 0, 1.0)  # a chain without any slope has nothing to go by
