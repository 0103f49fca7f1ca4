"""Performing a measurement: plan, measure what is not yet finished, combine, check."""

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from assay.errors import BadInput
from assay.estimates.finite import finite_check
from assay.runs.executors import Executor, InProcess
from assay.runs.folder import Memory, RunFolder, Store
from assay.runs.manifest import Measurable, describe, environment_check
from assay.runs.measurement import Measurement, Unit, from_settings, settings
from assay.runs.progress import Progress
from assay.runs.result import Result


class RunOptions(TypedDict, total=False):
    """How a measurement is run; none of it changes a number.

    Attributes:
        out: folder under which the run folder is made, or found and continued; None keeps all in memory.
        progress: called after every unit.
        executor: where units are measured; by default one after the other in this process.
        origin: what a command made the model of, in JSON values; the record keeps it, so that ``assay rerun`` can make
            it once more.
    """

    out: Path | str | None
    progress: Callable[[Progress], None] | None
    executor: Executor | None
    origin: Mapping[str, Any] | None


def perform(measurement: Measurement, model: Measurable, **run: Unpack[RunOptions]) -> Result:
    """Perform a measurement on a model, or continue it where an earlier attempt ended.

    Args:
        measurement: the method and its settings.
        model: what is measured.
        run: see `RunOptions`.

    Returns:
        The result. With the same settings, model and ``out`` again, a finished run is read, not repeated.

    A wrong setting, or a folder that cannot be used or that another process is using, is `BadInput`; and so is a
    keyword that is no option of a run, which is what a mistyped setting of a verb becomes.
    """
    _known(measurement, run)
    # what is computed is what the record can give back, to the last type of the last setting
    measurement = from_settings(measurement.name, settings(measurement))
    out = run.get("out")
    plan = _planned(measurement, model)
    record = describe(measurement, model, plan, run.get("origin"))
    if out is None:
        return perform_in(Memory(record), measurement, model, plan, run)
    path = Path(out) / record["id"]
    finished = _finished(path)
    return finished or perform_in(RunFolder(path, record), measurement, model, plan, run)


def perform_in(
    store: Store, measurement: Measurement, model: Any, plan: Sequence[Unit], run: RunOptions
) -> Result:
    """Measure the units that ``store`` does not have, and combine all of them into a result.

    Args:
        store: where pieces are kept.
        measurement: the method and its settings.
        model: what is measured.
        plan: the units of the measurement.
        run: see `RunOptions`.
    """
    report = run.get("progress") or (lambda progress: None)
    with store:
        pending = [unit for unit in plan if not store.has(unit)]
        clock = _Clock(plan, pending)
        report(clock.read(""))
        if pending:
            for unit, pieces in (run.get("executor") or InProcess()).run(measurement, model, pending):
                store.put(unit, pieces)
                report(clock.tick(unit))
        dataset = measurement.combine(model, store.pieces(plan))
        checks = [finite_check(dataset), environment_check(store.record), *measurement.checks(dataset)]
        path = store.finish(dataset, checks)
    return Result(dataset, checks, store.record, measurement, path)


def _planned(measurement: Measurement, model: Any) -> list[Unit]:
    plan = list(measurement.plan(model))
    names = {unit.name for unit in plan}
    if len(names) != len(plan) or not plan:
        raise ValueError(
            f"the plan of {measurement.name} has {len(plan)} units with {len(names)} names; name each once"
        )
    return plan


def _known(measurement: Measurement, run: RunOptions) -> None:
    options = [*settings(measurement), *RunOptions.__annotations__]
    for name in run.keys() - RunOptions.__annotations__.keys():
        near = difflib.get_close_matches(name, options, n=1)
        raise BadInput(
            f"{measurement.name} has no setting {name!r}."
            + (f" Did you mean {near[0]!r}?" if near else f" It has: {', '.join(options)}.")
        )


def _finished(path: Path) -> Result | None:
    """Read the result of a finished run; None when there is none, or when it must be combined anew."""
    if not path.exists():
        return None
    try:
        return Result.load(path)
    except BadInput:
        return None


class _Clock:
    """Counts finished units and their cost, and from them the time to the end."""

    def __init__(self, plan: Sequence[Unit], pending: Sequence[Unit]) -> None:
        self._total, self._cost_total = len(plan), sum(unit.cost for unit in plan)
        self._left, self._cost_left = len(pending), sum(unit.cost for unit in pending)
        self._cost_here = 0.0
        self._begun = time.monotonic()

    def tick(self, unit: Unit) -> Progress:
        """Count a unit as finished."""
        self._left -= 1
        self._cost_left -= unit.cost
        self._cost_here += unit.cost
        return self.read(unit.name)

    def read(self, unit: str) -> Progress:
        """Say how far the run has come."""
        elapsed = time.monotonic() - self._begun
        return Progress(
            done=self._total - self._left,
            total=self._total,
            cost_done=self._cost_total - self._cost_left,
            cost_total=self._cost_total,
            elapsed=elapsed,
            eta=elapsed / self._cost_here * self._cost_left if self._cost_here else None,
            unit=unit,
        )
