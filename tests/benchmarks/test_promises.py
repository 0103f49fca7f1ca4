"""Figures of a comparison, on times whose ratios are known."""

from typing import Any

import pytest
from benchmarks.promises import Promise, figure, time_summary

BUSY = [1.0, 9.0, 2.0, 30.0, 4.0]  # seconds on a machine with other things to do


def turns(seconds: list[float], peak: int = 0) -> list[dict[str, Any]]:
    return [{"whole_seconds": second, "peak_bytes": peak} for second in seconds]


def test_a_ratio_keeps_the_turns_of_one_repetition_together() -> None:
    """What slows both sides of a repetition must not widen the interval of their ratio."""
    found = figure(Promise("ratio", "a", "b"), {"a": turns([3 * s for s in BUSY]), "b": turns(BUSY)}, 0)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((3, 3, 3))
    assert found["kept"] is None


def test_a_ratio_of_varying_times_has_an_interval_around_it() -> None:
    found = figure(Promise("ratio", "a", "b"), {"a": turns(BUSY), "b": turns(BUSY[::-1])}, 0)
    assert found["low"] < found["value"] == 1 < found["high"]


def test_difference_and_seconds_are_of_the_medians() -> None:
    told = {"a": turns([5.0, 6.0, 70.0]), "b": turns([1.0, 2.0, 3.0])}
    assert figure(Promise("difference", "a", "b"), told, 0)["value"] == 4
    assert figure(Promise("seconds", "a"), told, 0)["value"] == 6


def test_memory_is_the_highest_peak_without_the_weights() -> None:
    found = figure(Promise("memory", "a"), {"a": turns([1.0], 700) + turns([1.0], 600)}, 200)
    assert (found["value"], found["low"]) == (500, None)


@pytest.mark.parametrize(
    ("direction", "bound", "kept"),
    [("at least", 1.9, True), ("at least", 2.1, False), ("at most", 2.1, True), ("at most", 1.9, False)],
)
def test_a_promise_is_kept_on_its_side_of_the_bound(direction: Any, bound: float, kept: bool) -> None:
    promise = Promise("ratio", "a", "b", direction, bound)
    assert figure(promise, {"a": turns([2.0]), "b": turns([1.0])}, 0)["kept"] is kept


def test_time_summary_keeps_every_time() -> None:
    assert time_summary(turns(BUSY)) == {"median_seconds": 4.0, "min_seconds": 1.0, "seconds": BUSY}
