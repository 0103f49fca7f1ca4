"""A calibrated run that is killed: what is found on the way is found again, to the last bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from assay.landscape.learning_coefficient import learning_coefficient
from assay.landscape.losses import squared_error
from assay.runs.result import Result
from assay.zoo import deep_linear

CODE = """
import os, signal, sys, threading, torch
from landscape.test_killed import measured

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def progress(seen):
    if seen.done == 1:  # some way into the next unit
        threading.Timer(0.2, kill).start()

torch.set_num_threads(int(sys.argv[2]))
measured(sys.argv[1], progress=progress)
"""


def measured(out: Path | str, **run: Any) -> Result:
    """Four groups of two chains, each of which finds its own step size, burn-in and length."""
    generator = torch.Generator().manual_seed(0)
    target = deep_linear.teacher((5, 6, 4), 2, generator=generator)
    module = deep_linear.as_module(deep_linear.at_minimal_rank(target, (5, 6, 4)))
    data = deep_linear.examples(target, 100, generator=generator)
    return learning_coefficient(
        module, squared_error, data, relative_error=0.1, budget=1600, chains_at_once=2, out=out, **run
    )


def left(folder: Path) -> dict[str, bytes]:
    """What a run leaves but its record, which has times in it: the result's files, and what each unit holds."""
    found = {name: (folder / name).read_bytes() for name in ("result.safetensors", "result.json")}
    for file in folder.glob("units/*.safetensors"):
        found |= {f"{file.stem}.{name}": part.numpy().tobytes() for name, part in load_file(file).items()}
    return found


def test_a_calibrated_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    arguments = (str(tmp_path / "killed"), str(torch.get_num_threads()))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", CODE, *arguments], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    done: list[int] = []
    resumed = measured(tmp_path / "killed", progress=lambda progress: done.append(progress.done))
    assert 1 <= done[0] < 4 == done[-1]
    undisturbed = measured(tmp_path / "undisturbed")
    assert resumed.path is not None
    assert undisturbed.path is not None
    assert left(resumed.path) == left(undisturbed.path)
    assert {name.split(".")[0] for name in left(resumed.path)} >= {
        f"chains-00{start}" for start in (0, 2, 4, 6)
    }
    assert float(resumed.dataset["step_size"].std()) > 0  # each group found its own
