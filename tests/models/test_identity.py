import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.cli.landscape import call
from assay.landscape.losses import squared_error
from assay.landscape.target import target
from assay.models.identity import architecture, identity
from assay.models.model import Model
from assay.zoo.densities import NormalCrossing, Separable

FILE = """
import numpy as np
import torch
from torch import nn
from torch.nn.functional import relu

WEIGHTS = torch.tensor([1.0, 2.0])
TABLE = {"scales": [1.0, (2.0, np.array([3.0]))]}
TEACHER = nn.Linear(2, 2, bias=False)
nn.init.ones_(TEACHER.weight)

def lowest(value):
    return value.relu()

def helper(value):
    return lowest(value) + TABLE["scales"][0]

class Base:
    power = 2

    def raised(self, value):
        return value ** self.power

class Power(Base):
    def __call__(self, module, batch):
        return self.raised(module(batch[0])).sum(1)

POWER = Power()

def weighted(module, batch):
    return (helper(module(batch[0])) * WEIGHTS).sum(1)

def inside(module, batch):
    return torch.stack([each @ WEIGHTS for each in TEACHER(batch[0])])

def through(module, batch):
    return POWER(module, batch)

def make():
    return nn.Linear(2, 2), {"weighted": weighted, "inside": inside, "through": through, "power": Power()}, None
"""


def losses(folder: Path, source: str) -> dict[str, str]:
    file = folder / "mine.py"
    file.write_text(source)
    _, made, _ = call(file, "make")
    return {name: identity(loss) for name, loss in made.items()}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("[1.0, 2.0]", "[1.0, 2.5]", {"weighted", "inside"}),
        ("np.array([3.0])", "np.array([4.0])", {"weighted"}),
        ("value.relu()", "value.abs()", {"weighted"}),  # of a helper's helper
        ("ones_(TEACHER", "zeros_(TEACHER", {"inside"}),
        ("return self.raised(module(batch[0]))", "return -self.raised(module(batch[0]))", {"power", "through"}),
        ("** self.power", "* self.power", {"power", "through"}),
        ("power = 2", "power = 3", {"power", "through"}),
        ("import relu", "import gelu", set()),
    ],
)  # fmt: skip
def test_a_loss_in_a_file_is_another_where_anything_it_uses_was_edited(
    tmp_path: Path, before: str, after: str, changed: set[str]
) -> None:
    first, again = losses(tmp_path, FILE), losses(tmp_path, FILE)
    assert first == again
    assert before in FILE
    edited = losses(tmp_path, FILE.replace(before, after))
    assert {name for name, found in edited.items() if found != first[name]} == changed


def test_another_process_names_it_alike(tmp_path: Path) -> None:
    here = losses(tmp_path, FILE)
    code = (
        "import sys; from pathlib import Path; from assay.cli.landscape import call; "
        "from assay.models.identity import *; module, made, _ = call(Path(sys.argv[1]), 'make'); "
        "print(*map(identity, made.values()), architecture(module), sep='|')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.py")], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip().split("|") == [*here.values(), architecture(nn.Linear(2, 2))]


class Scaled(nn.Module):
    """Says nothing of its scale when printed."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 2), scale

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * self.inner(inputs)


class Shifted(Scaled):
    """Of the same parts, under another name."""


def hooked() -> nn.Module:
    module = Scaled(1.0)
    module.inner.register_forward_hook(lambda part, given, left: -left)
    return module


def held() -> nn.Module:
    module = Scaled(1.0)
    module.inner.bias.requires_grad_(False)
    return module


def row(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), *parts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: NormalCrossing([2, 2]), lambda: Separable([2, 2])),
        (lambda: row(nn.Tanh()), lambda: row(nn.ReLU())),
        (lambda: row(nn.Tanh(), nn.ReLU(), nn.Tanh()), lambda: row(nn.Tanh(), nn.ReLU(), nn.ReLU())),
        (lambda: row(nn.LayerNorm(2, eps=1e-5)), lambda: row(nn.LayerNorm(2, eps=1e-2))),
        (lambda: Scaled(1.0), lambda: Scaled(2.0)),
        (lambda: Scaled(1.0), lambda: Shifted(1.0)),
        (lambda: Scaled(1.0), hooked),
        (lambda: Scaled(1.0), held),
    ],
    ids=["density", "activation", "order", "eps", "attribute", "class", "hook", "frozen"],
)
def test_modules_of_equal_weights_that_compute_otherwise_are_told_apart(
    one: Callable[[], nn.Module], other: Callable[[], nn.Module]
) -> None:
    def hashed(module: nn.Module) -> str:
        for weight in module.parameters():
            nn.init.ones_(weight)
        return target(module, lambda part, batch: part(batch[0]).square(), torch.ones(4, 3)).weight_hash()

    assert hashed(one()) == hashed(one()) == hashed(copy.deepcopy(one()))
    assert hashed(one()) != hashed(other())


def test_a_language_model_is_the_same_wherever_it_was_loaded_from(make_tiny_llama) -> None:
    model: Model = make_tiny_llama()
    before = architecture(model.module)
    model.module(torch.zeros(1, 5, dtype=torch.int64))
    model.module.name_or_path = model.module.config._name_or_path = "/elsewhere"
    assert architecture(model.module) == before
    model.module.config.rms_norm_eps = 0.5
    assert architecture(model.module) != before


def test_what_moves_is_hashed_by_name() -> None:
    data = (torch.ones(4, 3), torch.ones(4, 2))
    all_of_it, one = (target(row(), squared_error, data, mask=mask) for mask in ("*", "0.weight"))
    assert all_of_it.weight_hash() != one.weight_hash()
