"""By which engine the variants of a result were run: how units keep it, how a result names it, and the check on it."""

from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor

from assay.estimates.checks import Check

PARTIAL = "partial forwards"


def reason_kept(fallback: str) -> Tensor:
    """Why variants were run as full forwards, as a unit can keep it: one byte an entry, none for partial forwards."""
    return torch.tensor(list(fallback.encode()), dtype=torch.uint8)


def engine_named(reasons: Sequence[Tensor]) -> str:
    """The engine of a result.

    Args:
        reasons: what its units kept.

    Returns:
        ``partial forwards``, or ``full forwards`` with the first reason there is.
    """
    told = [bytes(reason.tolist()).decode() for reason in reasons if reason.numel()]
    return f"full forwards: {told[0]}" if told else PARTIAL


def engine_check(code: str, dataset: xr.Dataset, what: str) -> Check:
    """Whether variants were run as partial forwards.

    Args:
        code: of the check.
        dataset: names its engine.
        what: was computed: ``components``, ``cells``...

    Returns:
        The verdict.
    """
    engine = dataset.attrs["engine"]
    message = f"The {what} were computed by {engine}."
    if engine == PARTIAL:
        return Check(code, "no partial forwards", "pass", None, message)
    remedy = "The numbers are right, only slower; `assay doctor` says more."
    return Check(code, "no partial forwards", "warn", None, message, remedy)
