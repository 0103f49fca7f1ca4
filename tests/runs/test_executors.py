"""Executors: several processes give the bytes of one, and say what went wrong."""

import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from assay.errors import BadInput
from assay.runs.executors import LocalProcesses
from assay.runs.perform import perform
from runs.toy import Toy, ToyModel, rebuild


def dies(source: str, *, device: str, dtype: str) -> Any:
    """Stand for a model that does not fit into memory twice."""
    os._exit(9)


def test_two_processes_give_the_bytes_of_one(tmp_path: Path):
    alone = perform(Toy(units=5), ToyModel(), out=tmp_path / "one")
    shared = perform(Toy(units=5), ToyModel(), out=tmp_path / "two", executor=LocalProcesses(2, rebuild))
    for name in ("result.safetensors", "result.json"):
        assert (alone.path / name).read_bytes() == (shared.path / name).read_bytes()


def test_an_error_in_another_process_arrives_here():
    with pytest.raises(ArithmeticError, match="no such number"):
        perform(Toy(broken="unit-00"), ToyModel(), executor=LocalProcesses(1, rebuild))


def test_other_weights_are_noticed():
    with pytest.raises(BadInput, match="gives other weights"):
        perform(Toy(), ToyModel(weight=3.0), executor=LocalProcesses(1, rebuild))
    with pytest.raises(BadInput, match="or another configuration"):
        perform(Toy(), ToyModel(module=nn.Tanh()), executor=LocalProcesses(1, rebuild))


def test_a_process_that_dies_is_reported():
    with pytest.raises(BadInput, match="ended while measuring"):
        perform(Toy(), ToyModel(), executor=LocalProcesses(1, dies))


def test_no_process_is_refused():
    with pytest.raises(BadInput, match="at least one process"):
        LocalProcesses(0)
