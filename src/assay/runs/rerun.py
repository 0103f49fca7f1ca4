"""Repeating a run from its record alone, to see whether the same numbers come out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import xarray as xr

from assay.errors import BadInput
from assay.models.identity import architecture
from assay.models.loading import load
from assay.runs.folder import RunFolder
from assay.runs.manifest import describe
from assay.runs.measurement import from_settings
from assay.runs.perform import RunOptions, perform_in
from assay.runs.result import Result


@dataclass(frozen=True)
class Rerun:
    """A repeated run.

    Attributes:
        result: the new result, in its own folder.
        identical: whether every variable and coordinate has the same bytes as before.
        differing: names of those that have not.
    """

    result: Result
    identical: bool
    differing: tuple[str, ...]


def rerun(folder: str | Path, *, model: Any = None, **run: Unpack[RunOptions]) -> Rerun:
    """Perform a finished run again from its record, into a fresh folder beside it.

    Args:
        folder: the run folder to repeat.
        model: the model; by default it is loaded from the recorded source. Where more than a model was measured, what
            the measurement's ``made_by`` gives.
        run: see `RunOptions`; ``out`` is by default the folder that holds ``folder``.

    Returns:
        The new result, and whether it is the same to the last bit.

    Raises:
        BadInput: when the folder is not a finished run, weights or configuration are not those it measured, or it
            measured more than a model and no `model` is passed.
    """
    path = Path(folder)
    old = Result.load(path)
    recorded, origin = old.manifest["model"], old.manifest.get("origin")
    made_by = old.measurement.made_by or "assay.load(source) or assay.wrap(module)"
    if model is None:
        if old.measurement.made_by is not None:
            known = " `assay rerun` makes it again, as the command did that made the run." if origin else ""
            raise BadInput(f"{path} measured what no record holds: pass model={made_by}.{known}")
        model = load(recorded["source"], device=recorded["device"], dtype=recorded["dtype"])
    if not callable(getattr(model, "weight_hash", None)):
        raise BadInput(f"the model is a {type(model).__name__}: pass model={made_by}.")
    hashes = {"weight_hash": model.weight_hash(), "architecture_hash": architecture(model.module)}
    for name, found in hashes.items():
        if recorded.get(name, found) != found:  # records of older versions have no hash of the architecture
            raise BadInput(
                f"{path} measured a model of {name} {recorded[name][:12]}, {recorded['source']!r} now has "
                f"{found[:12]}. A rerun needs the same weights and configuration: pass model={made_by}."
            )
    measurement = from_settings(old.measurement.name, old.manifest["settings"])
    plan = list(measurement.plan(model))
    record = describe(measurement, model, plan, origin)
    fresh = _fresh(Path(run.get("out") or path.resolve().parent), record["id"])
    result = perform_in(RunFolder(fresh, record), measurement, model, plan, run)
    names = sorted({*map(str, old.dataset.variables), *map(str, result.dataset.variables)})
    differing = tuple(name for name in names if not _same(old.dataset, result.dataset, name))
    return Rerun(result, not differing, differing)


def _fresh(parent: Path, name: str) -> Path:
    """Give the first of ``name-rerun-1``, ``name-rerun-2``, ... that is not there."""
    number = 1
    while (parent / f"{name}-rerun-{number}").exists():
        number += 1
    return parent / f"{name}-rerun-{number}"


def _same(old: xr.Dataset, new: xr.Dataset, name: str) -> bool:
    """Compare one variable byte by byte, so that -0.0 is not 0.0 and NaN is NaN."""
    if name not in old.variables or name not in new.variables:
        return False
    a, b = old.variables[name], new.variables[name]
    if a.dims != b.dims or a.shape != b.shape:
        return False
    if a.dtype.kind in "biuf" and b.dtype.kind in "biuf":
        return a.dtype == b.dtype and a.to_numpy().tobytes() == b.to_numpy().tobytes()
    return bool(np.array_equal(a.to_numpy(), b.to_numpy()))
