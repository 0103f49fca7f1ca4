"""A check: a coded verdict on one result, with the figure it rests on and what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """A coded verdict on one result.

    Attributes:
        code: stable identifier, for example ``"A101"``; each has a line in ``docs/checks.md``.
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
