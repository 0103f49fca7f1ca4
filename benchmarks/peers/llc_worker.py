"""One side of a comparison of learning coefficients, in a process of its own.

As `benchmarks.peers.worker`, but what is measured is the time of sampling: every request is answered by a short call
and a long one, and the time is what the long one takes over the short one. So what a call does once (looking at the
anchor, opening a store) is in no figure, and neither are imports and compilation, which a first call pays for.
Only torch and safetensors are imported here, because this module runs in the environment of every peer.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

Answer = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every side is given, to the last bit.

    Attributes:
        model: folder of a language model; empty where the module is a stack of layers.
        weights: of the layers of a stack, first to last: of each its weight, or weight and bias.
        biased: whether the layers have biases, and ReLU between them.
        data: inputs and targets of a stack; token ids (row, position) of a language model.
        masks: what of a language model moves, by parameter; empty for all.
        step_size: epsilon.
        n_beta: number of samples times inverse temperature.
        localization: gamma.
        batch_size: examples in a batch.
    """

    model: str
    weights: tuple[Tensor, ...]
    biased: bool
    data: tuple[Tensor, ...]
    masks: dict[str, Tensor]
    step_size: float
    n_beta: float
    localization: float
    batch_size: int

    @classmethod
    def read(cls, path: Path, model: str) -> "Work":
        """Read the file that `benchmarks.landscape` wrote."""
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            told = json.loads(file.metadata()["work"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}

        def group(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): part
                for name, part in sorted(tensors.items())
                if name.startswith(prefix)
            }

        return cls(
            model=model if told.pop("language") else "",
            weights=tuple(group("weight.").values()),
            data=tuple(group("data.").values()),
            masks={name: part.bool() for name, part in group("mask.").items()},
            **told,
        )

    def stack(self) -> nn.Sequential:
        """Build the stack of layers with its weights."""
        layers: list[nn.Module] = []
        step = 2 if self.biased else 1
        for index in range(0, len(self.weights), step):
            weight = self.weights[index]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=self.biased)
            layer.weight.data = weight.clone()
            if self.biased:
                layer.bias.data = self.weights[index + 1].clone()
            layers += [nn.ReLU(), layer] if self.biased and index else [layer]
        return nn.Sequential(*layers)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give the mean loss of a batch as peers want it."""
        if self.biased:
            return nn.functional.cross_entropy(outputs, targets)
        return (outputs - targets).square().sum(1).mean()


@dataclass(frozen=True)
class Length:
    """How long a call is.

    Attributes:
        chains: number of chains.
        steps: of each, all of them draws.
        rows: examples that are sampled from, the first ones; None for all.
        agreeing: whether the call is made for its estimate, and not for its time.
    """

    chains: int
    steps: int
    rows: int | None = None
    agreeing: bool = False


Sample = Callable[[Length], Sequence[float]]
"""Sample once; give the estimate of each chain, over all steps."""


def serve(prepare: Callable[[Work], Sample], packages: Sequence[str]) -> None:
    """Answer every line of standard input, a request for a short and a long call, with one JSON line.

    Args:
        prepare: builds the module, and gives what samples it.
        packages: distributions whose versions are to be reported.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints goes to standard error
    torch.set_num_threads(asked.threads)
    sample = prepare(Work.read(asked.work, asked.model))
    print(json.dumps({"versions": {name: version(name) for name in packages}}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_measure(sample, request)), file=answers)


def _measure(sample: Sample, request: Answer) -> Answer:
    chains, short, long, rows = (request[name] for name in ("chains", "short", "long", "rows"))
    if long is None:  # a rehearsal, or a call made for its estimate
        estimates = sample(Length(chains, short, rows, agreeing=True))
        return {"result": {"llc": list(map(float, estimates))}}
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    clocks = []
    for steps in (short, long):
        wall, cpu = time.perf_counter(), time.process_time()
        estimates = sample(Length(chains, steps, rows))
        clocks.append((time.perf_counter() - wall, time.process_time() - cpu))
    thousands = chains * (long - short) / 1000
    (short_wall, short_cpu), (long_wall, long_cpu) = clocks
    return {
        "seconds": (long_wall - short_wall) / thousands,
        "whole_seconds": (long_wall - short_wall) / thousands,
        "cpu_seconds": (long_cpu - short_cpu) / thousands,
        "call_seconds": long_wall,
        "peak_bytes": _peak(),
        "result": {"llc": list(map(float, estimates))},
    }


def _peak() -> int:
    """Most bytes the process held since the request came."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
