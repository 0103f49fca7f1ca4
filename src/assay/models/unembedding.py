"""Other ways through a model's unembedding, for passes that read the logits of many rows.

`Kept` writes the same logits into memory that is kept from pass to pass: what a system spends on handing out fresh
pages for hundreds of megabytes is a tenth of such a pass.

`Candidates` finds the largest logits in bfloat16 and gives them their float32 values. A product in bfloat16 is several
times faster where the processor has tiles for it (AMX), and on tensor cores. It ranks the vocabulary well enough to
find candidates, whose logits are then computed in float32. A row whose k-th largest rescored logit does not stand above
the last candidate by :data:`SAFE` times the largest error seen among its candidates is unembedded in float32
altogether, so the k largest are those of float32. The other logits keep bfloat16's error, about 2^-8 of their size:
sums over the vocabulary (normaliser, entropy) are that exact.

`Unembedding` is the map from residual vectors to logits taken apart, for what compares runs: how the logits change is
the image of how the states before the unembedding change, and can be read a few entries of the vocabulary at a time.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.errors import BadInput
from assay.models.blocks import Blocks
from assay.models.model import Model

SAFE = 4.0
ROWS = 256
"""Rows rescored at once: their candidates' weights are gathered, (row, candidate, d_model)."""


class Kept:
    """An unembedding that writes into memory it keeps; what it gave is overwritten when it is called again.

    Args:
        unembed: the model's own unembedding.
    """

    def __init__(self, unembed: nn.Linear) -> None:
        self.unembed = unembed
        self._memory = unembed.weight.new_empty(0, unembed.out_features)

    def __call__(self, input: Tensor) -> Tensor:
        """Unembed.

        Args:
            input: what the unembedding reads, (..., d_model).

        Returns:
            Logits, (..., vocabulary).
        """
        rows, bias = input.flatten(0, -2), getattr(self.unembed, "bias", None)
        if len(self._memory) < len(rows):
            self._memory = rows.new_empty(len(rows), self.unembed.out_features)
        logits = torch.mm(rows, self.unembed.weight.T, out=self._memory[: len(rows)])
        if bias is not None:
            logits += bias
        return logits.unflatten(0, input.shape[:-1])


@dataclass(eq=False)
class Candidates:
    """An unembedding in bfloat16 with its candidates rescored.

    Attributes:
        unembed: the model's own unembedding.
        count: candidates of a row.
        top: how many of the largest logits are to be those of float32.
    """

    unembed: nn.Linear
    count: int
    top: int

    def __post_init__(self) -> None:
        """Keep the weights in bfloat16."""
        self._weight = self.unembed.weight.detach().bfloat16()
        self._bias: Tensor | None = self.unembed.bias

    def __call__(self, input: Tensor) -> Tensor:
        """Unembed.

        Args:
            input: what the unembedding reads, (..., d_model).

        Returns:
            Logits, (..., vocabulary).
        """
        logits = functional.linear(input.bfloat16(), self._weight).to(input.dtype)
        if self._bias is not None:
            logits += self._bias
        rows = zip(input.flatten(0, -2).split(ROWS), logits.flatten(0, -2).split(ROWS), strict=True)
        for entering, rough in rows:
            self._rescore(entering, rough)
        return logits

    def _rescore(self, states: Tensor, logits: Tensor) -> None:
        """Give the candidates of some rows, and whole rows that are uncertain, their exact logits in place."""
        rough, chosen = logits.topk(self.count, -1)
        exact = torch.einsum("rd,rnd->rn", states, self.unembed.weight[chosen])
        if self._bias is not None:
            exact += self._bias[chosen]
        logits.scatter_(-1, chosen, exact)
        allowance = SAFE * (exact - rough).abs().amax(-1)
        uncertain = exact.topk(self.top, -1).values[:, -1] <= rough[:, -1] + allowance
        if bool(uncertain.any()):
            logits[uncertain] = functional.linear(states[uncertain], self.unembed.weight, self._bias)


def candidates(model: Model, count: int, top: int) -> Candidates:
    """Make the unembedding of a model that rescores candidates.

    Args:
        model: a decoder.
        count: candidates of a row.
        top: how many of the largest logits are to be those of float32.

    Raises:
        BadInput: not more candidates than ``top``, or more than the vocabulary; an unembedding that is not
            linear.
    """
    unembed = model.parts.unembed
    if not isinstance(unembed, nn.Linear):
        raise BadInput(
            f"the unembedding is a {type(unembed).__name__}; candidates need an nn.Linear: leave them out"
        )
    if not top < count <= unembed.out_features:
        raise BadInput(
            f"candidates={count}: take more than the {top} top tokens that are kept, and at most the "
            f"{unembed.out_features} of the vocabulary; some 32 serve"
        )
    return Candidates(unembed, count, top)


def kept(model: Model) -> Kept | None:
    """Make the unembedding of a model that keeps its memory; None where that is not a plain linear map in float32."""
    unembed = model.parts.unembed
    if type(unembed) is not nn.Linear or unembed.weight.dtype != torch.float32:
        return None  # a class of its own may do more than multiply
    return Kept(unembed)


@contextmanager
def unembedding_by(found: Kept | Candidates | None) -> Generator[None]:
    """Let a model unembed otherwise for a while; ``None`` leaves it as it is."""
    if found is None:
        yield
        return
    replacement: Callable[[Tensor], Tensor] = found.__call__
    try:
        found.unembed.forward = replacement
        yield
    finally:
        found.unembed.__dict__.pop("forward", None)


@dataclass(frozen=True, eq=False)
class Unembedding:
    """States, and the linear map from their changes to those of the logits.

    Where a model's logits are its unembedding of a state and nothing more, states are what the unembedding is given. In
    families that do more (soft caps, scales), and where it is no plain linear layer, they are the logits themselves,
    and the map is the identity.

    Attributes:
        blocks: the decoder's blocks, which know its readout.
        linear: the unembedding; ``None`` where the map is the identity.
    """

    blocks: Blocks
    linear: nn.Linear | None

    @classmethod
    def of(cls, blocks: Blocks, resid: Tensor) -> "Unembedding":
        """Find out from a few residual vectors, (row, d_model), whether a model's logits are only its unembedding's."""
        unembed = blocks.model.parts.unembed
        if type(unembed) is not nn.Linear:  # a class of its own may do more than multiply
            return cls(blocks, None)
        given: list[Tensor] = []
        handle = unembed.register_forward_hook(lambda _, args, __: given.append(args[0]))
        try:
            logits = blocks.readout(resid)
        finally:
            handle.remove()
        if len(given) != 1:
            return cls(blocks, None)
        plain = functional.linear(given[0], unembed.weight, unembed.bias).view_as(logits).to(logits)
        return cls(blocks, unembed if torch.equal(plain, logits) else None)

    def states(self, resid: Tensor) -> Tensor:
        """States of residual vectors leaving the last block.

        Args:
            resid: residual vectors, (row, d_model).

        Returns:
            States, (row, width), in float32 or better.
        """
        if self.linear is None:
            logits = self.blocks.readout(resid)
            # a logit that the model masks with minus infinity has no probability; its change is nothing, not NaN
            return logits.to(_precise(logits)).clamp(min=torch.finfo(logits.dtype).min)
        held: list[Tensor] = []
        size = self.linear.out_features

        def hold(input: Tensor) -> Tensor:
            held.append(input)
            return input.new_zeros(1).expand(*input.shape[:-1], size)

        try:
            self.linear.forward = hold
            self.blocks.readout(resid)
        finally:
            self.linear.__dict__.pop("forward", None)
        return held[0].view(len(resid), -1).to(_precise(held[0]))

    def add_changes(self, logits: Tensor, changes: Tensor, start: int) -> None:
        """Add the changes of some logits, in place.

        Args:
            logits: what they are added to, (row, entry), contiguous.
            changes: of the states, (row, width).
            start: the first of the vocabulary's entries.
        """
        stop = start + logits.shape[1]
        if self.linear is None:
            logits += changes[:, start:stop]
        else:
            logits.addmm_(changes, self.linear.weight[start:stop].T.to(changes))

    def mean_map(self, probabilities: Tensor) -> Tensor:
        """What maps a change of the state to the mean change of a logit.

        Args:
            probabilities: of the vocabulary, (row, vocabulary).

        Returns:
            (row, width); its inner product with a change of the state is that mean.
        """
        return probabilities if self.linear is None else probabilities @ self.linear.weight.to(probabilities)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
