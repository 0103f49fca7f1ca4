"""A norm that no longer looks at its input: it divides by a constant."""

import torch
from torch import Tensor, nn

from assay.errors import BadInput


class FixedNorm(nn.Module):
    r"""What is left of a norm when its scale is a constant: an affine map.

    .. math:: y_t = \frac{x_t - \bar x_t}{s_t} \odot w + b

    with :math:`\bar x` left out for an RMSNorm. With :math:`s = 1`, no gain, no bias and no centring it is the
    identity. Positions are counted from the start of the input: pad on the right, and keep no keys and values.

    Args:
        scale: what is divided by, broadcastable to the input with its last axis 1; along ``axis`` either one value for
            all positions, or one for each.
        weight: the gain; ``None`` for one.
        bias: likewise; ``None`` for zero.
        centring: subtract the mean over the last axis.
        axis: which axis of the input is the position.
        endless: the last of several scales holds for all further positions; otherwise longer inputs are refused.
    """

    scale: Tensor

    def __init__(
        self,
        scale: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        centring: bool = False,
        axis: int = 1,
        endless: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.centring, self.axis, self.endless = centring, axis, endless

    @property
    def by_position(self) -> bool:
        """Whether positions have scales of their own, or the only one is that of a reference of one token."""
        return self.scale.shape[self.axis] > 1 or not self.endless

    @property
    def is_identity(self) -> bool:
        """Whether nothing is left to do."""
        plain = self.weight is None and self.bias is None and not self.centring
        return plain and bool((self.scale == 1).all())

    def divisor(self, x: Tensor) -> Tensor:
        """What the input is divided by, (..., 1).

        Raises:
            BadInput: the input is longer than the reference whose scales these are.
        """
        if not self.by_position:
            return self.scale.expand(*x.shape[:-1], 1)
        length, known = x.shape[self.axis], self.scale.shape[self.axis]
        if length > known and not self.endless:
            raise BadInput(
                f"the norms are frozen at a reference of {known} tokens, the input has {length}: freeze at a longer "
                "reference, or use assay.norms.scale"
            )
        index = torch.arange(length, device=self.scale.device).clamp_max(known - 1)
        return self.scale.index_select(self.axis, index).expand(*x.shape[:-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the constant; (..., d) to (..., d)."""
        if self.is_identity:
            return x
        y = (x - x.mean(-1, keepdim=True) if self.centring else x) / self.divisor(x)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Show which kind is left."""
        return f"positions={self.scale.shape[self.axis]}, centring={self.centring}"
