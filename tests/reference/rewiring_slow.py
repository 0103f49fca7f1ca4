"""Slow but obvious rewiring: every reader's stream is put together from a table, in a full forward with hooks."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def slow_rewired(
    module: nn.Module,
    path: str,
    second_norm: str | None,
    ids: Tensor,
    reads: Tensor,
    instead: Sequence[Tensor],
    *,
    original: bool,
    keep_first: bool,
) -> Tensor:
    """Logits (row, pos, vocabulary) of a model whose readers read what a table says.

    Args:
        module: the model.
        path: of its blocks.
        second_norm: the norm in a block that the MLP reads through; ``None`` where a block is one reader.
        ids: token ids, (row, pos).
        reads: (reader, source).
        instead: what stands in for each source.
        original: sources write what they did in the clean run.
        keep_first: position 0 is left alone.
    """
    clean = _forward(module, path, second_norm, ids, None)[1]
    writes = [clean[0], *(b - a for a, b in zip(clean, clean[1:], strict=False))]
    own: list[Tensor] = [writes[0]]

    def stream(reader: int) -> Tensor:
        table = writes if original and reader < len(reads) - 1 else own
        total = sum(
            table[s] if reads[reader, s] else instead[s].expand_as(writes[0]) for s in range(reader + 1)
        )
        if keep_first:
            total = torch.cat([clean[reader][:, :1], total[:, 1:]], 1)
        return total

    def visit(reader: int, raw: Tensor, before: Tensor | None) -> Tensor:
        if before is not None:
            own.append(raw - before)
        return stream(reader)

    return _forward(module, path, second_norm, ids, visit)[0]


def _forward(
    module: nn.Module, path: str, second_norm: str | None, ids: Tensor, visit: Any
) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the stream at every reader as it came in; ``visit`` says what it is to be."""
    seen: list[Tensor] = []
    given: list[Tensor] = []

    def replaced(raw: Tensor) -> Tensor:
        new = raw.clone() if visit is None else visit(len(seen), raw, given[-1] if given else None)
        seen.append(raw.clone())
        given.append(new.clone())
        return new

    def entering(_: Any, args: Any, kwargs: Any) -> Any:
        return (replaced(args[0]), *args[1:]), kwargs

    def middle(_: Any, args: Any) -> None:
        args[0].copy_(replaced(args[0]))

    def leaving(_: Any, __: Any, output: Any) -> Any:
        new = replaced(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    blocks = list(module.get_submodule(path))  # type: ignore[arg-type]
    with torch.no_grad(), ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(entering, with_kwargs=True).remove)
            if second_norm is not None:
                stack.callback(block.get_submodule(second_norm).register_forward_pre_hook(middle).remove)
        stack.callback(blocks[-1].register_forward_hook(leaving).remove)
        logits = module(input_ids=ids, use_cache=False).logits
    return logits, seen
