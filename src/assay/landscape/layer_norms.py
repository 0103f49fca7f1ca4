"""Layer norms of many chains at once, differentiated by hand; `assay.landscape.stack` uses them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Seen(NamedTuple):
    """What a forward pass leaves to the backward pass.

    Attributes:
        normed: values without their mean, over their standard deviation, (chain, example, unit).
        mean: (chain, example, 1).
        scale: one over the standard deviation, (chain, example, 1).
    """

    normed: Tensor
    mean: Tensor
    scale: Tensor


def is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer normalizes rows of units."""
    return type(layer) is nn.LayerNorm and len(layer.normalized_shape) == 1


def normalize(values: Tensor, eps: float, out: Tensor) -> Seen:
    """Take mean and scale out of values (chain, example, unit), into memory that is given."""
    mean = values.mean(-1, keepdim=True)
    torch.sub(values, mean, out=out)
    variance = torch.linalg.vector_norm(out, dim=-1, keepdim=True).square_().div_(values.shape[-1])
    scale = variance.add_(eps).rsqrt_()
    return Seen(out.mul_(scale), mean, scale)


def pull_back(slope: Tensor, values: Tensor, seen: Seen) -> Tensor:
    """Give the slope with respect to values from that with respect to `normed`, both (chain, example, unit)."""
    shape, wanted = [values.shape[-1]], [True, False, False]
    found = torch.ops.aten.native_layer_norm_backward(
        slope, values, shape, seen.mean, seen.scale, None, None, wanted
    )
    return found[0]
