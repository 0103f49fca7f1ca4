"""A run folder: the record, one file per finished unit, the result. Whole at any moment; see docs/runs.md."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import xarray as xr
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.runs import dataset_files
from assay.runs.dataset_files import SCHEMA_VERSION
from assay.runs.files import explained, is_locked, locked, remove_temporaries, write_atomically
from assay.runs.manifest import now
from assay.runs.measurement import Pieces, Unit, stored_form

RECORD, NUMBERS, DESCRIPTION, UNITS = "run.json", "result.safetensors", "result.json", "units"


class Store(Protocol):
    """Where the pieces of a run are kept until they are combined."""

    record: dict[str, Any]

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def has(self, unit: Unit) -> bool:
        """Tell whether the unit is finished."""
        ...

    def put(self, unit: Unit, pieces: Pieces) -> None:
        """Keep the pieces of a finished unit."""
        ...

    def pieces(self, plan: Sequence[Unit]) -> dict[str, Pieces]:
        """Give the pieces of every unit, in the order of the plan."""
        ...

    def finish(self, dataset: xr.Dataset, checks: Sequence[Check]) -> Path | None:
        """Keep the result, and say where."""
        ...


class Memory:
    """Keeps the pieces of a run in memory."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self._pieces: dict[str, Pieces] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces.clear()

    def has(self, unit: Unit) -> bool:
        """Tell whether the unit is finished."""
        return unit.name in self._pieces

    def put(self, unit: Unit, pieces: Pieces) -> None:
        """Keep the pieces of a finished unit."""
        self._pieces[unit.name] = pieces

    def pieces(self, plan: Sequence[Unit]) -> dict[str, Pieces]:
        """Give the pieces of every unit, in the order of the plan."""
        return {unit.name: self._pieces[unit.name] for unit in plan}

    def finish(self, dataset: xr.Dataset, checks: Sequence[Check]) -> None:
        """Note that the run is finished; the result lives with the caller."""
        self.record.update(status="finished", finished=now())


class RunFolder:
    """Keeps the pieces of a run in a folder; a folder of an earlier attempt is continued.

    Args:
        path: the folder; made when it does not exist.
        record: the manifest of the run that begins.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self._held = ExitStack()

    def __enter__(self) -> Self:
        with explained(self.path):
            (self.path / UNITS).mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            held.enter_context(locked(self.path))
            for folder in (self.path, self.path / UNITS):
                remove_temporaries(folder)
            if (self.path / RECORD).exists():
                self._continue(read_manifest(self.path))
            self._write_record()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if kind is None:
                return
            stopped = issubclass(kind, KeyboardInterrupt | GeneratorExit | SystemExit)
            self.record.update(status="interrupted" if stopped else "failed", finished=now())
            self.record["error"] = None if stopped else f"{kind.__name__}: {error}"
            # on a full disk the record stays "running" without a process, which continues just as well
            with suppress(BadInput):
                self._write_record()

    def has(self, unit: Unit) -> bool:
        """Tell whether the unit is finished: its file is whole and is this run's."""
        try:
            with safe_open(self._unit_path(unit), framework="pt") as file:
                return file.metadata() == self._unit_mark(unit)
        except (SafetensorError, FileNotFoundError):
            return False

    def put(self, unit: Unit, pieces: Pieces) -> None:
        """Write the file of a finished unit."""
        write_atomically(self._unit_path(unit), save_tensors(pieces, metadata=self._unit_mark(unit)))

    def pieces(self, plan: Sequence[Unit]) -> dict[str, Pieces]:
        """Read the pieces of every unit, in the order of the plan."""
        # the same form as pieces that never left memory: no tensor depends on how the file lies in memory
        return {unit.name: stored_form(load_file(self._unit_path(unit))) for unit in plan}

    def finish(self, dataset: xr.Dataset, checks: Sequence[Check]) -> Path:
        """Write the result, and then that the run is finished."""
        _write_result(self.path, self.record, dataset, checks)
        self.record.update(status="finished", finished=now(), error=None)
        self._write_record()
        return self.path

    def _continue(self, earlier: Mapping[str, Any]) -> None:
        if earlier["id"] != self.record["id"]:
            raise BadInput(
                f"{self.path} holds the run {earlier['id']}, not {self.record['id']}: choose another folder, "
                "for a run is never overwritten."
            )
        self.record["started"] = earlier["started"]
        self.record["attempts"] = [*earlier["attempts"], *self.record["attempts"]]

    def _write_record(self) -> None:
        write_atomically(self.path / RECORD, _json(self.record))

    def _unit_path(self, unit: Unit) -> Path:
        return self.path / UNITS / f"{unit.name}.safetensors"

    def _unit_mark(self, unit: Unit) -> dict[str, str]:
        detail = json.dumps(dataset_files.plain(unit.detail), sort_keys=True)
        return {"run": self.record["id"], "unit": unit.name, "detail": detail}


class _Record(BaseModel):
    """What Assay relies on in a ``run.json`` that somebody else may have written."""

    model_config = ConfigDict(extra="allow", strict=True)

    schema_version: int
    id: str
    measurement: str
    settings: dict[str, Any]
    model: dict[str, Any]
    status: str
    started: str
    finished: str | None
    attempts: list[dict[str, Any]]
    units: list[dict[str, Any]]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the record of a run folder; a run whose process is gone is given as interrupted.

    Raises:
        BadInput: when the folder is not a run, or was written by a newer Assay.
    """
    if not (path / RECORD).is_file():
        problem = (
            f"has no {RECORD}" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
        )
        raise BadInput(f"{path} is not a run: it {problem}. `assay runs` lists the runs below a folder.")
    with explained(path / RECORD):
        content = (path / RECORD).read_bytes()
    try:
        record = _Record.model_validate_json(content).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"{path / RECORD} is damaged, or is not the record of a run: {place}: {first['msg']}."
        ) from error
    if record["schema_version"] > SCHEMA_VERSION:
        raise BadInput(
            f"{path} has schema version {record['schema_version']}, this Assay reads up to {SCHEMA_VERSION}: "
            "upgrade Assay to read it."
        )
    if record["status"] == "running" and not is_locked(path):
        record["status"] = "interrupted"
    return record


def read_result(path: Path, record: Mapping[str, Any]) -> tuple[xr.Dataset, list[Check]]:
    """Read the result of a run folder whose record was read.

    Raises:
        BadInput: when the run is not finished, or its result is damaged.
    """
    if record["status"] != "finished":
        raise BadInput(
            f"{path} has no result yet: its status is {record['status']!r}, with {finished_units(path)} "
            f"of {len(record['units'])} units done. Issue the same command again to finish it."
        )
    try:
        numbers, description = (path / NUMBERS).read_bytes(), (path / DESCRIPTION).read_bytes()
        dataset, document = dataset_files.decode(numbers, description)
        return dataset, TypeAdapter(list[Check]).validate_python(document["checks"])
    except (BadInput, OSError, KeyError, ValidationError) as error:
        raise BadInput(
            f"the result in {path} cannot be read: {error} Issue the command that made it again: it puts the "
            "result together from the finished units."
        ) from error


def finished_units(path: Path) -> int:
    """Count the unit files of a run folder."""
    return len(list((path / UNITS).glob("[!.]*.safetensors")))


def save(path: Path, record: Mapping[str, Any], dataset: xr.Dataset, checks: Sequence[Check]) -> Path:
    """Write a result that was kept in memory as a run folder.

    Raises:
        BadInput: when the folder holds anything already, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise BadInput(
            f"{path} exists and is not an empty folder: choose another, for nothing is overwritten."
        )
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        _write_result(path, record, dataset, checks)
        write_atomically(path / RECORD, _json(record))
    return path


def _write_result(
    path: Path, record: Mapping[str, Any], dataset: xr.Dataset, checks: Sequence[Check]
) -> None:
    extra = {
        "measurement": record["measurement"],
        "checks": [dataset_files.plain(dataclasses.asdict(c)) for c in checks],
    }
    numbers, description = dataset_files.encode(dataset, extra)
    write_atomically(path / NUMBERS, numbers)
    write_atomically(path / DESCRIPTION, description)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False, indent=1).encode()
