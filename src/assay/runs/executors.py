"""Where units are measured: in this process, or in several processes of this machine."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from assay.runs.measurement import Measurement, Pieces, Unit


class Executor(Protocol):
    """Measures units and hands each back as soon as it is done, in any order."""

    def run(
        self, measurement: Measurement, model: Any, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Pieces]]:
        """Measure ``units`` and yield each with its pieces, in the form `stored_form` gives."""
        ...


class InProcess:
    """Measures the units one after the other in this process, in the order of the plan."""

    def run(
        self, measurement: Measurement, model: Any, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, Pieces]]:
        """Measure ``units`` one after the other."""
        shared = measurement.prepare(model)
        for unit in units:
            yield unit, stored_form(measurement.measure(model, unit, shared))


def stored_form(pieces: Pieces) -> Pieces:
    """Copy the pieces into the form a file gives them back in, so that a resumed run adds up the same bytes."""
    form = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    return {name: tensor.detach().to(**form) for name, tensor in pieces.items()}
