"""A check: a coded verdict on one result, with the figure it rests on and what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """A coded verdict on one result.

    Attributes:
        code: stable identifier, for example ``"A001"``; each has a line in ``docs/checks.md``.
        title: what the code stands for, for example ``"chains disagree"``.
        verdict: ``"pass"``, ``"warn"`` (read with care) or ``"fail"`` (do not use the number).
        figure: the number the verdict rests on; ``None`` where the check is not numeric.
        message: one sentence with the figure in it.
        remedy: what to change; empty when the check passes.
    """

    code: str
    title: str
    verdict: Literal["pass", "warn", "fail"]
    figure: float | None
    message: str
    remedy: str = ""


def graded(
    code: str, title: str, figure: float, limits: tuple[float, float], message: str, remedy: str
) -> Check:
    """Judge a figure that should be small.

    Args:
        code: of the check.
        title: what is wrong when it does not pass.
        figure: what is judged.
        limits: the largest figure that passes, and the largest that only warns.
        message: one sentence with the figure in it.
        remedy: what to do when it does not pass.

    Returns:
        The verdict.
    """
    passes, warns = limits
    if figure <= passes:
        return Check(code, title, "pass", figure, message)
    return Check(code, title, "warn" if figure <= warns else "fail", figure, message, remedy)
