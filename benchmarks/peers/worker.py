"""One side of a comparison in a process of its own, repeating one task each time it is asked to.

The process loads its model, says so, then answers every line on standard input with one JSON line, until its
input closes. A side that is not being asked sleeps, so sides that take turns see the same machine in the same
minutes, and the time to start and to load is in no figure. Only torch and safetensors are imported here,
because this module runs in the environment of every peer.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Answer = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every side is given, to the last bit.

    Attributes:
        model: folder with the safetensors weights, the configuration and the tokenizer.
        device: torch device the model is to be on.
        prompt: the text.
        subject: the part of the text whose embeddings a trace corrupts.
        tokens: ids of the prompt, shape (1, position), on the device.
        span: first and one-past-last position of the subject.
        noise: what is added to the subject's embeddings, (sample, subject position, d_model), on the device.
        answer: token id whose probability at the last position a trace reads.
        seed: seed the noise was drawn with.
    """

    model: str
    device: torch.device
    prompt: str
    subject: str
    tokens: torch.Tensor
    span: tuple[int, int]
    noise: torch.Tensor
    answer: int
    seed: int

    @property
    def samples(self) -> int:
        """How many corrupted rows a trace has."""
        return self.noise.shape[0]

    @property
    def corrupted(self) -> torch.Tensor:
        """The prompt with its first token in the subject's place, for patching between two prompts."""
        ids = self.tokens.clone()
        ids[:, slice(*self.span)] = ids[:, :1]
        return ids

    @classmethod
    def read(cls, path: Path, model: str, device: str) -> "Work":
        """Read the file that `benchmarks.work` wrote."""
        with safe_open(path, "pt", device=device) as file:  # type: ignore[no-untyped-call]
            told = json.loads(file.metadata()["work"])
            tokens, noise = file.get_tensor("tokens"), file.get_tensor("noise")
        start, stop = told.pop("span")
        return cls(
            model=model, device=torch.device(device), tokens=tokens, noise=noise, span=(start, stop), **told
        )


@dataclass(frozen=True)
class Turn:
    """One repetition asked for: which task, and for a trace which cells of the table (layer, position)."""

    task: str
    cells: Sequence[tuple[int, int]]


Task = Callable[[Turn], Answer]


def serve(prepare: Callable[[Work], dict[str, Task]], packages: Sequence[str]) -> None:
    """Load the model, then measure one task per line of standard input and answer with one JSON line.

    Args:
        prepare: loads the model and returns the tasks of this side by name; what a task returns is its
            result, which is handed back so that agreement between the sides can be checked.
        packages: distributions whose versions are to be reported.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()

    # Whatever a library prints goes to standard error: standard output carries the answers and nothing else.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(asked.threads)
    work = Work.read(asked.work, asked.model, asked.device)
    start = time.perf_counter()
    with torch.no_grad():
        tasks = prepare(work)
    ready = {
        "load_seconds": time.perf_counter() - start,
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        turn = Turn(request["task"], [(layer, position) for layer, position in request["cells"]])
        print(json.dumps(_measure(tasks[turn.task], turn, work.device)), file=answers)


def _measure(task: Task, turn: Turn, device: torch.device) -> Answer:
    _forget_peak(device)
    with torch.no_grad():
        _finish(device)
        wall, cpu = time.perf_counter(), time.process_time()
        result = task(turn)
        _finish(device)
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    plain = {
        name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in result.items()
    }
    return seconds | {"peak_bytes": _peak(device), "result": plain}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Most bytes held since `_forget_peak`: of tensors on a GPU, elsewhere of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
