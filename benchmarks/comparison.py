"""Compare sides: every contestant in a process of its own environment, taking turns at the same work.

One case after the other; within a case, repetition by repetition, each contestant has one turn, and who
begins rotates. Results must agree or the figures mean nothing: the largest difference is part of a record.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.model import Model
from benchmarks.cases import Case, Contestant
from benchmarks.conditions import ROOT, conditions
from benchmarks.promises import Turns, figure, time_summary
from benchmarks.work import write_work

ENVIRONMENTS = {"norm_free": "transformer_lens"}
"""Of sides that run in another peer's environment."""

Cells = list[tuple[int, int]]
Say = Callable[[str], None]
CELLWISE = {"restored", "kl_of_component"}
"""Results with one number a cell."""


class Side:
    """A worker process of one side, loaded and waiting for its turns (see `benchmarks.peers.worker`).

    A peer's interpreter is that of `.venv-peers/<name>`; a side without one runs in this environment. What a
    side prints is dropped, unless BENCH_VERBOSE is set.
    """

    def __init__(self, name: str, work: Path, model: str, device: str, threads: int) -> None:
        python = ROOT / ".venv-peers" / ENVIRONMENTS.get(name, name) / "bin" / "python"
        worker = [str(python) if python.exists() else sys.executable, "-m", f"benchmarks.peers.{name}"]
        self.name = name
        self._process = subprocess.Popen(
            [*worker, str(work), model, "--device", device, "--threads", str(threads)],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": str(ROOT / "src"),  # a peer's environment has no Assay
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def turn(self, task: str, cells: Cells) -> dict[str, Any]:
        """Have the side do a task once; return its seconds, peak memory and result."""
        return self.ask({"task": task, "cells": cells})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Hand the side a request; return its answer."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Close its input, which ends it, and wait."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"side {self.name!r} ended with exit code {self._process.wait()} instead of answering; "
                "BENCH_VERBOSE=1 shows what it said, benchmarks/setup.sh installs it"
            )
        return json.loads(line)


def compare(name: str, case: Case, model: Model, *, device: str, threads: int, say: Say) -> dict[str, Any]:
    """Run one case, from starting its sides to the figures.

    Args:
        name: of the case.
        case: what to compare.
        model: loaded from a folder, the same that every side loads.
        device: torch device of every side.
        threads: torch threads of every side.
        say: takes one line per turn.

    Returns:
        The record that is kept as JSON.
    """
    folder = Path(str(model.module.name_or_path))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "work.safetensors"
        positions, layers = write_work(model, case.prompt, work)
        cells = [(layer, position) for layer in range(layers) for position in range(positions)]
        under = conditions(device, threads)
        sides: dict[str, Side] = {}
        for side in dict.fromkeys(contestant.side for contestant in case.contestants):
            sides[side] = Side(side, work, str(folder), device, threads)
            stack.callback(sides[side].close)
        turns = _take_turns(case, cells, sides, say)
    weight_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "case": name,
        "title": case.title,
        "conditions": under,
        "versions": {side: worker.versions for side, worker in sides.items()},
        "prompt": asdict(case.prompt),
        "cells": len(cells),
        "weight_bytes": weight_bytes,
        "contestants": {label: _summary(of) for label, of in turns.items()},
        "agreement": _agreement(turns, (layers, positions)),
        "figures": [figure(promise, turns, weight_bytes) for promise in case.promises],
    }


def _take_turns(case: Case, cells: Cells, sides: dict[str, Side], say: Say) -> dict[str, Turns]:
    """The turns of each contestant by its label, in the order of the repetitions."""
    for side in sides.values():
        side.turn("forward", [])  # the first pass of a process also pays for the kernels' own set-up
    turns: dict[str, Turns] = {contestant.label: [] for contestant in case.contestants}
    for repetition in range(-case.rehearsals, case.repetitions):
        begins = repetition % len(case.contestants)
        for contestant in case.contestants[begins:] + case.contestants[:begins]:
            share = shares(contestant, cells, case.repetitions)[repetition % case.repetitions]
            turn = sides[contestant.side].turn(contestant.task, share)
            turn |= {"cells": share, "whole_seconds": turn["seconds"] * len(cells) / len(share)}
            say(f"  {repetition + 1:3d}  {contestant.label:28s} {turn['seconds']:9.3f} s")
            if repetition >= 0:
                turns[contestant.label].append(turn)
    return turns


def shares(contestant: Contestant, cells: Cells, repetitions: int) -> list[Cells]:
    """Which cells a contestant fills in each repetition."""
    if not contestant.every:
        return [cells] * repetitions
    wanted = cells[:: contestant.every]
    return [wanted[repetition::repetitions] for repetition in range(repetitions)]


def _summary(turns: Turns) -> dict[str, Any]:
    return time_summary(turns) | {
        "cpu_seconds": [turn["cpu_seconds"] * turn["whole_seconds"] / turn["seconds"] for turn in turns],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
        "cells_timed": len({cell for turn in turns for cell in turn["cells"]}),
    }


def _agreement(turns: dict[str, Turns], shape: tuple[int, int]) -> dict[str, dict[str, float]]:
    """How far each contestant's results are from those of the first that has them, by label and result.

    The largest absolute difference; for token ids, the share that differs.
    """
    reference: dict[str, NDArray[Any]] = {}
    agreed: dict[str, dict[str, float]] = {}
    for label, of in turns.items():
        for name, value in _result(of, shape).items():
            expected = reference.setdefault(name, value)
            if expected is not value:
                ids = np.issubdtype(value.dtype, np.integer)
                distance = np.mean(value != expected) if ids else np.nanmax(np.abs(value - expected))
                agreed.setdefault(label, {})[name] = float(distance)
    return agreed


def _result(turns: Turns, shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The last turn's result; of a trace or a scan the table that all turns filled, NaN where none went."""
    result = {name: np.array(value) for name, value in turns[-1]["result"].items()}
    for name in CELLWISE & set(result):
        result[name] = np.full(shape, np.nan)
        for turn in turns:
            layers, positions = zip(*turn["cells"], strict=True)
            result[name][list(layers), list(positions)] = turn["result"][name]
    return result
