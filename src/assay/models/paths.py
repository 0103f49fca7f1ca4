r"""Paths through residual blocks: the gradient that paths of each length carry, and the model with paths cut short.

With :math:`f_l(x) = B_l(x) - x` what block l writes, a path takes at each block either the skip or the block; its
length is the number of blocks it takes. Two exact decompositions, neither of which lists the :math:`2^L` paths:

The gradient at the embedding is the sum over paths of products of the Jacobians of the blocks they take. Carried down
as a polynomial, :math:`\prod_l (1 + t J_l^\top)\,g`, its coefficient at :math:`t^k` is the sum over all paths of
length k.

And the streams :math:`x^{(m)}_n = e + \sum_{i<n} f_i(x^{(m-1)}_i)`, with :math:`x^{(0)}_n = e`, hold what can be
computed by at most m blocks in a row; :math:`x^{(L)}` is the model.
"""

import torch
from torch import Tensor

from assay.models.courses import no_prefix, require_blocks
from assay.models.intervention import capture
from assay.models.partial import Recording


def loss_gradient(recording: Recording) -> Tensor:
    """The gradient of each row's mean next-token loss at its last residual stream, (row, pos, d_model)."""
    site = f"resid_post.{len(recording.resid) - 2}"
    found = capture(recording.blocks.model, recording.ids, [site, "logits"], grad=True)
    with torch.enable_grad():
        logs = found["logits"][:, :-1].float().log_softmax(-1)
        loss = -logs.gather(-1, recording.ids[:, 1:, None]).mean((1, 2)).sum()
    return torch.autograd.grad(loss, found[site])[0]


def path_gradients(recording: Recording, gradient: Tensor) -> Tensor:
    """The gradient at the embedding that paths of each length carry.

    Args:
        recording: a run.
        gradient: at the last residual stream, (row, pos, d_model).

    Returns:
        (length, row, pos, d_model), lengths 0 to L; they add up to the whole gradient.

    Raises:
        BadInput: a family whose blocks cannot be run on their own.
    """
    require_blocks(recording)
    calls = recording.blocks.calls(recording.ids[0], 0)
    carried = [gradient]
    for layer in reversed(range(len(calls))):
        resid = recording.resid[layer].detach().requires_grad_()
        with torch.enable_grad():
            written = calls[layer](resid, no_prefix(recording)) - resid
        through = [torch.autograd.grad(written, resid, each, retain_graph=True)[0] for each in carried]
        longer = [*carried, torch.zeros_like(gradient)]
        carried = [skip if k == 0 else skip + through[k - 1] for k, skip in enumerate(longer)]
    return torch.stack(carried)


def shallow_streams(recording: Recording, *, keep_first: bool = True) -> Tensor:
    """The last residual stream with at most m blocks in a row.

    Args:
        recording: a run.
        keep_first: position 0 is left as it is.

    Returns:
        (depth, row, pos, d_model), depths 0 to L; the last is the recorded one.

    Raises:
        BadInput: a family whose blocks cannot be run on their own.
    """
    require_blocks(recording)
    layers = len(recording.resid) - 1
    calls, embed = recording.blocks.calls(recording.ids[0], 0), recording.resid[0]

    def placed(stream: Tensor, layer: int) -> Tensor:
        if not keep_first:
            return stream
        return torch.cat([recording.resid[layer][:, :1], stream[:, 1:]], 1)

    streams = [placed(embed, layer) for layer in range(layers + 1)]
    ends = [streams[-1]]
    with torch.no_grad():
        for depth in range(1, layers + 1):
            after, total = list(recording.resid[: depth + 1]), recording.resid[depth]  # settled by now
            for layer in range(depth, layers):
                total = total + calls[layer](streams[layer], no_prefix(recording)) - streams[layer]
                after.append(placed(total, layer + 1))
            streams = after
            ends.append(streams[-1])
    return torch.stack(ends)
