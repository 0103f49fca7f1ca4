"""Slow but obvious metrics of edited logits, from whole distributions in float64."""

import torch
from torch import Tensor


def slow_metrics(clean: Tensor, edited: Tensor, ids: Tensor, read: list[int] | None = None) -> Tensor:
    """Loss difference, KL from clean, top-1 agreement and change of the logit difference, of one input.

    Args:
        clean: logits, (pos, vocabulary).
        edited: likewise.
        ids: token ids, (pos,).
        read: the positions compared; all by default.

    Returns:
        (metric,), float64.
    """
    p, q = clean.double().log_softmax(-1), edited.double().log_softmax(-1)
    loss, kl, agree, difference = [], [], [], []
    for t in range(len(ids)) if read is None else read:
        kl.append((p[t].exp() * (p[t] - q[t])).sum())
        agree.append((p[t].argmax() == q[t].argmax()).double())
        if t + 1 < len(ids):
            following = int(ids[t + 1])
            foil = int(next(v for v in clean[t].argsort(descending=True) if v != following))
            loss.append(p[t, following] - q[t, following])
            difference.append(
                (edited[t, following] - edited[t, foil]) - (clean[t, following] - clean[t, foil])
            )
    return torch.stack([torch.stack(each).double().mean() for each in (loss, kl, agree, difference)])
