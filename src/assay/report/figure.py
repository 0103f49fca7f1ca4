"""A figure of a report: how it is drawn, what a marked cell says, and the table behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from assay.report.theme import finished


@dataclass(frozen=True)
class Bar:
    """One line of a readout: a labelled number drawn as a bar, with its interval where there is one.

    Attributes:
        label: column that names the line.
        value: column of the number.
        low: column of the interval's lower end; empty where there is none.
        high: column of the interval's upper end.
    """

    label: str
    value: str
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Readout:
    """What a page says about the marked cell: bars first, then single facts.

    Attributes:
        bars: lines drawn for every row of the table that belongs to the cell.
        facts: title shown -> column, read from the first such row.
        unit: what the bars measure.
    """

    bars: Sequence[Bar] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""


@dataclass(frozen=True)
class Finding:
    """A sentence derived from a dataset, and the cell it speaks of.

    Attributes:
        text: one sentence with its figures.
        position: token to mark; ``None`` for no token.
        block: layer to mark, as the block after which it lies; ``None`` for no layer.
    """

    text: str
    position: int | None = None
    block: int | None = None

    @property
    def address(self) -> str:
        """The fields of the page's address that mark the cell; empty where there is none to mark."""
        fields = {"token": self.position, "layer": self.block}
        return "&".join(f"{name}={value}" for name, value in fields.items() if value is not None)


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    Attributes:
        name: safe as an identifier and as a file name; unique on a page.
        title: heading.
        caption: what is drawn, in which unit, and how to read its marks.
        draw: ``draw(**options)`` gives the chart without its look; its marks name this figure's table, by the
            figure's name, or bring their own rows; linked figures accept ``orientation``.
        frame: tidy table behind the figure; linked figures have columns ``position`` and ``block``.
        choice: what the variants choose, for example ``"colour"``; empty with a single variant.
        variants: label -> options of ``draw``; the first is shown first.
        linked: whether the figure takes part in the shared cursor.
        readout: what is said about a marked cell.
        surprisal: surprisal of each token in nats, where the figure knows it; shades the text of the passage.
    """

    name: str
    title: str
    caption: str
    draw: Callable[..., Any]
    frame: pd.DataFrame
    choice: str = ""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    linked: bool = False
    readout: Readout = field(default_factory=Readout)
    surprisal: Sequence[float | None] = ()

    def chart(self, **options: Any) -> Any:
        """Draw the figure with its rows and the look of paper; ``options`` are those of `draw`."""
        return finished(self.draw(**options), {self.name: self.frame})
