"""Statistics of rows of logits: what is most probable, how sure a row is, how far it is from another.

Logits of every layer and position are large; these passes over them are what a lens takes beside its matrix products.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.runs.measurement import Pieces

GROUP = 16
"""Rows whose statistics are taken at once, so that on a processor a row stays in the cache from pass to pass."""
BLOCK = 64
"""Entries of the vocabulary whose maximum is taken first, when looking for the top ones."""


def read_rows(logits: Tensor, final: Tensor, place: Tensor, targets: Tensor, top_k: int) -> Pieces:
    r"""Statistics of rows of logits, in few passes over memory, a group of rows that fits the cache at a time.

    With :math:`p` the softmax of a row :math:`z`, :math:`Z` its normaliser, and :math:`q` the final layer's
    distribution at its position: entropy :math:`\log Z - \sum p z`, and KL(final || layer)
    :math:`= \sum q \log q - \sum q z + \log Z`.

    Args:
        logits: (row, vocabulary).
        final: the final layer's log-probabilities, (position, vocabulary).
        place: the row of ``final`` that belongs to each row, (row,).
        targets: each row's true next token, (row,).
        top_k: how many top tokens to keep.

    Returns:
        ``top_token`` and ``top_probability`` (row, rank), ``entropy``, ``kl_to_final``, ``target_rank``,
        ``target_log_probability`` (row,).
    """
    top, token = _top(logits, top_k)
    target = logits.gather(1, targets[:, None])
    probability = final.exp()
    scratch = logits.new_empty(min(GROUP, len(logits)), logits.shape[1])
    inner, cross, rank, largest = (logits.new_empty(len(logits)) for _ in range(4))
    for position, of in _runs(place):
        rows = logits[of]
        softmax = torch.softmax(rows, -1, out=scratch[: len(rows)])
        largest[of] = softmax.gather(1, token[of, :1])[:, 0]
        cross[of] = torch.mv(rows, probability[position])
        # entry by entry in place, then the sum: both run in parallel, which a row's inner product does not
        inner[of] = softmax.mul_(rows).sum(-1)
        rank[of] = torch.gt(rows, target[of], out=softmax).sum(-1)  # counted in float32, exact below 2**24
    negative_entropy = probability.mul_(final).sum(-1)[place]
    lowest = torch.finfo(logits.dtype).min
    if bool((inner + negative_entropy).isnan().any()) and bool((logits < lowest).any()):
        # entries that the model masks with minus infinity have no probability, and add nothing
        return read_rows(logits.clamp(min=lowest), final.clamp(min=lowest), place, targets, top_k)
    normaliser = top[:, 0] - largest.log()
    return {
        "top_token": token,
        "top_probability": (top - normaliser[:, None]).exp(),
        "entropy": (normaliser - inner).clamp_min(0),
        "kl_to_final": (negative_entropy - cross + normaliser).clamp_min(0),
        "target_rank": rank.long(),
        "target_log_probability": target[:, 0] - normaliser,
    }


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row: they lie in the k blocks of largest maximum, so only those are sorted."""
    rows, vocabulary = logits.shape
    if vocabulary % BLOCK or k * BLOCK > vocabulary:
        values, places = logits.topk(k, -1)
        return values, places
    blocks = logits.view(rows, vocabulary // BLOCK, BLOCK)
    chosen = blocks.amax(-1).topk(k, -1).indices
    candidates = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    values, places = candidates.topk(k, -1)
    return values, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def _runs(place: Tensor) -> Iterator[tuple[int, slice]]:
    """Consecutive rows of one position, at most ``GROUP`` at a time: the position, and which rows."""
    positions, counts = torch.unique_consecutive(place, return_counts=True)
    start = 0
    for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
        for begin in range(0, count, GROUP):
            yield position, slice(start + begin, start + min(begin + GROUP, count))
        start += count
