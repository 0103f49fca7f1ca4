"""Progress on stderr: a bar with the time left on a terminal, at most ten plain lines elsewhere."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from assay.cli.output import duration

if TYPE_CHECKING:
    from assay.runs.progress import Progress

STEP = 0.1
PAUSE = 1.0


@contextmanager
def shown(title: str, *, quiet: bool) -> Generator[Callable[["Progress"], None]]:
    """Show a run's progress.

    Args:
        title: what is being done.
        quiet: show nothing.

    Yields:
        What the run is to call after every unit.
    """
    if quiet:
        yield lambda progress: None
    elif sys.stderr.isatty():
        with _bar(title) as update:
            yield update
    else:
        yield PlainLines(title)


class PlainLines:
    """Writes a line to stderr when a tenth of the work and a second have passed since the last one.

    Args:
        title: what is being done.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._share = self._time = -1.0

    def __call__(self, progress: "Progress") -> None:
        """Write a line, or not."""
        share = progress.cost_done / progress.cost_total
        enough = share - self._share >= STEP and progress.elapsed - self._time >= PAUSE
        if not enough and progress.done < progress.total:
            return
        self._share, self._time = share, progress.elapsed
        print(f"{self._title}: {_state(progress)}", file=sys.stderr, flush=True)


@contextmanager
def _bar(title: str) -> Generator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    look = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*look, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, state="")

        def update(progress: "Progress") -> None:
            bar.update(task, total=progress.cost_total, completed=progress.cost_done, state=_state(progress))

        yield update


def _state(progress: "Progress") -> str:
    share = progress.cost_done / progress.cost_total
    ended = progress.eta is None or progress.done == progress.total
    left = "" if ended else f", about {duration(progress.eta or 0.0)} left"
    return f"{share:.0%}, {progress.done} of {progress.total} units{left}"
