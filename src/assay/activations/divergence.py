"""Log-probabilities of logits, and the divergence between rows of them."""

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Logarithm of the softmax.

    Args:
        logits: (..., vocabulary).

    Returns:
        Log-probabilities in float32 or better; where a model masks an entry with minus infinity, the lowest number, so
        that it adds nothing to a divergence rather than NaN.
    """
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    lowest = torch.finfo(logs.dtype).min
    return logs.clamp_min(lowest) if logs.requires_grad else logs.clamp_min_(lowest)


def kl_divergence(clean: Tensor, edited: Tensor) -> Tensor:
    """KL(clean || edited) in nats, never below zero.

    Args:
        clean: log-probabilities, (..., vocabulary).
        edited: likewise; the two are broadcast.

    Returns:
        (...).
    """
    difference = clean - edited  # of the finer of their dtypes
    return torch.linalg.vecdot(clean.to(difference.dtype).exp(), difference).clamp_min(0)
