"""Slow but obvious path patching of a LLaMA: four passes with hooks on paths written by hand."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reference.naive import LLAMA_PORTS, record

LAYERS = 3


@dataclass(frozen=True, eq=False)
class SlowPaths:
    """Path patching between two prompts.

    Attributes:
        module: the model.
        base: token ids of the prompt that is patched, (1, pos).
        source: token ids of the prompt that values come from.
        middle: `frozen`, `mlps` or `recomputed`.
        positions: where the sender is patched.
    """

    module: nn.Module
    base: Tensor
    source: Tensor
    middle: str
    positions: Sequence[int]

    def logits(self, sender: str, receiver: str) -> Tensor:
        """Logits at the last position of the fourth pass: (vocabulary,)."""
        site, entries = self._place(sender)
        ports = {
            f"{name}.{layer}": self._port(name, layer) for name in ("z", "mlp_out") for layer in range(LAYERS)
        }
        held = record(self.module, self.base, ports)  # type: ignore[arg-type]
        name, _, layer = site.partition(".")
        value = record(self.module, self.source, {site: self._port(name, int(layer))})[site]  # type: ignore[arg-type]
        where, spot = self._place(receiver)
        reader, _, number = where.partition(".")
        seen = {where: self._port(reader, int(number))}
        kept = {"frozen": ("z", "mlp_out"), "mlps": ("z",), "recomputed": ()}[self.middle]
        with ExitStack() as stack:
            for pinned in held:
                if pinned.partition(".")[0] in kept:
                    stack.callback(self._put(pinned, lambda x, v=held[pinned]: v))
            stack.callback(self._put(site, lambda x: self._replaced(x, value, self.positions, entries)))
            third = record(self.module, self.base, seen)[where]  # type: ignore[arg-type]
        everywhere = range(self.base.shape[1])
        with torch.no_grad(), ExitStack() as stack:
            stack.callback(self._put(where, lambda x: self._replaced(x, third, everywhere, spot)))
            return self.module(self.base).logits[0, -1]

    def _place(self, name: str) -> tuple[str, slice]:
        kind, _, place = name.partition(".")
        layer, _, head = place.partition(".")
        if kind in ("head", "q", "k", "v"):
            width = self.module.config.head_dim  # type: ignore[union-attr]
            part = slice(int(head) * width, (int(head) + 1) * width)
            return ("z" if kind == "head" else kind) + f".{layer}", part
        if name == "logits":
            return f"resid_post.{LAYERS - 1}", slice(None)
        return {
            "mlp": f"mlp_out.{layer}",
            "read_mlp": f"mlp_in.{layer}",
            "attention": f"attn_out.{layer}",
        }.get(kind, f"resid_pre.{layer or 0}"), slice(None)

    def _port(self, name: str, layer: int) -> tuple[str, str]:
        path, side = LLAMA_PORTS[name]
        return path.format(layer), side

    @staticmethod
    def _replaced(x: Tensor, value: Tensor, positions: Sequence[int], entries: slice) -> Tensor:
        result = x.clone()
        for position in positions:
            result[:, position, entries] = value[:, position, entries]
        return result

    def _put(self, site: str, change: Callable[[Tensor], Tensor]) -> Any:
        name, _, layer = site.partition(".")
        path, side = self._port(name, int(layer))
        target = self.module.get_submodule(path)

        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        if side == "in":
            return target.register_forward_pre_hook(on_input, with_kwargs=True).remove
        return target.register_forward_hook(on_output).remove
