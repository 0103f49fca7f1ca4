"""Logit lens: the top token after every block, coloured by how sure, spread, far or wrong it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.errors import BadInput
from assay.report.charts.grid import Grid, Orientation
from assay.report.figure import Bar, Figure, Finding, Readout
from assay.report.text import visible
from assay.report.theme import finished

_TABLE = "logit_lens"
Colour = Literal["probability", "entropy", "kl", "rank"]
_SURPRISING_PROBABILITY = 1e-3
_LEARNED_NATS = 1.0  # gain in log-probability from which a repetition counts as learned
_CELL_WIDTH = 46


@dataclass(frozen=True)
class _Quantity:
    field: str
    title: str
    scale: alt.Scale


_QUANTITIES: dict[str, _Quantity] = {
    "probability": _Quantity("top_1_probability", "probability of the top token", alt.Scale(domain=[0, 1])),
    "entropy": _Quantity("entropy", "entropy (nats)", alt.Scale(domainMin=0)),
    "kl": _Quantity("kl_to_final", "KL(final || layer) (nats)", alt.Scale(domainMin=0)),
    "rank": _Quantity(
        "answer_place", "place of the true next token (1 = top)", alt.Scale(type="log", reverse=True)
    ),
}


def chart(
    dataset: xr.Dataset,
    *,
    colour: Colour = "probability",
    orientation: Orientation = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart:
    """Draw a logit lens, ready to show or save.

    Args:
        dataset: result of `assay.logit_lens`.
        colour: quantity of the cell colour.
        orientation: ``"layers-down"`` or ``"layers-right"``.
        blocks: layers to make room for; those of the dataset when not given.

    Returns:
        An Altair chart in the light theme.

    Raises:
        BadInput: when `colour` or `orientation` is not known.
    """
    cells = frame(dataset)
    return finished(panel(cells, colour=colour, orientation=orientation, blocks=blocks), {_TABLE: cells})


def panel(
    cells: pd.DataFrame,
    *,
    colour: str = "probability",
    orientation: str = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart:
    """Draw the lens from its table without a configuration, to be put beside others; see `chart`."""
    if colour not in _QUANTITIES:
        raise BadInput(
            f"colour={colour!r} is not a quantity of the lens: choose one of {', '.join(_QUANTITIES)}."
        )
    quantity = _QUANTITIES[colour]
    tokens = cells.drop_duplicates("position").sort_values("position")
    grid = Grid(
        name=_TABLE,
        tokens=list(tokens["token"]),
        blocks=list(blocks) if blocks is not None else sorted(set(cells["block"])),
        orientation=orientation,
        column_width=_CELL_WIDTH,
    )
    base = _with_tooltips(alt.Chart(alt.NamedData(name=_TABLE)), cells, grid.encoding())
    legend = alt.Legend(title=quantity.title)
    fill = alt.Color(f"{quantity.field}:Q", scale=quantity.scale, legend=legend)
    words = base.mark_text(style="token", limit=_CELL_WIDTH - 4, color=grid.ink_over(quantity.field))
    boxes = base.mark_rect(
        style="accent-outline", filled=False, xOffset=1, x2Offset=-1, yOffset=1, y2Offset=-1
    )
    marks = [
        base.mark_rect().encode(color=fill),
        words.encode(text="top_1:N"),
        boxes.transform_filter("datum.answer_arrives"),
        _surprises(tokens, grid),
    ]
    return grid.picture(
        *marks,
        title="Logit lens",
        subtitle="top token after each block; box: true next token first on top; triangle: surprise follows",
    )


def figures(dataset: xr.Dataset, *, blocks: Sequence[int] | None = None) -> list[Figure]:
    """Give the lens as a figure of a report, one variant for each quantity of its colour."""
    cells = frame(dataset)
    ranks = range(1, dataset.sizes["rank"] + 1)
    return [
        Figure(
            name=_TABLE,
            title="Logit lens",
            caption=(
                "The top token the model would say after each block, through its own final norm and "
                "unembedding. A box marks where the true next token first comes out on top; a triangle marks "
                f"tokens followed by a surprise (probability below {_SURPRISING_PROBABILITY:g} at the end)."
            ),
            draw=lambda **options: panel(cells, blocks=blocks, **options),
            frame=cells,
            choice="colour",
            variants={name: {"colour": name} for name in _QUANTITIES},
            linked=True,
            readout=Readout(
                bars=[Bar(f"top_{rank}", f"top_{rank}_probability") for rank in ranks],
                facts={
                    "next token": "next_token",
                    "its place": "answer_place",
                    "its log-probability": "target_log_probability",
                    "entropy (nats)": "entropy",
                    "KL(final || layer) (nats)": "kl_to_final",
                },
                unit="top tokens and their probabilities",
            ),
            surprisal=_surprisal(dataset),
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the lens out as one row for each layer and position, token text made visible."""
    n_layers, n_positions = dataset.sizes["layer"], dataset.sizes["position"]
    site = dataset["site"].values.astype(str)
    rank = dataset["target_rank"].values
    columns: dict[str, Any] = {
        "block": np.repeat([block_of(name) for name in site], n_positions),
        "site": np.repeat(site, n_positions),
        "position": np.tile(dataset["position"].values, n_layers),
        "token": np.tile(_shown(dataset["token"].values), n_layers),
        "next_token": np.tile(_shown(dataset["next_token"].values), n_layers),
    }
    for place in range(dataset.sizes["rank"]):
        columns[f"top_{place + 1}"] = _shown(dataset["top_token_text"].values[..., place].ravel())
        columns[f"top_{place + 1}_probability"] = dataset["top_probability"].values[..., place].ravel()
    for name in ("entropy", "kl_to_final", "target_log_probability"):
        columns[name] = dataset[name].values.ravel()
    columns["answer_place"] = np.where(rank < 0, np.nan, rank + 1.0).ravel()
    columns["answer_arrives"] = _first_on_top(rank).ravel()
    surprising = dataset["target_log_probability"].values[-1] < np.log(_SURPRISING_PROBABILITY)
    columns["surprising"] = np.tile(surprising, n_layers)
    return pd.DataFrame(columns)


def block_of(site: str) -> int:
    """Give the block after which a site lies: 3 for ``resid_post.3``, -1 for ``resid_pre.0``."""
    kind, _, number = site.rpartition(".")
    return int(number) - (kind == "resid_pre")


def _shown(texts: np.ndarray) -> list[str]:
    return [visible(str(text)) for text in texts]


def _first_on_top(rank: np.ndarray) -> np.ndarray:
    """Mark, for each position, the first layer at which the true next token has rank 0."""
    on_top = rank == 0
    return on_top & (np.cumsum(on_top, axis=0) == 1)


def _surprisal(dataset: xr.Dataset) -> list[float | None]:
    """Give each token's surprisal in nats after the last block; ``None`` for the first token."""
    nats = -dataset["target_log_probability"].values[-1]
    return [None, *(float(value) if np.isfinite(value) else None for value in nats[:-1])]


def _surprises(tokens: pd.DataFrame, grid: Grid) -> alt.Chart:
    shape = "triangle-down" if grid.orientation == "layers-down" else "triangle-right"
    layer = grid.places(tokens.loc[tokens["surprising"], "position"].tolist())
    mark = layer.mark_point(style="accent", shape=shape, size=30, filled=True)
    return mark.encode(**grid.beside_tokens())


def _places(cells: pd.DataFrame) -> range:
    return range(1, 1 + sum(bool(re.fullmatch(r"top_\d+", str(name))) for name in cells.columns))


def _with_tooltips(base: alt.Chart, cells: pd.DataFrame, encoding: dict[str, Any]) -> alt.Chart:
    """Show the top tokens on hover, each after its probability, so that no token can move the number."""
    lines = {
        f"line_{k}": f"format(datum.top_{k}_probability, '.4f') + '  ' + datum.top_{k}"
        for k in _places(cells)
    }
    tooltip = [
        alt.Tooltip("site:N", title="site"),
        alt.Tooltip("token:N", title="token"),
        *(alt.Tooltip(f"line_{k}:N", title=f"top {k}") for k in _places(cells)),
        alt.Tooltip("entropy:Q", title="entropy (nats)", format=".3f"),
        alt.Tooltip("next_token:N", title="next token"),
        alt.Tooltip("answer_place:Q", title="its place", format=",d"),
    ]
    return base.transform_calculate(**lines).encode(**encoding, tooltip=tooltip)


def findings(dataset: xr.Dataset, *, at_most: int = 2) -> list[Finding]:
    """Say which tokens are the largest surprises, and which repeated ones the model has learned to expect.

    Args:
        dataset: result of `assay.logit_lens`.
        at_most: number of sentences of each sort.

    Returns:
        Sentences with the cell each speaks of: the place from which the token is predicted.
    """
    final = dataset["target_log_probability"].values[-1]
    told = [int(place) for place in np.argsort(final) if np.isfinite(final[place])]
    surprising = [place for place in told if final[place] < np.log(_SURPRISING_PROBABILITY)][:at_most]
    return [
        *(finding for finding in _learned(dataset, at_most)),
        *(
            Finding(f"A surprise: {_arrival(dataset, place)}", place, _best_block(dataset, place))
            for place in surprising
        ),
    ]


def _learned(dataset: xr.Dataset, at_most: int) -> list[Finding]:
    """Find pairs of tokens that recur and whose second token is far less surprising the last time."""
    final, token = dataset["target_log_probability"].values[-1], dataset["token"].values.astype(str)
    occurrences: dict[tuple[str, str], list[int]] = {}
    for place in range(len(token) - 1):
        occurrences.setdefault((token[place], token[place + 1]), []).append(place)
    gains = {(p[0], p[-1]): final[p[-1]] - final[p[0]] for p in occurrences.values() if len(p) > 1}
    pairs = [pair for pair in sorted(gains, key=lambda pair: -gains[pair]) if gains[pair] > _LEARNED_NATS][
        :at_most
    ]
    return [
        Finding(
            f"Learned from the passage: at its first occurrence (token {first + 1}) "
            f"“{visible(token[first + 1])}” has probability {np.exp(final[first]):.3g}, "
            f"at a later one {_arrival(dataset, later)}",
            later,
            _best_block(dataset, later),
        )
        for first, later in pairs
    ]


def _arrival(dataset: xr.Dataset, place: int) -> str:
    """Tell where the token after `place` first comes out on top, or how near it ever gets."""
    following = visible(str(dataset["next_token"].values[place]))
    probability = float(np.exp(dataset["target_log_probability"].values[-1, place]))
    rank = dataset["target_rank"].values[:, place]
    said = f"“{following}” (token {place + 1}) has probability {probability:.3g}"
    if (rank == 0).any():
        return f"{said} and first comes out on top {_where(_best_block(dataset, place))}."
    best = int(rank.min())
    return (
        f"{said}; it never comes out on top (best place {best + 1:,}, {_where(_best_block(dataset, place))})."
    )


def _where(block: int) -> str:
    return f"after block {block}" if block >= 0 else "before the first block"


def _best_block(dataset: xr.Dataset, place: int) -> int:
    """Give the first block after which the true next token has its best place."""
    return block_of(str(dataset["site"].values[int(np.argmin(dataset["target_rank"].values[:, place]))]))
