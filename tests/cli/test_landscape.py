"""Commands that measure weights: what is sampled is said by a file of the user's own, or by a model and a text."""

import inspect
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
from safetensors.torch import save_file

from assay.cli import landscape
from assay.cli.landscape import VERBS
from assay.cli.measure import _spelled  # pyright: ignore[reportPrivateUsage]
from assay.runs.result import Result
from cli.terminal import Outcome

Assay = Callable[..., Outcome]
FEW = ("--step-size", "1e-3", "--draws", "20", "--burn-in", "5", "--chains", "2", "--n-beta", "10")

TOY = """
import torch
from torch import nn
from neighbour import squares

def make():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 3, generator=generator)
    module = nn.Linear(3, 2)
    nn.init.normal_(module.weight, generator=generator)
    nn.init.zeros_(module.bias)
    return module, squares, (inputs, module(inputs).detach())

def off():
    module, loss, (inputs, targets) = make()
    return module, loss, (inputs, targets + 1)

def nothing():
    return None

def many(width, *rest, depth, seed=0, **more):
    return make()

number = 3
"""
NEIGHBOUR = """
def squares(module, batch):
    return (module(batch[0]) - batch[1]).square().sum(1)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of the user's with the function that says what is sampled, and a neighbour that it imports."""
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.delitem(__import__("sys").modules, "neighbour", raising=False)
    return tmp_path / "toy.py"


@pytest.mark.parametrize("name", VERBS)
def test_a_command_has_every_setting_of_its_verb_with_the_same_default(name: str) -> None:
    verb = getattr(import_module(VERBS[name].module), VERBS[name].name)
    said_otherwise = ("module", "loss", "data", "mask", "source", "run")
    settings = {
        key: parameter.default
        for key, parameter in inspect.signature(verb).parameters.items()
        if key not in said_otherwise
    }
    own = ("subject", "data", "loss", "mask", "context", "loading", "running")
    offered = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(landscape, name)).parameters.items()
        if key not in own
    }
    assert offered == settings


def test_a_word_or_a_number_may_be_given() -> None:
    spelled = _spelled(float | Literal["auto"] | None)
    assert set(get_args(spelled)) == {Literal["auto"], float, type(None)}
    assert _spelled(float | str) is str


def test_a_function_of_ones_own_says_what_is_sampled(assay: Assay, toy: Path, tmp_path: Path) -> None:
    outcome = assay("llc", f"{toy}:make", *FEW, "--out", tmp_path / "runs", "--json")
    assert outcome.code == 0
    result = Result.load(outcome.document["run"])
    assert Path(outcome.document["report"]).is_file()
    assert result.dataset.attrs["model"] == f"{toy}:make"
    assert result.dataset.attrs["parameters"] == 8
    assert result.manifest["settings"]["loss"].startswith("squares ")
    again = assay("llc", f"{toy}:make", *FEW, "--out", tmp_path / "runs", "--quiet")
    assert Path(again.lines[-1]).parent == result.path
    # another loss of the same name is another run
    (toy.parent / "neighbour.py").write_text(NEIGHBOUR.replace("sum(1)", "mean(1)"))
    __import__("sys").modules.pop("neighbour")
    shutil.rmtree(toy.parent / "__pycache__", ignore_errors=True)
    other = assay("llc", f"{toy}:make", *FEW, "--out", tmp_path / "runs", "--quiet")
    assert Path(other.lines[-1]).parent != result.path


def test_loss_and_mask_are_named(assay: Assay, toy: Path, tmp_path: Path) -> None:
    words = ("--loss", "squared_distance_to_anchor", "--mask", "w*", "--json")
    document = assay("llc", f"{toy}:make", *FEW, *words, "--out", tmp_path / "runs").document
    assert document["settings"]["loss"] == "squared_distance_to_anchor"
    assert document["dataset"]["attrs"]["parameters"] == 6
    assert document["dataset"]["variables"]["anchor_loss"]["data"] == 0


def test_what_fails_is_said_first_and_there_is_no_bare_number(
    assay: Assay, toy: Path, tmp_path: Path
) -> None:
    """Targets that are off by one: the loss falls all the way from the anchor."""
    lines = assay("llc", f"{toy}:off", *FEW, "--out", tmp_path / "runs").lines
    first = next(place for place, line in enumerate(lines) if "L202 the anchor is not a minimum" in line)
    number = next(place for place, line in enumerate(lines) if line.split()[:1] == ["llc"])
    assert first < number
    assert lines[number].split() == ["llc", "none"]


def test_a_sampler_is_told_its_settings_in_words(assay: Assay, toy: Path, tmp_path: Path) -> None:
    words = ("--sampler", "hmc", "--sampler-settings", "leapfrog=3", "jitter=0.5", "--json")
    document = assay("llc", f"{toy}:make", *FEW, *words, "--out", tmp_path / "runs").document
    assert document["settings"]["sampler_settings"] == {"jitter": 0.5, "leapfrog": 3}
    refused = assay("llc", f"{toy}:make", *FEW, "--sampler-settings", "leapfrog=3")
    assert refused.code == 2
    assert "no setting 'leapfrog'; it has momentum, adjusted" in refused.err


def test_parts_are_named_and_repeated(assay: Assay, toy: Path, tmp_path: Path) -> None:
    words = ("--parts", "weight", "bias", "--json", "--out", tmp_path / "runs")
    document = assay("refined", f"{toy}:make", *FEW, *words).document
    assert document["settings"]["parts"] == ["weight", "bias"]
    again = assay("rerun", document["run"], "--json", "--out", tmp_path / "again").document
    assert again["identical"]


def test_a_rehearsal_tells_what_it_would_take(assay: Assay, toy: Path) -> None:
    document = assay("llc", f"{toy}:make", *FEW, "--dry-run", "--json").document
    assert document["units"] == 1
    assert document["weights_bytes"] == 32


def test_chains_may_be_walked_in_other_processes(assay: Assay, toy: Path, tmp_path: Path) -> None:
    one, two = (
        assay("llc", f"{toy}:make", *FEW, "--chains-at-once", 1, "--json", "--out", tmp_path / out, *more)
        for out, more in (("one", ()), ("two", ("--processes", "2")))
    )
    assert one.document["dataset"] == two.document["dataset"]
    assert two.document["run"] != one.document["run"]


def test_a_language_model_needs_a_text_and_no_loss(assay: Assay, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The Eiffel Tower is located in the city of Paris. " * 12)
    words = ("--context", 16, "--mask", "head.1.2", "--batch-size", 4, "--json")
    document = assay("llc", folder, text, *FEW, *words, "--out", tmp_path / "runs").document
    assert document["settings"]["loss"] == "next_token"
    # q and o of one of four heads, and k and v of one of two groups, each 8 x 32
    assert document["dataset"]["attrs"]["parameters"] == 4 * 8 * 32
    ids = torch.arange(96).view(12, 8)
    save_file({"tokens": ids}, tmp_path / "ids.safetensors")
    words = ("--mask", "mlp.0", "--loss", "kl_to_anchor", "--json", "--out", tmp_path / "runs")
    document = assay("llc", folder, tmp_path / "ids.safetensors", *FEW, *words).document
    assert document["settings"]["loss"] == "kl_to_anchor"
    assert document["dataset"]["attrs"]["parameters"] == 3 * 32 * 56
    assert document["dataset"]["attrs"]["examples"] == 12


def test_a_run_is_repeated_from_its_record(
    assay: Assay, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder too; and not with a loss that was edited since."""
    monkeypatch.chdir(toy.parent)
    words = ("--mask", "w*", "--loss", "squared_distance_to_anchor", "--quiet")
    first, bound = (
        Path(assay("llc", "toy.py:make", *FEW, "--out", tmp_path / "runs", *more).lines[-1]).parent
        for more in (("--quiet",), words)
    )
    monkeypatch.chdir(tmp_path.parent)
    for run in (first, bound):
        document = assay("rerun", run, "--json").document
        assert document["identical"] is True
    assert assay("rerun", document["run"], "--quiet").lines[0] == "The same to the last bit."
    (toy.parent / "neighbour.py").write_text(NEIGHBOUR.replace("sum(1)", "mean(1)"))
    __import__("sys").modules.pop("neighbour")
    shutil.rmtree(toy.parent / "__pycache__", ignore_errors=True)
    edited = assay("rerun", first)
    assert edited.code == 2
    assert "it was edited since" in edited.err


def test_a_language_model_and_its_text_are_repeated(assay: Assay, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The Eiffel Tower is located in the city of Paris. " * 12)
    words = ("--context", 16, "--mask", "head.1.2", "--batch-size", 4, "--json", "--out", tmp_path / "runs")
    run = assay("llc", folder, text, *FEW, *words).document["run"]
    assert assay("rerun", run, "--json").document["identical"] is True
    text.unlink()
    gone = assay("rerun", run)
    assert gone.code == 2
    assert "cannot be read: No such file" in gone.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{toy}:made",), "no function 'made': write FILE.py:FUNCTION. Functions there: squares, make, off"),
        (("{toy}:number",), "no function 'number'"),
        (("{toy}:nothing",), "returned NoneType: expected module, loss and data"),
        (("{folder}/none.py:make",), "there is no file"),
        (("{toy}:make", "text.txt"), "returns its own data"),
        (("{toy}:make", "--context", "8"), "returns its own data"),
        (("{toy}:make", "--loss", "kl"), "no loss is called 'kl'"),
        (("{toy}:make", "--mask", "head.0.0"), "is no parameter's name; the first are weight, bias"),
        (("{toy}",), "named without a function of it: write FILE.py:FUNCTION. Functions there: squares, make"),
        (("{toy}:",), "named without a function of it"),
        (("{toy}:many",), "toy.py' needs width, depth: it is called without arguments"),
        (("{folder}",), "needs a file of text as DATA"),
        (("{folder}", "{folder}/none.txt"), "cannot be read: No such file"),
        (("{folder}", "{folder}/tokenizer_config.json", "--context", "999"), "expected 2 to 128 tokens"),
        (("{folder}", "{folder}/config.json", "--context", "16", "--mask", "head.0.9"), "there are 4"),
        (("{toy}:make", "--chains", "1"), "at least 2"),
        (("{toy}:make", "--n-beta", "-1"), "n_beta=-1.0"),
        (("{toy}:make", "--batch-size", "31"), "smaller batch"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    assay: Assay, toy: Path, folder: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    filled = [word.format(toy=toy, folder=folder) for word in words]
    few = [word for pair in zip(FEW[::2], FEW[1::2], strict=True) if pair[0] not in words for word in pair]
    outcome = assay("llc", *filled, *few, "--out", tmp_path / "runs")
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()
