"""The record of a run: what was measured, with which settings and versions, on which machine, and when."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import torch
from torch import nn

from assay.estimates.checks import Check
from assay.models.identity import architecture
from assay.runs.dataset_files import SCHEMA_VERSION, plain
from assay.runs.measurement import Measurement, Unit, settings

PACKAGES = ("assay", "torch", "transformers", "numpy", "scipy", "xarray", "safetensors")


class Measurable(Protocol):
    """What a run records of a model, whatever else it is."""

    @property
    def module(self) -> nn.Module:
        """What computes."""
        ...

    @property
    def source(self) -> str:
        """Where it was loaded from."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """In which precision."""
        ...

    def weight_hash(self) -> str:
        """Hash its weights."""
        ...


def describe(
    measurement: Measurement, model: Measurable, plan: Sequence[Unit], origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the record of a run that is about to begin.

    Args:
        measurement: what will be measured.
        model: on what.
        plan: its units.
        origin: what a command made the model of; left out where there is none.

    Returns:
        JSON values; the format is described in ``docs/runs.md``.
    """
    values = settings(measurement)
    record = {
        "schema_version": SCHEMA_VERSION,
        "measurement": measurement.name,
        "revision": measurement.revision,
        "settings": values,
        "seeds": {key: value for key, value in values.items() if key == "seed" or key.endswith("_seed")},
        "model": {
            "source": model.source,
            "weight_hash": model.weight_hash(),
            "architecture_hash": architecture(model.module),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "data_hash": measurement.data_hash(),
    }
    return {
        "id": f"{measurement.name}-{_identity(record)}",
        **record,
        **({"origin": dict(origin)} if origin is not None else {}),
        "status": "running",
        "started": now(),
        "finished": None,
        "error": None,
        "attempts": [attempt(model.device)],
        "units": [{"name": unit.name, "detail": plain(unit.detail), "cost": unit.cost} for unit in plan],
    }


def _identity(record: dict[str, Any]) -> str:
    """Hash what decides the numbers: another device may round differently, so it makes another run."""
    device = record["model"]["device"].partition(":")[0]
    parts = {**record, "seeds": None, "model": {**record["model"], "source": None, "device": device}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def attempt(device: torch.device) -> dict[str, Any]:
    """Describe this process: a resumed run has several, one after the other."""
    return {
        "started": now(),
        "process": os.getpid(),
        "host": socket.gethostname(),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": dict(_versions()),
        },
    }


@functools.cache  # reading the installed metadata takes 30 ms
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def environment_check(record: dict[str, Any]) -> Check:
    """Tell whether all attempts of a run had the same environment.

    Args:
        record: the run's manifest.

    Returns:
        The check ``A002``; its figure is the number of different environments.
    """
    code, title = "A002", "mixed environments"
    different = {json.dumps(each["environment"], sort_keys=True) for each in record["attempts"]}
    if len(different) == 1:
        return Check(code, title, "pass", 1.0, "Every unit was measured in the same environment.")
    return Check(
        code,
        title,
        "warn",
        float(len(different)),
        f"The units were measured in {len(different)} environments (versions, platform or threads differ).",
        "Look at the attempts in run.json; to have one environment, delete the folder and run again.",
    )


def now() -> str:
    """Give the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
