"""The way in: quick to answer, clear about how it ended, and stopped by Ctrl-C without loss."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import assay as package
from assay.cli import app
from cli.terminal import ASSAY, ENVIRONMENT, PROMPT, SUBJECT, Outcome, in_a_process

Assay = Callable[..., Outcome]


def processor_seconds(*command: str) -> float:
    """What a command takes of a processor, the least of five: other work on the machine only adds to it."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_takes_less_than_half_a_second() -> None:
    assert processor_seconds(*ASSAY, "--help") < 0.5


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], [], ["lenz"], ["runs", "--help"], ["doctor", "--help"]]
)
def test_answering_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from assay.cli import main; main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules or 'xarray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, env=ENVIRONMENT)


def test_help_names_every_command(assay: Assay) -> None:
    outcome = assay("--help")
    assert outcome.code == 0
    for name, summary in {**app.MEASURE, **app.WEIGHTS, **app.INSPECT}.items():
        assert name in outcome.out
        assert summary.split()[0] in outcome.out


@pytest.mark.parametrize("name", [*app.MEASURE, *app.WEIGHTS, *app.INSPECT])
def test_every_command_explains_every_option(assay: Assay, name: str) -> None:
    outcome = assay(name, "--help")
    assert outcome.code == 0
    assert {**app.MEASURE, **app.WEIGHTS, **app.INSPECT}[name].split()[0] in outcome.out
    options = [line for line in outcome.lines if line.startswith("│") and "--" in line[:30]]
    assert options
    assert [line for line in options if not re.search(r"--\S.*?\s{2,}[^\s│]", line)] == []


def test_the_version_is_the_packages(assay: Assay) -> None:
    assert assay("--version").out.strip() == package.__version__


def test_running_out_of_memory_says_what_to_do(assay: Assay, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise MemoryError("set max_rows to 8 or less")

    monkeypatch.setattr("assay.cli.options.Loading.load", fill)
    outcome = assay("lens", "m", "x")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "assay: Out of memory: set max_rows to 8 or less"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*ASSAY, "runs", str(tmp_path)]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    samples = "60"  # slow enough to be stopped
    words = [
        "trace",
        str(folder),
        PROMPT,
        "--subject",
        SUBJECT,
        "--noise-samples",
        samples,
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen([*ASSAY, *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "units" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().splitlines()
        assert process.wait(60) == 130
    assert (
        rest[-1]
        == f"assay: Stopped. Finished units are kept in {tmp_path}: the same command goes on from there."
    )
    assert "Traceback" not in "".join(rest)
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert not (run / "report.html").exists()
    assert in_a_process(*words).code == 0
    finished = json.loads((run / "run.json").read_text())
    assert finished["status"] == "finished"
    assert len(finished["attempts"]) == 2
    assert (run / "report.html").is_file()
