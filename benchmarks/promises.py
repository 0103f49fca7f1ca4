"""Figures of a comparison, each with its interval, held against what Assay has promised."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Promise:
    """A figure and the bound it has to keep; the figure alone where nothing was promised.

    Attributes:
        quantity: "ratio" or "difference" of the median seconds of `of` and `to`; "seconds": those of `of`;
            "memory": peak bytes of `of`, less the weights; "memory ratio": of the peaks of `of` and `to`.
        of: label of a contestant.
        to: label of the one it is compared with, if any.
        direction: on which side of the bound the figure has to stay.
        bound: a ratio, seconds or bytes.
    """

    quantity: Literal["ratio", "difference", "seconds", "memory", "memory ratio"]
    of: str
    to: str = ""
    direction: Literal["at most", "at least"] = "at most"
    bound: float | None = None


def figure(promise: Promise, turns: dict[str, Turns], weight_bytes: int) -> dict[str, Any]:
    """Return the promised figure, its 95% interval and whether the promise was kept.

    The interval is a percentile bootstrap of the medians over the repetitions, the turns of one repetition
    kept together. A peak of memory has none.
    """
    low = high = None
    if promise.quantity == "memory":
        value = _peak(turns[promise.of]) - weight_bytes
    elif promise.quantity == "memory ratio":
        value = _peak(turns[promise.of]) / _peak(turns[promise.to])
    else:
        seconds = np.array(
            [
                [turn["whole_seconds"] for turn in turns[name]]
                for name in (promise.of, promise.to or promise.of)
            ]
        )
        drawn = np.random.default_rng(0).integers(seconds.shape[1], size=(RESAMPLES, seconds.shape[1]))
        value = float(_compare(promise, np.median(seconds, axis=-1)))
        low, high = np.quantile(
            _compare(promise, np.median(seconds[:, drawn], axis=-1)), [0.025, 0.975]
        ).tolist()
    kept = None
    if promise.bound is not None:
        kept = value <= promise.bound if promise.direction == "at most" else value >= promise.bound
    return {**vars(promise), "value": value, "low": low, "high": high, "kept": kept}


def _peak(turns: Turns) -> float:
    return float(max(turn["peak_bytes"] for turn in turns))


def _compare(promise: Promise, medians: NDArray[np.float64]) -> NDArray[np.float64]:
    of, to = medians
    return {"ratio": of / to, "difference": of - to, "seconds": of}[promise.quantity]


def time_summary(turns: Turns) -> dict[str, Any]:
    """What is kept of a contestant's times; a turn's share of the work counts as the whole in proportion."""
    seconds = [turn["whole_seconds"] for turn in turns]
    return {"median_seconds": float(np.median(seconds)), "min_seconds": min(seconds), "seconds": seconds}
