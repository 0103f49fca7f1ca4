"""A measurement and a model small enough to see through, for tests of how runs are performed."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import nn

from assay.estimates.checks import Check
from assay.runs.executors import LocalProcesses
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import perform


@dataclass(frozen=True, kw_only=True)
class Toy(Measurement):
    """Random numbers per unit, times the model's weight; every unit may sleep, so that it can be killed."""

    name: ClassVar[str] = "toy"

    units: int = 4
    scale: float = 1.0
    seed: int = 0
    words: tuple[str, ...] = ("a", "b", "c")
    sleep: float = 0.0
    journal: str | None = None  # a file that gets the name of every unit that is measured
    broken: str | None = None  # the unit that fails

    def prepare(self, model: Any) -> Any:
        return model.weight * self.scale

    def plan(self, model: Any) -> Sequence[Unit]:
        return [Unit(f"unit-{index:02d}", {"index": index}, cost=1.0 + index) for index in range(self.units)]

    def measure(self, model: Any, unit: Unit, shared: Any) -> Pieces:
        if self.journal:
            with Path(self.journal).open("a") as file:
                file.write(f"{unit.name}\n")
        time.sleep(self.sleep)
        if unit.name == self.broken:
            raise ArithmeticError("no such number")
        generator = torch.Generator().manual_seed(self.seed * 1000 + unit.detail["index"])
        table = torch.randn(len(self.words), 5, generator=generator) * shared
        return {"sums": table.t()[0], "column": table[:, 1], "count": torch.tensor(unit.detail["index"])}

    def combine(self, model: Any, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        x = np.stack([part["sums"].numpy() + part["column"].sum().numpy() for part in pieces.values()])
        return xr.Dataset(
            {
                "x": (("step", "place"), x),
                "x_stderr": (("step", "place"), np.full(x.shape, 0.5)),
                "word": ("place", np.array(self.words, dtype=object)),
                "total": ((), x.sum(dtype=np.float64)),
            },
            coords={"step": np.arange(self.units), "label": ("step", [f"s{i}" for i in range(self.units)])},
            attrs={"model": model.source, "counts": [int(part["count"]) for part in pieces.values()]},
        )

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        return [Check("T001", "toy", "warn", float(dataset["total"]), "A toy.", "Measure something real.")]


@dataclass
class ToyModel:
    """Anything that a run can record."""

    weight: float = 1.5
    source: str = "toy"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    module: nn.Module = field(default_factory=nn.Identity)

    def weight_hash(self) -> str:
        return hashlib.sha256(str(self.weight).encode()).hexdigest()


def rebuild(source: str, *, device: str, dtype: str) -> ToyModel:
    """Make the model in another process, as `assay.load` would."""
    return ToyModel(source=source, device=torch.device(device), dtype=getattr(torch, dtype))


def main(out: str, journal: str, sleep: str, threads: str, processes: str) -> None:
    """Perform the toy measurement in a process of its own, which a test then stops."""
    torch.set_num_threads(int(threads))
    executor = LocalProcesses(int(processes), rebuild) if int(processes) else None
    perform(Toy(units=6, sleep=float(sleep), journal=journal), ToyModel(), out=out, executor=executor)
