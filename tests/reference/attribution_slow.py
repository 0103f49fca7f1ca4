"""Slow but obvious attribution: slopes by central differences, softmax put in anew, layers dropped one at a time."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference.naive import PORTS, naive_capture, only_tensor, patched

STEPS = {"gpt2": 1e-4, "llama": 1e-2}
"""Of central differences, as a share of the way to the source: LLaMA's norms round to float32 whatever is asked."""


@dataclass(frozen=True, eq=False)
class SlowAttribution:
    """First-order effects of patching one node at a time, in float64.

    Attributes:
        kind: which table of paths.
        module: the model, in float64.
        base: token ids of the prompt that is patched, (1, pos).
        source: token ids of the prompt that values come from.
        number: from the logits at the last position to the metric.
    """

    kind: Literal["llama", "gpt2"]
    module: nn.Module
    base: Tensor
    source: Tensor
    number: Callable[[Tensor], Tensor]

    def directional(self, site: str, position: int, entries: slice) -> float:
        """The metric's slope from the base towards the source activation: two forwards."""
        name, _, layer = site.partition(".")
        path, side = PORTS[self.kind][name]
        a = naive_capture(self.kind, self.module, self.base, site)[0, position, entries]
        b = naive_capture(self.kind, self.module, self.source, site)[0, position, entries]
        ends = []
        for sign in (1, -1):
            value = a + sign * STEPS[self.kind] * (b - a)
            logits = patched(self.module, self.base, path.format(layer), side, (0, position, entries), value)
            ends.append(self.number(logits[0, -1]))
        return float(ends[0] - ends[1]) / (2 * STEPS[self.kind])

    def grad_drop(self, site: str, position: int, entries: slice, drops: Sequence[Sequence[str]]) -> float:
        """Mean magnitude over a pass that drops nothing and one for each set of modules where the node lives."""
        passes = [self.dropped(site, position, entries, writers) for writers in ((), *drops)]
        living = [abs(one) for one in passes if one is not None]
        return sum(living) / len(living)

    def dropped(self, site: str, position: int, entries: slice, writers: Sequence[str]) -> float | None:
        """The same slope by a backward pass in which what some modules return passes no gradient on.

        Returns:
            The slope towards the source; ``None`` where no way leads from the node to the metric.
        """
        name, _, layer = site.partition(".")
        middle = (
            name == "resid_mid"
        )  # its slope is that of what attention adds to it, behind where slopes are dropped
        path, side = PORTS[self.kind]["attn_out" if middle else name]
        a, b = (naive_capture(self.kind, self.module, ids, site) for ids in (self.base, self.source))
        kept: list[Tensor] = []

        def read_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            kept.append((args[0] + 0).requires_grad_())
            return (kept[0], *args[1:])

        def read_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            kept.append((only_tensor(output) + 0).requires_grad_())
            return (kept[0], *output[1:]) if isinstance(output, tuple) else kept[0]

        def drop(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()

        with ExitStack() as stack:
            target = self.module.get_submodule(path.format(layer))
            if side == "in":
                stack.callback(target.register_forward_pre_hook(read_input).remove)
            else:
                stack.callback(target.register_forward_hook(read_output).remove)
            for writer in writers:
                hook = self.module.get_submodule(writer).register_forward_hook(drop, prepend=middle)
                stack.callback(hook.remove)
            value = self.number(self.module(self.base).logits[0, -1])
        (gradient,) = torch.autograd.grad(value, kept[0], allow_unused=True)
        return None if gradient is None else float(((b - a) * gradient)[0, position, entries].sum())
