"""Losses: what is sampled. Any function of module and batch that gives one value for each example will do.

A loss that depends on the module through its outputs alone is an `OutputLoss`; for these a plain stack of linear
layers is differentiated by hand, which is faster.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
"""loss(module, batch) -> one value per example, (example,), or per token, (example, token)."""


@dataclass(frozen=True)
class OutputLoss:
    """A loss of the module's outputs: batch[0] is the input, batch[1] the target.

    Attributes:
        of: outputs (example, ...) and targets (example, ...) -> (example,) or (example, token).
    """

    of: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Give the loss of each example."""
        return self.of(module(batch[0]), batch[1])


def _squared_distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


squared_error = OutputLoss(_squared_distance)
"""Squared distance of outputs and targets, summed over output units."""
cross_entropy = OutputLoss(_cross_entropy)
"""Cross entropy of class scores (example, class) with class numbers (example,), in nats."""
