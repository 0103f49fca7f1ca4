"""What a user waits for around the measuring: imports, loading, the command line, the whole survey.

Every figure is that of a process of its own, because importing and loading happen once in a process.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import ROOT, conditions
from benchmarks.promises import Promise, Turns, figure, time_summary

FRESH = "{fresh}"  # stands for a new empty folder
TIMED_LOAD = (
    "import time, assay; load = assay.load; start = time.perf_counter(); load('smollm2'); "
    "print(time.perf_counter() - start)"
)


@dataclass(frozen=True)
class Command:
    """A program to start, and what of it is timed.

    Attributes:
        label: its name in results and tables.
        arguments: what follows the program's name.
        program: a program of the environment.
        peer: whose environment; "": this one.
        cache: where Assay's cache is; "": where it is for the user.
        prints_seconds: the figure is what the program prints, not how long it ran.
    """

    label: str
    arguments: tuple[str, ...]
    program: str = "python"
    peer: str = ""
    cache: str = ""
    prints_seconds: bool = False


@dataclass(frozen=True)
class Startup:
    """Commands that take turns."""

    title: str
    commands: tuple[Command, ...]
    promises: tuple[Promise, ...]
    repetitions: int


def _python(label: str, code: str, peer: str = "") -> Command:
    return Command(label, ("-c", code), peer=peer)


STARTUPS = {
    "import": Startup(
        "importing, in a process of its own",
        (
            _python("import torch", "import torch"),
            _python("import assay", "import torch, assay"),
            _python(
                "assay with its verbs",
                "import torch, assay; assay.load, assay.capture, assay.logit_lens, assay.causal_trace",
            ),
            _python("import transformer_lens", "import torch, transformer_lens", "transformer_lens"),
            _python("import nnsight", "import torch, nnsight", "nnsight"),
        ),
        (
            Promise("difference", "import assay", "import torch", bound=0.3),
            Promise("difference", "assay with its verbs", "import torch"),
            Promise("difference", "import transformer_lens", "import torch"),
            Promise("difference", "import nnsight", "import torch"),
        ),
        repetitions=10,
    ),
    "load": Startup(
        "loading SmolLM2 with its tokenizer, imports excluded",
        (
            Command("first load", ("-c", TIMED_LOAD), cache=FRESH, prints_seconds=True),
            Command("later load", ("-c", TIMED_LOAD), prints_seconds=True),
        ),
        (Promise("seconds", "first load", bound=12.0), Promise("seconds", "later load", bound=2.0)),
        repetitions=3,
    ),
    "help": Startup(
        "the command line's help",
        (Command("assay --help", ("--help",), "assay"),),
        (Promise("seconds", "assay --help", bound=0.5),),
        repetitions=10,
    ),
    "survey": Startup(
        "lens, trace and importances of the shipped passage, with the report",
        (Command("assay survey", ("survey", "--out", FRESH), "assay"),),
        (Promise("seconds", "assay survey", bound=90.0),),
        repetitions=3,
    ),
}


def start_up(name: str, startup: Startup, *, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run one case and return the record that is kept as JSON.

    Args:
        name: of the case.
        startup: which commands, how often.
        threads: torch threads of every process.
        say: takes one line per turn.
    """
    under = conditions("cpu", threads)
    turns: dict[str, Turns] = {command.label: [] for command in startup.commands}
    for command in startup.commands:
        _run(command, threads)  # the first start reads its files from disk
    for repetition in range(startup.repetitions):
        for command in startup.commands:
            turn = _run(command, threads)
            say(f"  {repetition + 1:3d}  {command.label:28s} {turn['seconds']:9.3f} s")
            turns[command.label].append(turn)
    return {
        "case": name,
        "title": startup.title,
        "conditions": under,
        "contestants": {label: time_summary(of) for label, of in turns.items()},
        "agreement": {},
        "figures": [figure(promise, turns, 0) for promise in startup.promises],
    }


def _run(command: Command, threads: int) -> dict[str, Any]:
    fresh = tempfile.mkdtemp()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if command.cache:
        environment["ASSAY_CACHE"] = command.cache.replace(FRESH, fresh)
    programs = ROOT / ".venv-peers" / command.peer / "bin" if command.peer else Path(sys.executable).parent
    arguments = [argument.replace(FRESH, str(Path(fresh, "run"))) for argument in command.arguments]
    try:
        start = time.perf_counter()
        told = subprocess.run(
            [str(programs / command.program), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
    finally:
        shutil.rmtree(fresh)
    if told.returncode:
        raise RuntimeError(f"{command.label!r} ended with exit code {told.returncode}: {told.stderr.strip()}")
    if command.prints_seconds:
        seconds = float(told.stdout.split()[-1])
    return {"seconds": seconds, "whole_seconds": seconds}
