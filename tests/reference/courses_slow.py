"""Slow but obvious courses: one full forward pass, in which every block's own forward is replaced by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def slow_course(
    module: nn.Module, path: str, ids: Tensor, course: Sequence[Sequence[int]], *, average: bool = False
) -> Tensor:
    """Logits (row, pos, vocabulary) of a model whose blocks run in another order.

    The first pass notes how each block is called. In the second all blocks but the last hand on what they are given,
    and the last runs the whole course.
    """
    blocks = list(module.get_submodule(path))  # type: ignore[arg-type]
    own, arguments = [block.forward for block in blocks], [None] * len(blocks)

    def noting(index: int) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            arguments[index] = (args, kwargs)  # type: ignore[call-overload]
            return own[index](hidden, *args, **kwargs)

        return forward

    def handing_on(index: int) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            returned = own[index](hidden, *args, **kwargs)
            result = hidden
            if index == len(blocks) - 1:
                for step in course:
                    written = sum(
                        first(own[layer](result, *arguments[layer][0], **arguments[layer][1])) - result
                        for layer in step
                    )
                    result = result + written / (len(step) if average else 1)
            return (result, *returned[1:]) if isinstance(returned, tuple) else result

        return forward

    with torch.no_grad():
        try:
            for replacement in (noting, handing_on):
                for index, block in enumerate(blocks):
                    block.forward = replacement(index)
                logits = module(input_ids=ids, use_cache=False).logits
        finally:
            for block, forward in zip(blocks, own, strict=True):
                block.forward = forward
    return logits


def first(output: Any) -> Tensor:
    """The stream in what a block returned."""
    return output[0] if isinstance(output, tuple) else output
