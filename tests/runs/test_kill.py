"""Processes that are really stopped, by kill -9 and Ctrl-C, and what is left for the next attempt."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from assay.errors import BadInput
from assay.runs.listing import list_runs
from assay.runs.perform import perform
from assay.runs.result import Result
from runs.toy import Toy, ToyModel

TESTS = Path(__file__).parents[1]
UNITS, SLEEP = 6, 0.3
PATIENCE = 120  # seconds; only a process that hangs takes that long


def start(out: Path, journal: Path, processes: int = 0) -> subprocess.Popen[bytes]:
    arguments = (str(out), str(journal), str(SLEEP), str(torch.get_num_threads()), str(processes))
    # under a name of its own, the script is imported by the processes it starts as well
    code = f"from runs.toy import main\nif __name__ == '__main__': main(*{arguments!r})"
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.01)


def entries(journal: Path) -> list[str]:
    return journal.read_text().split() if journal.exists() else []


def result_bytes(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in ("result.safetensors", "result.json")]


def resumed_as_if_undisturbed(tmp_path: Path, journal: Path, path: Path) -> None:
    """Issue the same measurement again, and compare with one that nobody disturbed."""
    toy = Toy(units=UNITS, sleep=SLEEP, journal=str(journal))
    kept = {file.name.removesuffix(".safetensors") for file in (path / "units").glob("unit-*.safetensors")}
    journal.unlink()
    resumed = perform(toy, ToyModel(), out=tmp_path / "out")
    assert resumed.path == path
    assert sorted(entries(journal)) == [f"unit-{i:02d}" for i in range(UNITS) if f"unit-{i:02d}" not in kept]
    assert 1 <= len(kept) < UNITS
    undisturbed = perform(toy, ToyModel(), out=tmp_path / "undisturbed")
    assert result_bytes(path) == result_bytes(undisturbed.path)


@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_a_random_unit(tmp_path: Path, seed: int):
    journal, out = tmp_path / "journal", tmp_path / "out"
    begun = random.Random(seed).randrange(2, UNITS)
    process = start(out, journal)
    wait_until(lambda: len(entries(journal)) >= begun)
    time.sleep(random.Random(seed).uniform(0, SLEEP / 2))
    process.kill()
    process.communicate()
    (path,) = out.iterdir()
    assert json.loads((path / "run.json").read_bytes())["status"] == "running"
    (listed,) = list_runs(out)
    assert listed.status == "interrupted"
    assert listed.units_done >= begun - 1
    with pytest.raises(BadInput, match="has no result yet: its status is 'interrupted'"):
        Result.load(path)
    resumed_as_if_undisturbed(tmp_path, journal, path)


def test_ctrl_c(tmp_path: Path):
    journal, out = tmp_path / "journal", tmp_path / "out"
    process = start(out, journal)
    wait_until(lambda: len(entries(journal)) >= 3)
    (path,) = out.iterdir()
    with pytest.raises(BadInput, match=f"in use by process {process.pid} on"):
        perform(Toy(units=UNITS, sleep=SLEEP, journal=str(journal)), ToyModel(), out=out)
    assert list_runs(out)[0].status == "running"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert b"KeyboardInterrupt" in errors
    assert json.loads((path / "run.json").read_bytes())["status"] == "interrupted"
    resumed_as_if_undisturbed(tmp_path, journal, path)


def alive(group: int) -> bool:
    """Tell whether any process of the group lives; a zombie whose parent is gone does not count."""
    states = subprocess.run(
        ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return any(not state.startswith("Z") for state in states.stdout.split())


@pytest.mark.parametrize("how", ["kill -9 of the parent", "ctrl-c"])
def test_several_processes_end_together(tmp_path: Path, how: str):
    journal, out = tmp_path / "journal", tmp_path / "out"
    process = start(out, journal, processes=2)
    wait_until(lambda: any(out.glob("*/units/unit-*")))
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until(lambda: not alive(process.pid))
    (path,) = out.iterdir()
    assert json.loads((path / "run.json").read_bytes())["status"] == (
        "interrupted" if how == "ctrl-c" else "running"
    )
    resumed_as_if_undisturbed(tmp_path, journal, path)
