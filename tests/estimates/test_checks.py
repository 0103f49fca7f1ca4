"""A figure is judged by two limits, both of which still belong to the milder verdict."""

import pytest

from assay.estimates.checks import graded


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [(0.0, "pass"), (0.1, "pass"), (0.11, "warn"), (0.5, "warn"), (0.51, "fail"), (float("nan"), "fail")],
)
def test_a_figure_is_judged_by_two_limits(figure: float, verdict: str) -> None:
    check = graded("X001", "too much", figure, (0.1, 0.5), "It is so.", "Take less.")
    assert (check.code, check.verdict) == ("X001", verdict)
    assert check.remedy == ("" if verdict == "pass" else "Take less.")
