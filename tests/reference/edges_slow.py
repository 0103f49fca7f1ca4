"""Slow but obvious edges of a LLaMA or GPT-2: what one head reads is changed by a hook, weights taken apart by hand."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reference.naive import LLAMA_PORTS, only_tensor, record


@dataclass(frozen=True, eq=False)
class SlowEdges:
    """A LLaMA whose heads read streams of their own.

    Attributes:
        module: the model.
        base: token ids of the prompt that is patched, (1, pos).
        source: token ids of the prompt that values come from.
    """

    module: nn.Module
    base: Tensor
    source: Tensor

    def written(self, sender: str) -> Tensor:
        """What a sender writes in the source prompt, less what it writes in the base prompt: (pos, d_model)."""
        kind, _, place = sender.partition(".")
        if kind == "embed":
            ports = {"x": (LLAMA_PORTS["resid_pre"][0].format(0), "in")}
        elif kind == "mlp":
            ports = {"x": (LLAMA_PORTS["mlp_out"][0].format(place), "out")}
        else:
            ports = {"x": (LLAMA_PORTS["z"][0].format(place.split(".")[0]), "in")}
        a, b = (record(self.module, ids, ports)["x"][0] for ids in (self.base, self.source))  # type: ignore[arg-type]
        if kind != "head":
            return b - a
        layer, head = map(int, place.split("."))
        width = self.module.config.head_dim  # type: ignore[union-attr]
        part = slice(head * width, (head + 1) * width)
        weight = self.module.get_submodule(f"model.layers.{layer}.self_attn.o_proj").weight
        return (b - a)[:, part] @ weight[:, part].T  # type: ignore[index]

    def logits(self, receiver: str, change: Tensor) -> Tensor:
        """Logits at the last position when one receiver reads the stream with a change added: (vocabulary,).

        Args:
            receiver: `q.1.2`, `k.1.0`, `v.1.0`, `mlp.1` or `logits`.
            change: (pos, d_model).
        """
        with torch.no_grad(), ExitStack() as stack:
            stack.callback(self._reading(receiver, change))
            return self.module(self.base).logits[0, -1]

    def grad_drop(
        self,
        receiver: str,
        change: Tensor,
        number: Callable[[Tensor], Tensor],
        drops: Sequence[Sequence[str]],
    ) -> float:
        """Mean magnitude over a pass that drops nothing and one for each set of modules, where the edge lives in them.

        Args:
            receiver: as for `logits`.
            change: what the sender writes, (pos, d_model).
            number: from the logits at the last position to the metric.
            drops: paths of modules that pass no gradient on, for each pass.
        """
        living = []
        for writers in ((), *drops):
            added = torch.zeros_like(change, requires_grad=True)
            with ExitStack() as stack:
                stack.callback(self._reading(receiver, added))
                for writer in writers:
                    stack.callback(self.module.get_submodule(writer).register_forward_hook(_cut).remove)
                value = number(self.module(self.base).logits[0, -1])
            (slope,) = torch.autograd.grad(value, added, allow_unused=True)
            if slope is not None:
                living.append(abs(float((slope * change.detach()).sum())))
        return sum(living) / len(living)

    def _reading(self, receiver: str, change: Tensor) -> Callable[[], None]:
        """Let one receiver read the stream with a change added, until the function that is returned is called."""
        kind, _, place = receiver.partition(".")
        if kind == "logits":
            return self._add("model.norm", change)
        if kind == "mlp":
            return self._add(f"model.layers.{place}.post_attention_layernorm", change)
        layer, head = map(int, place.split("."))
        return self._one_head(kind, layer, head, change)

    def _add(self, path: str, change: Tensor) -> Any:
        def on_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0] + change, *args[1:])

        return self.module.get_submodule(path).register_forward_pre_hook(on_input).remove

    def _one_head(self, kind: str, layer: int, head: int, change: Tensor) -> Any:
        block = self.module.get_submodule(f"model.layers.{layer}")
        stream = record(self.module, self.base, {"x": (f"model.layers.{layer}", "in")})["x"]
        width = self.module.config.head_dim  # type: ignore[union-attr]
        part = slice(head * width, (head + 1) * width)
        other = block.self_attn.get_submodule(f"{kind}_proj").forward(block.input_layernorm(stream + change))  # type: ignore[union-attr, operator]

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            result = only_tensor(output).clone()
            result[..., part] = other[..., part]
            return result

        return block.get_submodule(f"self_attn.{kind}_proj").register_forward_hook(on_output).remove


def _cut(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()
