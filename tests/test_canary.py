"""The checking hook is live: a shape or a type that contradicts its annotation fails the test that met it."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

from assay.estimates.checks import Check
from checking import UNCHECKED

CANARY = """
from jaxtyping import Float
from torch import Tensor


def double(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return 2 * rows
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """A function imported under the very hook that the library is imported under."""
    (tmp_path / "canary.py").write_text(CANARY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    with install_import_hook("canary", "checking.typechecked"):
        canary = import_module("canary")

    monkeypatch.setitem(sys.modules, "canary", canary)  # undone, and so forgotten, when the test ends
    return canary.double


def test_right_shape_passes(double: Callable[..., torch.Tensor]) -> None:
    assert double(torch.ones(2, 3)).sum() == 12


def test_wrong_shape_is_refused(double: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(TypeCheckError):
        double(torch.ones(2, 3, 4))


def test_wrong_dtype_is_refused(double: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(TypeCheckError):
        double(torch.ones(2, 3, dtype=torch.int64))


def test_the_library_itself_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        Check(code=101, title="", verdict="pass", figure=None, message="")  # a code is a str


def test_an_int_will_do_for_a_float() -> None:
    assert Check(code="A000", title="", verdict="pass", figure=1, message="").figure == 1


def test_no_shape_goes_unchecked() -> None:
    shaped = [
        f"{function.__module__}.{function.__qualname__}"
        for function in UNCHECKED
        if any("jaxtyping" in f"{hint!r} {type(hint)!r}" for hint in function.__annotations__.values())
    ]
    assert shaped == []
