"""The runs below a folder."""

from dataclasses import dataclass
from pathlib import Path

from assay.errors import BadInput
from assay.runs.folder import RECORD, finished_units, read_manifest


@dataclass(frozen=True)
class RunSummary:
    """One run, for a list.

    Attributes:
        path: its folder.
        measurement: name of the method.
        source: the model it measured.
        status: "running", "interrupted" (killed, too), "finished", "failed", or "unreadable".
        started: when its first attempt began, UTC; "" where unknown.
        units_done: finished units.
        units: units of its plan.
    """

    path: Path
    measurement: str
    source: str
    status: str
    started: str
    units_done: int
    units: int


def list_runs(root: str | Path) -> list[RunSummary]:
    """List the runs below ``root``, the latest first; an empty list where there are none.

    Raises:
        BadInput: when ``root`` is not a folder.
    """
    if not Path(root).is_dir():
        raise BadInput(f"{root} is not a folder. Pass the folder that was given as `out`.")
    runs = [_summary(record.parent) for record in sorted(Path(root).rglob(RECORD))]
    return sorted(runs, key=lambda run: run.started, reverse=True)


def _summary(path: Path) -> RunSummary:
    try:
        record = read_manifest(path)
    except BadInput:
        return RunSummary(path, "", "", "unreadable", "", 0, 0)
    total = len(record["units"])
    return RunSummary(
        path=path,
        measurement=record["measurement"],
        source=str(record["model"].get("source", "")),
        status=record["status"],
        started=record["started"],
        units_done=total if record["status"] == "finished" else finished_units(path),
        units=total,
    )
