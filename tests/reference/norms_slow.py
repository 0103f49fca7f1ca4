"""Slow but obvious norms: paths written by hand, equations as in the papers, hooks on one norm after the other."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

PATHS = {
    "gpt2": [
        *(f"transformer.h.{i}.{n}" for i in range(3) for n in ("ln_1", "ln_2")), "transformer.ln_f",
    ],
    "llama": [
        *(f"model.layers.{i}.{n}" for i in range(3) for n in ("input_layernorm", "post_attention_layernorm")),
        "model.norm",
    ],
    "gemma": [
        *(f"model.layers.{i}.{n}" for i in range(3) for n in ("input_layernorm", "post_attention_layernorm")),
        "model.norm",
    ],
}  # fmt: skip


def sigma(kind: str, x: Tensor) -> Tensor:
    """What the norms of a family divide by."""
    if kind == "gpt2":
        return (((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return ((x**2).mean(-1, keepdim=True) + 1e-6).sqrt()


def affine(kind: str, norm: nn.Module, x: Tensor, scale: Any) -> Tensor:
    """A norm that divides by a given scale."""
    if kind == "gpt2":
        return (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias
    return x / scale * (norm.weight + 1 if kind == "gemma" else norm.weight)


def fixed_logits(kind: str, module: nn.Module, ids: Tensor, scales: Mapping[str, Any]) -> Tensor:
    """Logits with every norm dividing by what it is told, by path."""
    with ExitStack() as stack, torch.no_grad():
        for path in PATHS[kind]:
            norm = module.get_submodule(path)

            def hook(norm: nn.Module, args: tuple[Tensor], _: Tensor, path: str = path) -> Tensor:
                return affine(kind, norm, args[0], scales[path])

            stack.callback(norm.register_forward_hook(hook).remove)
        return module(input_ids=ids).logits


def sigmas(kind: str, module: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What each norm divides by on given tokens, (row, pos, 1) by path."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for path in PATHS[kind]:

            def hook(_: nn.Module, args: tuple[Tensor], path: str = path) -> None:
                found[path] = sigma(kind, args[0])

            stack.callback(module.get_submodule(path).register_forward_pre_hook(hook).remove)
        module(input_ids=ids)
    return found
