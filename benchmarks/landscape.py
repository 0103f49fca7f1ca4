"""Learning coefficients side by side: three networks of the reference sizes, and a real language model.

A time is that of 1,000 steps of one chain: what a long call takes over a short one (`benchmarks.peers.llc_worker`).
Every side has the same weights, data, step size, temperature, localization and batch size; chance is each side's own,
so results agree within standard errors, and the record says within how many.
"""

import json
import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from assay.landscape.masks import named_mask
from assay.landscape.tokens import token_rows
from assay.models.model import Model
from assay.zoo import deep_linear
from benchmarks.comparison import Side
from benchmarks.conditions import conditions
from benchmarks.promises import Promise, Turns, figure, time_summary

N = 20_000
PEERS = ("devinterp_1", "devinterp_2", "canonical_interp")
AGREEING = 4
"""Chains of the calls that are made for their estimates alone."""


@dataclass(frozen=True)
class Contestant:
    """A side with a number of chains, and how long its two calls are.

    Attributes:
        side: module of `benchmarks.peers`.
        chains: number of chains.
        short: steps of each chain in the short call.
        long: steps in the long one.
        rows: examples that are sampled from, few enough that each has been seen in the short call; None for all.
    """

    side: str
    chains: int
    short: int
    long: int
    rows: int | None = None

    @property
    def label(self) -> str:
        """The name in results and tables."""
        seen = "" if self.rows is None else ", rows seen before"
        return f"{self.side.removesuffix('_llc')} {self.chains} chains{seen}"

    @property
    def request(self) -> dict[str, int | None]:
        """What the side is asked in a turn."""
        return {"chains": self.chains, "short": self.short, "long": self.long, "rows": self.rows}


@dataclass(frozen=True)
class LearningCase:
    """Contestants who take turns at the same posterior.

    Attributes:
        title: what is sampled, in one line.
        write: writes the work file; takes its path and, of a language model, the model.
        contestants: who samples; estimates are held against the first one's with as many chains.
        promises: the figures wanted.
        repetitions: how many turns each contestant has.
        language: whether a language model is sampled.
        agreeing: steps of calls made for their estimates alone; None where those of the timed calls are compared.
        threads: torch threads of every side.
    """

    title: str
    write: Callable[[Path, Model | None], None]
    contestants: tuple[Contestant, ...]
    promises: tuple[Promise, ...]
    repetitions: int
    language: bool = False
    agreeing: int | None = None
    threads: int = 2


def _write(path: Path, told: dict[str, Any], weights: list[Tensor], data: tuple[Tensor, ...]) -> None:
    tensors = {f"weight.{index:02d}": weight for index, weight in enumerate(weights)}
    tensors |= {f"data.{index}": part for index, part in enumerate(data)}
    tensors |= {f"mask.{name}": mask.to(torch.uint8) for name, mask in told.pop("masks", {}).items()}
    told = {"language": False, "biased": False, "localization": 1.0, "batch_size": 512} | told
    save_file(
        {name: part.contiguous() for name, part in tensors.items()}, path, metadata={"work": json.dumps(told)}
    )


def _deep_linear(
    width: int, rank: int, n_beta: float, step_size: float
) -> Callable[[Path, Model | None], None]:
    """Three layers of one width at the minimal-rank point of their map, inputs uniform in [-10, 10]."""

    def write(path: Path, model: Model | None) -> None:
        generator = torch.Generator().manual_seed(0)
        target = deep_linear.teacher([width] * 4, rank, generator=generator)
        weights = list(deep_linear.at_minimal_rank(target, [width] * 4))
        inputs = 20 * torch.rand(N, width, generator=generator) - 10
        # the mean over outputs of the reference runs is a sum here, so the temperature is divided by their number
        _write(path, {"n_beta": n_beta / width, "step_size": step_size}, weights, (inputs, inputs @ target.T))

    return write


def _classifier(path: Path, model: Model | None) -> None:
    """784-256-10 with ReLU, trained a little on noisy classes of random directions."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(N, 784, generator=generator)
    directions = torch.randn(784, 10, generator=generator)
    classes = (inputs @ directions + torch.randn(N, 10, generator=generator)).argmax(1)
    shapes = ((256, 784), (256,), (10, 256), (10,))
    weights = [torch.randn(shape, generator=generator) / math.sqrt(shape[-1]) for shape in shapes]
    weights[1].zero_(), weights[3].zero_()
    told = {"n_beta": N / math.log(N), "step_size": 1e-5, "biased": True}
    _write(path, told, weights, (inputs, classes))


def _language(
    mask: str | None, step_size: float, localization: float
) -> Callable[[Path, Model | None], None]:
    """Python's help topics, 757 kB, in rows of 64 tokens."""

    def write(path: Path, model: Model | None) -> None:
        import pydoc_data.topics

        assert model is not None
        rows = token_rows(model, pydoc_data.topics.__file__, context=64)
        told = {
            "language": True,
            "n_beta": 100.0,
            "step_size": step_size,
            "localization": localization,
            "batch_size": 2,
            "masks": named_mask(model, mask) if mask else {},
        }
        _write(path, told, [], (rows,))

    return write


def _against(times: tuple[float, float, float], chains: int) -> list[Promise]:
    ours = f"assay {chains} chains"
    promises = []
    for peer, ratio in zip(PEERS, times, strict=True):
        theirs = f"{peer} {chains} chains"
        promises.append(Promise("ratio", theirs, ours, "at least", ratio))
        promises.append(Promise("memory ratio", ours, theirs, "at most", 1.0))
    return promises


def _stack(
    title: str,
    write: Callable[[Path, Model | None], None],
    times: tuple[float, float, float],
    steps: dict[int, tuple[int, int]],
    more: tuple[Contestant, ...] = (),
    promises: tuple[Promise, ...] = (),
) -> LearningCase:
    contestants = [
        Contestant(side, chains, *length)
        for chains, length in steps.items()
        for side in ("assay_llc", *PEERS, "floor_llc")
    ]
    wanted = [promise for chains in steps for promise in _against(times, chains)]
    wanted += [Promise("ratio", f"assay {chains} chains", f"floor {chains} chains") for chains in steps]
    # one thread, as the figures were taken that the promises go back to
    return LearningCase(title, write, (*contestants, *more), (*wanted, *promises), repetitions=5, threads=1)


def _model(
    title: str, mask: str | None, step_size: float, localization: float, agreeing: int
) -> LearningCase:
    """Of a mask, a step is also timed where every row was seen before: what enters the lowest block is then known."""
    length = (2, 8, 28)
    contestants = [Contestant(side, *length) for side in ("assay_llc", "devinterp_2")]
    if mask:
        contestants.append(Contestant("assay_llc", *length, rows=8))
    ours = contestants[-1].label if mask else "assay 2 chains"
    promises = (
        Promise("ratio", ours, "devinterp_2 2 chains", "at most", 0.8),
        Promise("memory ratio", "assay 2 chains", "devinterp_2 2 chains", "at most", 1.0),
    )
    write = _language(mask, step_size, localization)
    return LearningCase(
        title, write, tuple(contestants), promises, repetitions=2, language=True, agreeing=agreeing
    )


LEARNING = {
    "llc-a": _stack(
        "SGLD of a deep linear network, 3 layers of width 18, rank 9: 972 weights",
        _deep_linear(18, 9, 8686.0, 5e-6),
        (14.0, 8.0, 2.0),
        {4: (20, 220), 16: (10, 110)},
        more=(Contestant("assay_llc", 64, 10, 110),),
        promises=(Promise("ratio", "assay 64 chains", "assay 16 chains", "at most", 1.0),),
    ),
    "llc-b": _stack(
        "SGLD of a deep linear network, 3 layers of width 182, rank 91: 99,372 weights",
        _deep_linear(182, 91, 72382.0, 2e-6),
        (2.0, 4.0, 1.2),
        {4: (8, 108), 16: (8, 33)},
    ),
    "llc-m": _stack(
        "SGLD of a classifier, 784-256-10 with ReLU: 203,530 weights",
        _classifier,
        (2.0, 3.5, 1.4),
        {4: (8, 108), 16: (8, 33)},
    ),
    "llc-smollm2": _model(
        "SGLD of SmolLM2, all 134,515,008 weights, rows of 64 tokens, 2 in a batch", None, 1e-7, 1000.0, 16
    ),
    "llc-smollm2-head": _model("the same of one head, the 4th of layer 25", "head.25.3", 1e-3, 100.0, 40),
    "llc-smollm2-mlp": _model("the same of one MLP, that of layer 15", "mlp.15", 2e-4, 100.0, 40),
}


def sample(
    name: str, case: LearningCase, model: Model | None, *, threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run one case, from starting its sides to the figures, and return the record that is kept as JSON.

    Args:
        name: of the case.
        case: what to compare.
        model: loaded from a folder, for a case of a language model.
        threads: torch threads of every side.
        say: takes one line per turn.
    """
    folder = str(model.module.name_or_path) if model is not None else ""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "work.safetensors"
        case.write(work, model)
        under = conditions("cpu", threads)
        sides: dict[str, Side] = {}
        for side in dict.fromkeys(contestant.side for contestant in case.contestants):
            sides[side] = Side(side, work, folder, "cpu", threads)
            stack.callback(sides[side].close)
        turns = _take_turns(case, sides, say)
        estimates = _estimates(case, sides, turns)
    return {
        "case": name,
        "title": f"{case.title}; 1,000 steps of one chain",
        "conditions": under,
        "versions": {side: worker.versions for side, worker in sides.items()},
        "contestants": {label: _summary(of, estimates.get(label)) for label, of in turns.items()},
        "agreement": _agreement(case, estimates),
        "figures": [figure(promise, turns, 0) for promise in case.promises],
    }


def _take_turns(case: LearningCase, sides: dict[str, Side], say: Callable[[str], None]) -> dict[str, Turns]:
    turns: dict[str, Turns] = {contestant.label: [] for contestant in case.contestants}
    for contestant in case.contestants:
        # a first call also pays for imports, and for compiling for so many chains
        chains = 2 if case.language else contestant.chains
        sides[contestant.side].ask({"chains": chains, "short": 8, "long": None, "rows": contestant.rows})
    for repetition in range(case.repetitions):
        begins = repetition % len(case.contestants)
        for contestant in case.contestants[begins:] + case.contestants[:begins]:
            turn = sides[contestant.side].ask(contestant.request)
            say(f"  {repetition + 1:3d}  {contestant.label:28s} {turn['seconds']:9.3f} s")
            turns[contestant.label].append(turn)
    return turns


def _estimates(case: LearningCase, sides: dict[str, Side], turns: dict[str, Turns]) -> dict[str, np.ndarray]:
    """Give the estimates to compare, (turn, chain): those of the timed calls, or of calls made for them."""
    if case.agreeing is None:
        found = {label: np.array([turn["result"]["llc"] for turn in of]) for label, of in turns.items()}
        return {label: each for label, each in found.items() if each.size}  # the floor has none
    calls = {
        contestant.label: sides[contestant.side].ask(
            {**contestant.request, "chains": AGREEING, "short": case.agreeing, "long": None}
        )
        for contestant in case.contestants
        if contestant.rows is None
    }
    return {label: np.array([call["result"]["llc"]]) for label, call in calls.items()}


def _summary(turns: Turns, estimates: np.ndarray | None) -> dict[str, Any]:
    found = {} if estimates is None else {"llc": float(estimates.mean()), "llc_stderr": _stderr(estimates)}
    return time_summary(turns) | {
        "cpu_seconds": [turn["cpu_seconds"] for turn in turns],
        "call_seconds": [turn["call_seconds"] for turn in turns],
        "peak_bytes": max(turn["peak_bytes"] for turn in turns),
        **found,
    }


def _stderr(estimates: np.ndarray) -> float:
    """Standard error of the mean over chains; repetitions with the same seed are one."""
    chains = estimates.mean(0)
    return float(chains.std(ddof=1) / math.sqrt(len(chains)))


def _agreement(case: LearningCase, estimates: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """How many combined standard errors each estimate is from that of the first contestant with as many chains."""
    apart: dict[str, dict[str, float]] = {}
    for contestant in case.contestants:
        first = next(other for other in case.contestants if other.chains == contestant.chains)
        if first.label != contestant.label and contestant.label in estimates:
            one, other = estimates[first.label], estimates[contestant.label]
            combined = math.hypot(_stderr(one), _stderr(other))
            apart[contestant.label] = {"standard errors": float(abs(one.mean() - other.mean()) / combined)}
    return apart
