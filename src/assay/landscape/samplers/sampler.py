r"""What a sampler is: a state, and a pure step from it to the next.

A sampler draws from :math:`\exp(-U)`. It sees the potential through a function from positions to a `Point`, and
chance through numbers handed to it, so that a step is a function of its arguments alone. All chains step together,
each row by itself. Coordinates that a mask holds still have a zero slope and zero noise, so that no sampler needs to
know of masks.

The step size is :math:`\varepsilon` for every sampler: a step from rest moves by
:math:`-\frac{\varepsilon}{2}\nabla U + \sqrt{\varepsilon}\,\xi`. Samplers with momentum call
:math:`h = \sqrt{\varepsilon}` their unit of time; momenta have unit variance.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor


class Point(NamedTuple):
    r"""What is known of the potential at the positions of the chains.

    Attributes:
        loss: mean over the batch, (chain,).
        potential: U = n beta loss + gamma / 2 ||w - w*||^2, (chain,), float64.
        slope: gradient of U, zero where a mask holds still, (chain, d).
        squared_slope: squared norm of the slope, (chain,).
        squared_distance: from the anchor, (chain,).
        virial: :math:`\frac12 (w - w^*) \cdot \nabla U`, (chain,).
    """

    loss: Tensor
    potential: Tensor
    slope: Tensor
    squared_slope: Tensor
    squared_distance: Tensor
    virial: Tensor


Potential = Callable[[Tensor], Point]
"""From positions (chain, d) to what is known there; within a step always on the same batch."""


class Chance(NamedTuple):
    """The random numbers of one step.

    Attributes:
        noise: standard normal, zero where a mask holds still, (chain, d).
        uniform: in [0, 1), two for each chain, (chain, 2); of samplers that accept or reject.
    """

    noise: Tensor
    uniform: Tensor | None = None


class Seen(NamedTuple):
    """What a step leaves in the traces.

    Attributes:
        point: at the draw, the position from which the step set out.
        bias: what this draw adds to the first-order bias of E[U], (chain,) or ().
        reports: one value (chain,) for each name in `Sampler.reports`.
    """

    point: Point
    bias: Tensor
    reports: tuple[Tensor, ...] = ()


class Sampler(Protocol):
    """A way to sample; a frozen dataclass whose fields are its settings.

    Attributes:
        name: by which it is chosen.
        exact: whether it accepts or rejects on all of the data; it then refuses batches.
        reports: names of what each step reports beside the common traces.
        warm_up: first steps during which it still adapts; never to be averaged.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    reports: ClassVar[tuple[str, ...]]

    @property
    def warm_up(self) -> int:
        """First steps during which it still adapts."""
        ...

    def init(self, position: Tensor, noise: Tensor, free: Tensor) -> Any:
        """Begin.

        Args:
            position: where the chains start, (chain, d).
            noise: standard normal, zero where a mask holds still, (chain, d).
            free: number of coordinates that move, (chain, 1).
        """
        ...

    def step(self, state: Any, potential: Potential, chance: Chance, step_size: Tensor) -> tuple[Any, Seen]:
        """Take one step of every chain.

        Args:
            state: what `init` or the last step gave.
            potential: from positions to what is known there.
            chance: the random numbers of this step.
            step_size: epsilon of each chain, (chain, 1).
        """
        ...

    def bias(self, step_size: Tensor, squared_slope: Tensor) -> Tensor:
        """Give the first-order bias of E[U] by the step size.

        Args:
            step_size: epsilon.
            squared_slope: mean of the squared norm of the slope (of a preconditioned sampler, weighted by its
                preconditioner).
        """
        ...
