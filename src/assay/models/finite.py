"""Weights that are numbers: NaN and infinite ones are refused, by name."""

import torch
from torch import nn

from assay.errors import BadInput

NAMED = 5  # parameters named in an error before the rest are counted


def require_finite(module: nn.Module, path: str = "") -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        module: any module.
        path: where it is in a module tree; empty for the whole.

    Raises:
        BadInput: naming the parameters that hold such numbers.
    """
    named = module.named_parameters(prefix=path)
    damaged = [name for name, weights in named if not _all_finite(weights.detach())]
    if damaged:
        rest = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise BadInput(
            f"The weights hold NaN or infinite numbers in {', '.join(damaged[:NAMED])}{rest}. The file is "
            "damaged, training diverged, or the dtype is too narrow (float16 ends at 65504: try bfloat16)."
        )


def _all_finite(weights: torch.Tensor) -> bool:
    if not weights.is_floating_point() or not weights.numel() or weights.is_meta:
        return True
    return bool(torch.stack(torch.aminmax(weights)).isfinite().all())  # one pass; NaN wins over every number
