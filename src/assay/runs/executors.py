"""Where units are measured: in this process, or in several processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from assay.errors import BadInput
from assay.models.identity import architecture
from assay.runs.measurement import Measurement, Pieces, Unit, stored_form


class Executor(Protocol):
    """Measures units and hands each back as soon as it is done, in any order."""

    def run(
        self, measurement: Measurement, model: Any, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Pieces]]:
        """Measure ``units`` and yield each with its pieces, in the form `stored_form` gives."""
        ...


class InProcess:
    """Measures the units one after the other in this process, in the order of the plan."""

    def run(
        self, measurement: Measurement, model: Any, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Pieces]]:
        """Measure ``units`` one after the other."""
        shared = measurement.prepare(model)
        for unit in units:
            yield unit, stored_form(measurement.measure(model, unit, shared))


def reload(source: str, *, device: str, dtype: str) -> Any:
    """Load a model in another process, as `assay.load` does."""
    from assay.models.loading import (
        load,
    )  # here, so that a run of another kind of model imports no transformers

    return load(source, device=device, dtype=dtype)


@dataclass(frozen=True)
class LocalProcesses:
    """Measures the units in ``n`` new processes, each of which loads the model from its source.

    Every process uses as many threads as this one does, for another number of threads may round differently:
    set ``torch.set_num_threads`` to the number of cores divided by ``n`` beforehand. As with every use of
    Python's processes, a script that uses this keeps its work under ``if __name__ == "__main__"``.

    Attributes:
        n: number of processes; each holds its own copy of the weights.
        rebuild: makes the model from its source, device and dtype; a function that can be imported.
    """

    n: int
    rebuild: Callable[..., Any] = reload

    def __post_init__(self) -> None:
        if self.n < 1:
            raise BadInput(f"LocalProcesses({self.n}): expected at least one process.")

    def run(
        self, measurement: Measurement, model: Any, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Pieces]]:
        """Measure ``units``, the dearest first.

        Yields:
            Each unit with its pieces, as they finish.

        Raises:
            BadInput: when a process ends before its work is done, or loads other weights than this one's.
        """
        start = (measurement, _Origin.of(model), self.rebuild, torch.get_num_threads())
        pool = ProcessPoolExecutor(
            min(self.n, len(units)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=start
        )
        try:
            dearest_first = sorted(units, key=lambda unit: unit.cost, reverse=True)
            jobs = {pool.submit(_measure, unit): unit for unit in dearest_first}
            for job in as_completed(jobs):
                yield jobs.pop(job), stored_form(load_tensors(job.result()))
        except BrokenProcessPool as error:
            raise BadInput(
                f"one of {self.n} processes ended while measuring; most often memory ran out. Use fewer "
                "processes, and issue the command again: it continues with the units that are left."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Origin:
    """What another process needs to load the same model."""

    source: str
    device: str
    dtype: str
    hashes: tuple[str, str]

    @classmethod
    def of(cls, model: Any) -> "_Origin":
        dtype = str(model.dtype).removeprefix("torch.")
        return cls(model.source, str(model.device), dtype, cls.hashes_of(model))

    @staticmethod
    def hashes_of(model: Any) -> tuple[str, str]:
        """What tells the weights, and what is computed with them."""
        return model.weight_hash(), architecture(model.module)


class _Worker:
    """What one process of the pool keeps from unit to unit."""

    def __init__(self, measurement: Measurement, origin: _Origin, rebuild: Callable[..., Any]) -> None:
        self._measurement, self._origin, self._rebuild = measurement, origin, rebuild
        self._ready: tuple[Any, Any] | None = None

    def measure(self, unit: Unit) -> bytes:
        """Measure one unit, loading the model for the first; give the pieces as safetensors."""
        if self._ready is None:
            model = self._load()
            self._ready = model, self._measurement.prepare(model)
        model, shared = self._ready
        return save_tensors(stored_form(self._measurement.measure(model, unit, shared)))

    def _load(self) -> Any:
        origin = self._origin
        model = self._rebuild(origin.source, device=origin.device, dtype=origin.dtype)
        if origin.hashes_of(model) != origin.hashes:
            raise BadInput(
                f"loading {origin.source!r} again gives other weights, or another configuration, than the model "
                "that was passed, so other processes cannot measure it. Save the model to a folder and load it "
                "from there, or measure in this process."
            )
        return model


_workers: list[_Worker] = []  # in a process of the pool: its one worker, set by the initializer


def _begin(measurement: Measurement, origin: _Origin, rebuild: Callable[..., Any], threads: int) -> None:
    """Set up a process of the pool; loading waits for the first unit, where an error can be reported."""
    # Ctrl-C reaches every process of the group: leave the reporting to the parent, and do not outlive it
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _workers.append(_Worker(measurement, origin, rebuild))


def _end_with_parent() -> None:
    """End this process when the parent ends, even if it was killed and could say nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(unit: Unit) -> bytes:
    return _workers[0].measure(unit)
