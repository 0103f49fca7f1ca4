"""The command that follows a training, in folders of one's own or made on the spot."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from assay.cli import trajectory as command
from assay.landscape import experiments
from assay.landscape.experiments import Experiment
from assay.landscape.losses import squared_error
from assay.landscape.trajectory import trajectory
from assay.runs.result import Result
from assay.zoo.training import linear
from cli.terminal import Outcome

Assay = Callable[..., Outcome]
FEW = ("--draws", "20", "--burn-in", "5", "--chains", "2", "--window", "1")

TOY = """
import torch
from torch import nn

def squares(module, batch):
    return (module(batch[0]) - batch[1]).square().sum(1)

def make():
    generator = torch.Generator().manual_seed(0)
    return nn.Linear(3, 2), squares, (torch.randn(30, 3, generator=generator), torch.zeros(30, 2))
"""


def checkpoints(scale: float = 1.0) -> dict[int, dict[str, torch.Tensor]]:
    return {
        step: {"weight": scale / (1 + step) * torch.ones(2, 3), "bias": torch.zeros(2)} for step in range(4)
    }


def written(folder: Path, scale: float = 1.0) -> Path:
    folder.mkdir()
    for step, state in checkpoints(scale).items():
        save_file(state, folder / f"step-{step}.safetensors")
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path / "toy.py"


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment that is trained in no time."""

    def made(runs: int, generator: torch.Generator) -> Experiment:
        module = linear(3, 2, generator=generator)
        data = (torch.randn(30, 3, generator=generator), torch.zeros(30, 2))
        settings = {"step_size": 1e-3, "chains": 5, "draws": 30}
        return Experiment(
            module, squared_error, data, [dict(checkpoints(1 + run)) for run in range(runs)], settings
        )

    monkeypatch.setitem(experiments.EXPERIMENTS, "quick", made)


def test_the_command_has_every_setting_of_its_verb_with_the_same_default() -> None:
    said_otherwise = ("module", "loss", "data", "checkpoints", "sampled", "mask", "source", "run")
    settings = {
        key: parameter.default
        for key, parameter in inspect.signature(trajectory).parameters.items()
        if key not in said_otherwise
    }
    offered = {
        key: parameter.default
        for key, parameter in inspect.signature(command.trajectory).parameters.items()
        if key in settings
    }
    assert offered == settings


def test_folders_of_ones_own_are_followed(assay: Assay, toy: Path, tmp_path: Path) -> None:
    folders = [written(tmp_path / name, scale) for name, scale in (("one", 1.0), ("two", 2.0))]
    words = ("--sampled", "squared_distance_to_anchor", "--known", "2", "3", "--json")
    outcome = assay("trajectory", f"{toy}:make", *folders, *FEW, *words, "--out", tmp_path / "runs")
    assert outcome.code == 0
    result = Result.load(outcome.document["run"])
    assert dict(result.dataset["llc"].sizes) == {"run": 2, "step": 4}
    assert result.dataset.attrs["sampled"] == "squared_distance_to_anchor"
    assert result.dataset["known"].to_numpy().tolist() == [2, 3]
    assert "Loss and learning coefficient" in Path(outcome.document["report"]).read_text(encoding="utf-8")
    one = assay("trajectory", f"{toy}:make", folders[0], *FEW, "--json", "--out", tmp_path / "runs")
    assert Result.load(one.document["run"]).dataset["llc"].dims == ("step",)


def test_a_rehearsal_tells_what_it_would_take(assay: Assay, toy: Path, tmp_path: Path) -> None:
    words = ("--checkpoints-at-once", "2", "--dry-run", "--json")
    document = assay("trajectory", f"{toy}:make", written(tmp_path / "one"), *FEW, *words).document
    assert document["units"] == 2
    assert document["weights_bytes"] == 32


@pytest.mark.slow
def test_processes_of_their_own_measure_the_same(assay: Assay, toy: Path, tmp_path: Path) -> None:
    words = (f"{toy}:make", written(tmp_path / "one"), *FEW, "--checkpoints-at-once", "1", "--json")
    two = assay("trajectory", *words, "--processes", "2", "--out", tmp_path / "two").document["run"]
    one = assay("trajectory", *words, "--out", tmp_path / "alone").document["run"]
    assert Result.load(two).dataset.identical(Result.load(one).dataset)


@pytest.mark.usefixtures("ready")
def test_an_experiment_brings_its_settings_and_one_s_own_go_before_them(assay: Assay, tmp_path: Path) -> None:
    words = ("--runs", "2", "--burn-in", "5", "--window", "1", "--json", "--out", tmp_path / "runs")
    settings = assay("trajectory", "quick", *words).document["settings"]
    assert (settings["step_size"], settings["chains"], settings["draws"]) == (1e-3, 5, 30)
    settings = assay("trajectory", "quick", *words, "--chains", "3").document["settings"]
    assert (settings["step_size"], settings["chains"], settings["draws"]) == (1e-3, 3, 30)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quick", "folder"), "leave folders and --data out"),
        (("{toy}:make",), "name the folder of its checkpoints"),
        (("{toy}:make", "nowhere"), "does not exist"),
        (("quick", "--chains", "1"), "at least 2"),
        (("quick", "--runs", "0"), "runs"),
    ],
)
def test_bad_input(assay: Assay, toy: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    filled = [word.format(toy=toy) for word in words]
    outcome = assay(
        "trajectory", *filled, *(FEW if "--chains" not in words else ()), "--out", tmp_path / "runs"
    )
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def missing(folder: Path) -> None:
    (folder / "checkpoints.json").write_text('{"files": {"step-7.safetensors": 200}}')


def truncated(folder: Path) -> None:
    path = folder / "step-2.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def wider(folder: Path) -> None:
    save_file({"weight": torch.ones(2, 4), "bias": torch.zeros(2)}, folder / "step-3.safetensors")


def test_a_run_is_repeated_from_its_record(assay: Assay, toy: Path, tmp_path: Path, ready: None) -> None:
    words = ("--step-size", "1e-3", *FEW, "--out", tmp_path / "runs", "--json")
    behaviour = ("--sampled", "squared_distance_to_anchor")
    runs = [
        assay("trajectory", f"{toy}:make", written(tmp_path / "one"), *behaviour, *words).document["run"],
        assay("trajectory", "quick", "--runs", "2", "--seed", "4", *FEW, *words[-3:]).document["run"],
    ]
    for run in runs:
        assert assay("rerun", run, "--json").document["identical"] is True


def twice(folder: Path) -> None:
    save_file(checkpoints()[3], folder / "step-003.safetensors")


def lacking(folder: Path) -> None:
    save_file({"weight": torch.ones(2, 3)}, folder / "step-1.safetensors")


def infinite(folder: Path) -> None:
    save_file(
        {"weight": torch.full((2, 3), torch.inf), "bias": torch.zeros(2)}, folder / "step-0.safetensors"
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "step-7.safetensors' is missing"),
        (truncated, "step-2.safetensors' cannot be read, most often as it is truncated"),
        (wider, "step-3.safetensors' has weight of shape (2, 4), the module (2, 3)"),
        (twice, "holds step 3 more than once"),
        (lacking, "step-1.safetensors' lacks ['bias']"),
        (infinite, "step-0.safetensors' is NaN or infinite in weight"),
    ],
)
def test_a_spoilt_folder_is_one_clear_message(
    assay: Assay, toy: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(written(tmp_path / "one"))
    outcome = assay("trajectory", f"{toy}:make", tmp_path / "one", *FEW, "--out", tmp_path / "runs")
    said = [line for line in outcome.err.splitlines() if not line.startswith("loading ")]
    assert outcome.code == 2
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "runs").exists()
