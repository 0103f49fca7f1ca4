"""How far a run has come; handed to the caller, who decides how to show it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run has come, after each unit.

    Attributes:
        done: units finished, those of an earlier attempt included.
        total: units of the plan.
        cost_done: cost of the finished units, in the plan's own units of work.
        cost_total: cost of the whole plan.
        elapsed: seconds since this attempt began.
        eta: expected seconds to the end, from the seconds per cost so far; None before the first unit.
        unit: name of the unit just finished; "" before the first.
    """

    done: int
    total: int
    cost_done: float
    cost_total: float
    elapsed: float
    eta: float | None
    unit: str
