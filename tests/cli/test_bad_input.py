"""What is asked wrongly gets one clear message and exit code 2: no traceback, and nothing half written."""

import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.terminal import PROMPT, SUBJECT, Outcome, in_a_process

LENS = ("lens", "{tiny}", PROMPT)
TRACE = ("trace", "{tiny}", PROMPT, "--subject", SUBJECT)

REFUSED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "subject not in the prompt": (("trace", "{tiny}", PROMPT, "--subject", "Big Ben"), "'Big Ben' is not in"),
    "empty prompt": (("lens", "{tiny}", ""), "prompt is empty"),
    "prompt longer than the context": (("lens", "{tiny}", "Mr Dursley " * 200), "context of 128"),
    "prompt that is not UTF-8": (("lens", "{tiny}", os.fsdecode(b"caf\xe9")), "not UTF-8"),
    "unknown site": ((*LENS, "--stream", "nowhere"), '"nowhere".* "resid"'),
    "unknown kind": ((*TRACE, "--kinds", "nowhere"), '"nowhere".* "state"'),
    "layers beyond the model's": ((*TRACE, "--window", "99"), "window"),
    "setting out of range": ((*LENS, "--top-k", "0"), "top_k=0"),
    "setting of another type": ((*LENS, "--top-k", "many"), 'top-k.* "many"'),
    "answer the tokenizer cannot make": (
        ("trace", "{words}", PROMPT, "--subject", SUBJECT, "--answer", " Zanzibar"),
        "cannot make the answer ' Zanzibar'",
    ),
    "empty answer": ((*TRACE, "--answer", ""), "answer '' is empty"),
    "NaN weights": (("lens", "{nan}", PROMPT), "model.layers.0.mlp.up_proj.weight"),
    "truncated safetensors": (("lens", "{truncated}", PROMPT), "truncated or damaged"),
    "model that is not there": (("lens", "no/such/model/anywhere", PROMPT), "there is nothing at that path"),
    "folder that is not a model": (("doctor", "{empty}"), "no config.json"),
    "folder that is not a run": (("report", "{empty}"), "is not a run: it has no run.json"),
    "run that is not there": (("compare", "{empty}/a", "{empty}/b"), "a is not a run: it does not exist"),
    "rerun of what is not a run": (("rerun", "{tiny}"), "is not a run"),
    "runs below a file": (("runs", "{tiny}/config.json"), "is not a folder"),
    "text file that is not there": (("lens", "{tiny}", "@{empty}/none.txt"), "none.txt.* cannot be read"),
    "text file that is no text": (("lens", "{tiny}", "@{tiny}/model.safetensors"), "is not UTF-8"),
    "unknown option": ((*LENS, "--topk", "3"), "Unknown option: --topk. Did you mean --top-k"),
    "unknown option after several texts": (
        ("patch", "{tiny}", "one two", "--corrupted", "two one", "--kinds", "mlp"),
        "Unknown option: --kinds",
    ),
    "unknown command": (("lenz",), "no command 'lenz'. Did you mean lens"),
    "missing text": (("lens", "{tiny}"), "--text"),
    "missing subject": (("trace", "{tiny}", PROMPT), "--subject"),
    "device that is not there": ((*LENS, "--device", "tpu"), "device 'tpu'"),
    "no processes": ((*LENS, "--processes", "0"), "processes"),
}
OUT = ("--out", "{runs}")
MEASURES = ("lens", "trace", "patch")


NAMED_IN_A_PROCESS = (
    "subject not in the prompt",
    "empty prompt",
    "prompt longer than the context",
    "unknown site",
    "answer the tokenizer cannot make",
    "NaN weights",
    "truncated safetensors",
    "folder that is not a run",
    "unknown option",
)
"""What users meet most is tried as a shell does it, where warnings and exit hooks would show, too."""


@pytest.fixture(scope="session")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    word_folder: Path,
    nan_folder: Path,
    truncated_folder: Path,
) -> dict[str, Path]:
    """What the words in braces stand for."""
    empty = tmp_path_factory.mktemp("empty")
    models = {"tiny": folder, "words": word_folder, "nan": nan_folder, "truncated": truncated_folder}
    return {"empty": empty, **models}


def words_of(case: str, places: Mapping[str, Path], runs: Path) -> list[str]:
    words = REFUSED[case][0]
    with_out = (*words, *OUT) if words[0] in MEASURES else words
    return [word.format(runs=runs, **places) for word in with_out]


def refused(case: str, outcome: Outcome) -> None:
    said = [line for line in outcome.err.splitlines() if not line.startswith("loading ")]
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert len(said) == 1, outcome.err
    assert said[0].startswith("assay: ")
    assert re.search(REFUSED[case][1], said[0])


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_message_and_exit_code_2(
    case: str, assay: Callable[..., Outcome], places: Mapping[str, Path], tmp_path: Path
) -> None:
    refused(case, assay(*words_of(case, places, tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "case", ["empty prompt", "unknown option", "unknown command", "folder that is not a run"]
)
def test_in_json_the_message_is_on_stdout(
    case: str, assay: Callable[..., Outcome], places: Mapping[str, Path], tmp_path: Path
) -> None:
    outcome = assay(*words_of(case, places, tmp_path / "runs"), "--json")
    assert outcome.code == 2
    assert list(outcome.document) == ["error"]
    assert re.search(REFUSED[case][1], outcome.document["error"])


@pytest.fixture(scope="module")
def processes(
    tmp_path_factory: pytest.TempPathFactory, places: Mapping[str, Path]
) -> dict[str, tuple[Outcome, Path]]:
    """Some refused commands, each in a process and with a folder of its own, two at a time."""
    folders = {case: tmp_path_factory.mktemp("out") / "runs" for case in NAMED_IN_A_PROCESS}

    def ended(case: str) -> tuple[Outcome, Path]:
        return in_a_process(*words_of(case, places, folders[case])), folders[case]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(folders, pool.map(ended, folders), strict=True))


@pytest.mark.parametrize("case", NAMED_IN_A_PROCESS)
def test_a_process_ends_as_clearly(case: str, processes: dict[str, tuple[Outcome, Path]]) -> None:
    outcome, runs = processes[case]
    refused(case, outcome)
    assert not runs.exists()
