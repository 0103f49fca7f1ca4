"""Running a model's blocks one by one, and what stands before and after them, without knowing the family.

The model itself is asked: its own forward is run with the blocks standing aside. Before the blocks that
yields the arguments each block is called with (masks, rotary tables, ALiBi, positions); after them it yields
the model's own readout (final norm, projections, unembedding, soft caps, logit scales). Neither needs a line
of code per family.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from assay.errors import BadInput
from assay.models.inputs import few_logits
from assay.models.model import Model

Call = tuple[tuple[Any, ...], dict[str, Any]]
Forward = Callable[..., Any]


@contextmanager
def standing_aside(model: Model, replace: Callable[[int, Forward], Forward]) -> Generator[None]:
    """Give every block another forward for a while.

    Args:
        model: a decoder.
        replace: from a block's index and its own forward to the one it has meanwhile.

    Yields:
        Nothing; the blocks' own forwards are back afterwards, whatever happened.
    """
    modules = [block.module for block in model.parts.blocks]
    own = [module.__dict__.get("forward") for module in modules]
    try:
        for index, module in enumerate(modules):
            module.forward = replace(index, module.forward)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


def hidden(output: Any) -> Tensor:
    """The residual stream in what a block returned: families return it bare, or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def _passed_on(model: Model) -> list[int]:
    """How each block returns the residual stream: 0 for bare, else the length of the tuple.

    One block of each class is run on one token; blocks of a class return alike.
    """
    lengths: dict[type[nn.Module], int] = {}
    kinds = [type(block.module) for block in model.parts.blocks]

    def watch(index: int, forward: Forward) -> Forward:
        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if kinds[index] not in lengths:
                output = forward(hidden_states, *args, **kwargs)
                lengths[kinds[index]] = len(output) if isinstance(output, tuple) else 0
            return _returned(lengths[kinds[index]], hidden_states)

        return run

    with torch.no_grad(), standing_aside(model, watch):
        model.module(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), **few_logits(model))
    return [lengths[kind] for kind in kinds]


def _returned(length: int, tensor: Tensor) -> Any:
    return (tensor, *[None] * (length - 1)) if length else tensor


@dataclass(eq=False)
class Blocks:
    """The blocks of a decoder, callable from outside their model.

    Attributes:
        model: the decoder.
    """

    model: Model

    def __post_init__(self) -> None:
        """Learn from one token how each block returns the residual stream.

        Raises:
            BadInput: norms with scales of their own at some positions, which blocks called alone cannot tell apart.
        """
        if any(getattr(module, "by_position", False) for module in self.model.module.modules()):
            raise BadInput(
                f"{self.model.source}: its norms divide by constants that differ between positions, so that its blocks "
                "cannot be called apart from the whole. Use capture and intervene, or assay.norms.scale(special=())"
            )
        self._lengths = _passed_on(self.model)

    def calls(self, ids: Tensor, prefix: int) -> list["BlockCall"]:
        """What each block is called with when tokens follow a prefix that is already cached.

        Args:
            ids: the tokens after the prefix, (pos,).
            prefix: how many tokens went before.

        Returns:
            One call a block, usable for any number of rows.
        """
        one, two = (self._recorded(ids.expand(rows, -1), prefix) for rows in (1, 2))
        return [
            BlockCall(block.module, a, b)
            for block, a, b in zip(self.model.parts.blocks, one, two, strict=True)
        ]

    def _recorded(self, ids: Tensor, prefix: int) -> list[Call]:
        recorded: list[Call] = []

        def record(index: int, _: Forward) -> Forward:
            def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                recorded.append((args, kwargs))
                return _returned(self._lengths[index], hidden_states)

            return run

        with torch.no_grad(), standing_aside(self.model, record):
            cache = PrefixCache([PrefixLayer(None, None, prefix) for _ in self.model.parts.blocks])
            self.model.module(input_ids=ids, past_key_values=cache, use_cache=True, **few_logits(self.model))
        return recorded

    def entering(self, ids: Tensor, layer: int) -> Tensor:
        """What enters a block, from the blocks before it alone.

        Args:
            ids: whole prompts, (row, pos).
            layer: of the block.

        Returns:
            Residual stream, (row, pos, d_model).
        """
        found: list[Tensor] = []

        def watch(index: int, forward: Forward) -> Forward:
            def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                if index < layer:
                    return forward(hidden_states, *args, **kwargs)
                if index == layer:
                    found.append(hidden_states)
                return _returned(self._lengths[index], hidden_states)

            return run

        with torch.no_grad(), standing_aside(self.model, watch):
            self.model.module(input_ids=ids, use_cache=False, **few_logits(self.model))
        return found[0]

    @contextmanager
    def entered(self, layer: int, resid: Callable[[], Tensor | None]) -> Generator[None]:
        """Begin the model's own passes at a block for a while.

        Args:
            layer: of the block; those before it stand aside.
            resid: asked by each block of the pass for what enters the first one, (row, pos, d_model); None
                lets it be an ordinary pass.

        Yields:
            Nothing; passes are ordinary ones again afterwards.
        """

        def begin(index: int, forward: Forward) -> Forward:
            def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                given = resid()
                if given is not None and index < layer:
                    return _returned(self._lengths[index], hidden_states)
                if given is not None and index == layer:
                    hidden_states = given
                return forward(hidden_states, *args, **kwargs)

            return run

        with standing_aside(self.model, begin):
            yield

    def readout(self, resid: Tensor) -> Tensor:
        """Logits of residual vectors, by everything the model does after its last block.

        Args:
            resid: residual vectors, (row, d_model).

        Returns:
            Logits, (row, vocabulary).
        """
        last = self.model.n_layers - 1

        def skip(index: int, _: Forward) -> Forward:
            def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                return _returned(self._lengths[index], resid.unsqueeze(1) if index == last else hidden_states)

            return run

        ids = torch.zeros(len(resid), 1, dtype=torch.long, device=resid.device)
        with torch.no_grad(), standing_aside(self.model, skip):
            return self.model.module(input_ids=ids, use_cache=False).logits.squeeze(1)


class PrefixLayer(DynamicLayer):
    """One layer's keys and values before a position, shared by every variant that starts there.

    Args:
        keys: (row, head, prefix, d_head); ``None`` to stand for a prefix of which only the length matters.
        values: likewise.
        length: number of tokens in the prefix.
    """

    def __init__(self, keys: Tensor | None, values: Tensor | None, length: int) -> None:
        super().__init__()
        self._prefix, self._length = (keys, values), length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put the prefix before new keys and values, repeated for as many variants as there are.

        Args:
            key_states: (variant x row, head, pos, d_head).
            value_states: likewise.
            *args: not used.
            **kwargs: not used.

        Returns:
            Keys and values of prefix and new tokens.
        """
        self._length += key_states.shape[-2]
        keys, values = self._prefix
        if keys is None or values is None:
            return key_states, value_states
        return _joined(keys, key_states), _joined(values, value_states)

    def get_seq_length(self) -> int:
        """Number of tokens seen so far."""
        return self._length


class PrefixCache(Cache):
    """The cache a block is given when it continues a recorded prefix: one :class:`PrefixLayer` a block."""

    def __init__(self, layers: Sequence[PrefixLayer]) -> None:
        super().__init__(layers=list(layers))


@dataclass(frozen=True, eq=False)
class BlockCall:
    """How to call one block for any number of rows.

    The arguments were recorded with one row and with two. All rows are alike (same positions, no padding), so
    whichever axis differs between the two is repeated; ALiBi in Bloom, whose axis is row times head,
    included.
    """

    module: nn.Module
    one: Call
    two: Call

    def __call__(self, resid: Tensor, cache: Cache) -> Tensor:
        """Run the block.

        Args:
            resid: residual stream entering, (row, pos, d_model).
            cache: holds the keys and values of the prefix.

        Returns:
            Residual stream leaving, (row, pos, d_model).
        """
        args = _spread(self.one[0], self.two[0], len(resid), cache)
        kwargs = _spread(self.one[1], self.two[1], len(resid), cache)
        return hidden(self.module(resid, *args, **kwargs))


def new_cache() -> DynamicCache:
    """A cache that keeps every key and value, in families with sliding windows too."""
    return DynamicCache()


def _joined(prefix: Tensor, new: Tensor) -> Tensor:
    rows, length = len(prefix), prefix.shape[-2]
    joined = new.new_empty(*new.shape[:-2], length + new.shape[-2], new.shape[-1])
    joined.view(-1, rows, *joined.shape[1:])[..., :length, :] = prefix
    joined[..., length:, :] = new
    return joined


def _spread(one: Any, two: Any, rows: int, cache: Cache) -> Any:
    if isinstance(one, Cache):
        return cache
    if isinstance(one, Tensor):
        return _spread_tensor(one, two, rows)
    if isinstance(one, dict):
        return {key: _spread(value, two[key], rows, cache) for key, value in one.items()}
    if isinstance(one, tuple):
        return tuple(_spread(a, b, rows, cache) for a, b in zip(one, two, strict=True))
    return one


def _spread_tensor(one: Tensor, two: Tensor, rows: int) -> Tensor:
    differing = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
    if not differing:
        return one
    axis = differing[0]
    if one.shape[axis] == 1:
        return one.expand(*(rows if a == axis else -1 for a in range(one.ndim)))
    return one.repeat(*(rows if a == axis else 1 for a in range(one.ndim)))
