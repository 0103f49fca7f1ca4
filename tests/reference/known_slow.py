"""Slow but obvious truth about a small decoder: it is run head by head, and parts are taken out one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.zoo.decoder import Block, Decoder


@dataclass(frozen=True, eq=False)
class Run:
    """One pass.

    Attributes:
        logits: at the last position, (row, vocabulary).
        written: what each part adds to the stream, by its name, (row, pos, d_model).
    """

    logits: Tensor
    written: dict[str, Tensor]


@torch.no_grad()
def run(
    model: Decoder,
    ids: Tensor,
    *,
    writes: Mapping[str, Tensor] | None = None,
    reads: Mapping[str, Tensor] | None = None,
) -> Run:
    """Run a decoder.

    Args:
        model: the decoder.
        ids: (row, pos).
        writes: what parts write instead, by name: ``head.1.0``.
        reads: what is added to the stream that single receivers read: ``k.1.0``, ``mlp.1``, ``logits``.

    Returns:
        The logits, and what each part wrote.
    """
    instead, more, written = dict(writes or {}), dict(reads or {}), {}

    def add(stream: Tensor, part: str, value: Tensor) -> Tensor:
        written[part] = instead.get(part, value)
        return stream + written[part]

    stream = add(torch.zeros(1), "embed", model.embed(ids) + model.positions.weight[: ids.shape[1]])
    for layer, block in enumerate(model.blocks):
        entering = stream
        for head in range(block.attention.heads):
            q, k, v = (
                _projected(block, name, head, block.ln_1(entering + more.get(f"{name}.{layer}.{head}", 0)))
                for name in "qkv"
            )
            stream = add(stream, f"head.{layer}.{head}", _attended(block, head, q, k, v))
        read = stream + more.get(f"mlp.{layer}", 0)
        stream = add(stream, f"mlp.{layer}", block.mlp(block.ln_2(read)))
    last = (stream + more.get("logits", 0))[:, -1]
    return Run(model.unembed(model.norm(last)), written)


def _projected(block: Block, name: str, head: int, stream: Tensor) -> Tensor:
    whole = getattr(block.attention, f"{name}_proj").weight
    width = len(whole) // block.attention.heads
    return stream @ whole[head * width : (head + 1) * width].T


def _attended(block: Block, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    length, width = q.shape[1], q.shape[2]
    scores = (q[:, :, None] * k[:, None]).sum(-1) * block.attention.scale
    seen = torch.ones(length, length).tril()
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * seen
    mixed = weights / weights.sum(-1, keepdim=True) @ v
    return mixed @ block.attention.o_proj.weight[:, head * width : (head + 1) * width].T


def answered(logits: Tensor, answers: list[int], foils: list[int]) -> Tensor:
    """Logit of the answer less that of the foil, (row,)."""
    rows = torch.arange(len(logits))
    return logits[rows, answers] - logits[rows, foils]
