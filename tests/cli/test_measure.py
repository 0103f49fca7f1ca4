"""Commands that measure: what they take is what their verb takes, and what they leave is a run with its report."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch

from assay.activations.prompt_pairs import Prompts
from assay.cli import measure
from assay.cli.measure import VERBS, command
from assay.errors import BadInput
from assay.models.model import Model
from assay.runs.result import Result
from cli.terminal import PROMPT, SUBJECT, Outcome

Assay = Callable[..., Outcome]


@pytest.mark.parametrize("name", VERBS)
def test_a_command_has_every_setting_of_its_verb_with_the_same_default(name: str) -> None:
    home = VERBS[name]
    verb = getattr(inspect.importlib.import_module(home.module), home.name)  # type: ignore[attr-defined]
    settings = {
        key: parameter.default
        for key, parameter in inspect.signature(verb).parameters.items()
        if key not in ("model", "run")
    }
    offered = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(measure, name)).parameters.items()
        if key not in ("model", "loading", "running")
    }
    assert offered == settings


def test_only_verbs_are_commands() -> None:
    with pytest.raises(AttributeError, match="weigh"):
        measure.weigh  # noqa: B018 (looking is the test)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch, tiny_llama: Model) -> dict[str, Any]:
    """What a verb of many kinds of settings is called with by a command."""
    got: dict[str, Any] = {}
    Kind = Literal["state", "mlp"]

    def verb(
        model: Model,
        text: str | Sequence[int],
        subject: str | slice | Sequence[int],
        answer: str | Sequence[int] | None = None,
        *,
        others: str | Sequence[str] | None = None,
        corrupted: Prompts = ("as it is",),
        kinds: Sequence[Kind] = get_args(Kind),
        foil: str | int | None = None,
        scale: float = 3.0,
        count: int | None = None,
        baseline: bool = True,
        **run: Any,
    ) -> Result:
        got.update({key: value for key, value in locals().items() if key not in ("got", "Kind")})
        raise BadInput("enough")

    monkeypatch.setattr("assay.cli.options.Loading.load", lambda loading, source: tiny_llama)
    monkeypatch.setitem(measure.__dict__, "lens", command(verb))
    return got


def test_words_become_settings(assay: Assay, received: dict[str, Any], tiny_llama: Model) -> None:
    words = (
        "lens m text --subject s --answer 12 --others a b --kinds mlp state --foil 7 --scale 0.5 --count 3"
    )
    assert assay(*words.split(), "--no-baseline", "--out", "here").code == 2
    run = received.pop("run")
    assert received == {
        "model": tiny_llama,
        "text": "text",
        "subject": "s",
        "answer": "12",
        "others": ("a", "b"),
        "corrupted": ("as it is",),
        "kinds": ("mlp", "state"),
        "foil": "7",
        "scale": 0.5,
        "count": 3,
        "baseline": False,
    }
    assert run["out"] == Path("here")


def test_every_setting_that_is_a_text_may_be_a_file(
    assay: Assay, received: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "first.txt").write_text("one two\n")
    (tmp_path / "other.txt").write_text("two one\n")
    files = [f"@{tmp_path / name}.txt" for name in ("first", "other")]
    assay("lens", "m", files[0], "--subject", "@s", "--corrupted", files[1], "@@handle", "plain")
    assert received["text"] == "one two"
    assert received["corrupted"] == ("two one", "@handle", "plain")
    assert received["subject"] == "@s"  # a word of the text, not a text


def test_what_is_not_said_is_the_verbs_default(assay: Assay, received: dict[str, Any]) -> None:
    assay("lens", "m", "-5 degrees", "--subject", "s")
    assert received["text"] == "-5 degrees"
    assert received["answer"] is received["others"] is received["foil"] is received["count"] is None
    assert (received["kinds"], received["scale"], received["baseline"]) == (("state", "mlp"), 3.0, True)


def test_the_last_line_is_the_path_of_the_report(assay: Assay, folder: Path, tmp_path: Path) -> None:
    outcome = assay("lens", folder, PROMPT, "--out", tmp_path)
    page = Path(outcome.lines[-1])
    assert outcome.code == 0
    assert page.name == "report.html"
    assert page.is_file()
    assert page.parent.parent == tmp_path
    assert Result.load(page.parent).measurement.name == "logit_lens"
    assert re.search(r"^\d+ of \d+ checks passed$", outcome.out, re.MULTILINE)


def test_quiet_leaves_the_path_alone(assay: Assay, folder: Path, tmp_path: Path) -> None:
    outcome = assay("lens", folder, PROMPT, "--out", tmp_path, "--quiet")
    assert outcome.err == ""
    assert [Path(line).name for line in outcome.lines] == ["report.html"]


def test_the_same_command_reads_its_run_and_other_settings_make_another(
    assay: Assay, folder: Path, tmp_path: Path
) -> None:
    first, again, other = (
        assay("lens", folder, PROMPT, "--out", tmp_path, "--quiet", *more)
        for more in ((), (), ("--top-k", "2"))
    )
    assert first.lines == again.lines != other.lines
    assert len(list(tmp_path.iterdir())) == 2


def test_json_is_one_document_with_every_number(assay: Assay, folder: Path, tmp_path: Path) -> None:
    outcome = assay("lens", folder, PROMPT, "--out", tmp_path, "--json", "--top-k", "3")
    document = outcome.document
    result = Result.load(document["run"])
    assert Path(document["report"]).is_file()
    assert document["measurement"] == "logit_lens"
    assert document["settings"]["top_k"] == 3
    assert [check["code"] for check in document["checks"]] == [check.code for check in result.checks]
    for name, variable in result.dataset.data_vars.items():
        written = document["dataset"]["variables"][name]
        assert written["dims"] == list(variable.dims)
        assert json.dumps(written["data"]).count("null") == int(variable.isnull().sum())
    assert (
        document["dataset"]["variables"]["entropy"]["data"] == result.dataset["entropy"].to_numpy().tolist()
    )
    assert document["dataset"]["coords"]["token"]["data"] == result.dataset["token"].to_numpy().tolist()


def test_single_numbers_are_said_with_their_interval(assay: Assay, folder: Path, tmp_path: Path) -> None:
    outcome = assay("trace", folder, PROMPT, "--subject", SUBJECT, "--kinds", "state", "--out", tmp_path)
    assert outcome.code == 0
    assert re.search(r"^p_clean +0?\.?\d", outcome.out, re.MULTILINE)
    assert re.search(r"^total_effect +\S+  \[\S+, \S+\]$", outcome.out, re.MULTILINE)
    assert "total_effect_low" not in outcome.out
    assert re.search(rf"^subject +{SUBJECT}$", outcome.out, re.MULTILINE)


def test_a_dry_run_tells_units_time_and_memory_and_leaves_nothing(
    assay: Assay, folder: Path, tmp_path: Path
) -> None:
    words = ("trace", folder, PROMPT, "--subject", SUBJECT, "--out", tmp_path / "runs", "--dry-run")
    said, document = assay(*words), assay(*words, "--json").document
    assert not (tmp_path / "runs").exists()
    assert [line.split()[0] for line in said.lines] == ["units", "time", "memory"]
    assert list(document) == ["units", "seconds", "memory_bytes", "weights_bytes"]
    done = assay(*words[:-1], "--json").document
    run = json.loads((Path(done["run"]) / "run.json").read_text())
    assert document["units"] == len(run["units"])
    assert document["seconds"] > 0


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads alone as in each of two processes: another number may change the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_the_same_run(assay: Assay, folder: Path, tmp_path: Path) -> None:
    words = ("trace", folder, PROMPT, "--subject", SUBJECT, "--kinds", "mlp", "--json", "--quiet")
    alone = assay(*words, "--out", tmp_path / "one").document
    shared = assay(*words, "--out", tmp_path / "two", "--processes", "2").document
    assert alone["dataset"] == shared["dataset"]


def test_the_survey_needs_no_more_than_a_model(assay: Assay, folder: Path, tmp_path: Path) -> None:
    outcome = assay(
        "survey", folder, "Mrs Dursley saw Mr Dursley. Mrs Dursley", "--name", "Dursley", "--out", tmp_path
    )
    assert outcome.code == 0, outcome.err
    assert Path(outcome.lines[-1]).is_file()
