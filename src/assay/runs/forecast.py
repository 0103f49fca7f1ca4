"""What a measurement would take: units, work, time and memory, before it is begun."""

import time
from dataclasses import dataclass
from typing import Any

from assay.runs.measurement import Measurement


@dataclass(frozen=True)
class Forecast:
    """What a measurement would take.

    Attributes:
        units: number of units.
        cost: work of all units, in the plan's own units of work.
        seconds: expected time of all units in one process.
        memory: estimated peak bytes beyond the weights; None where the measurement cannot tell.
    """

    units: int
    cost: float
    seconds: float
    memory: int | None


def forecast(measurement: Measurement, model: Any, *, seconds_per_cost: float | None = None) -> Forecast:
    """Tell what a measurement would take, by measuring its unit of middle cost.

    The cheapest would mislead: what a unit takes whatever its cost is most of the time of a cheap one.

    Args:
        measurement: the method and its settings.
        model: what would be measured.
        seconds_per_cost: the rate, where it is known from an earlier run; nothing is then measured.

    Returns:
        The forecast. What the units share is prepared, and timed, too.
    """
    plan = measurement.plan(model)
    cost = sum(unit.cost for unit in plan)
    preparation = 0.0
    if seconds_per_cost is None:
        middle = sorted(plan, key=lambda unit: unit.cost)[(len(plan) - 1) // 2]
        begun = time.perf_counter()
        shared = measurement.prepare(model)
        prepared = time.perf_counter()
        measurement.measure(model, middle, shared)
        preparation = prepared - begun
        seconds_per_cost = (time.perf_counter() - prepared) / middle.cost
    return Forecast(len(plan), cost, preparation + cost * seconds_per_cost, measurement.memory(model))
