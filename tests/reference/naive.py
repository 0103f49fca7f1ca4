"""Slow but obvious twins: activations read and replaced with a handful of hooks on paths written by hand."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

Side = Literal["in", "out"]

LLAMA_PORTS: dict[str, tuple[str, Side]] = {
    "resid_pre": ("model.layers.{}", "in"),
    "attn_in": ("model.layers.{}.self_attn", "in"),
    "q": ("model.layers.{}.self_attn.q_proj", "out"),
    "k": ("model.layers.{}.self_attn.k_proj", "out"),
    "v": ("model.layers.{}.self_attn.v_proj", "out"),
    "z": ("model.layers.{}.self_attn.o_proj", "in"),
    "attn_out": ("model.layers.{}.self_attn", "out"),
    "resid_mid": ("model.layers.{}.post_attention_layernorm", "in"),
    "mlp_in": ("model.layers.{}.mlp", "in"),
    "mlp_pre": ("model.layers.{}.mlp.gate_proj", "out"),
    "mlp_act": ("model.layers.{}.mlp.down_proj", "in"),
    "mlp_out": ("model.layers.{}.mlp", "out"),
    "resid_post": ("model.layers.{}", "out"),
}

GPT2_PORTS: dict[str, tuple[str, Side]] = {
    "resid_pre": ("transformer.h.{}", "in"),
    "attn_in": ("transformer.h.{}.attn", "in"),
    "z": ("transformer.h.{}.attn.c_proj", "in"),
    "attn_out": ("transformer.h.{}.attn", "out"),
    "resid_mid": ("transformer.h.{}.ln_2", "in"),
    "mlp_in": ("transformer.h.{}.mlp", "in"),
    "mlp_pre": ("transformer.h.{}.mlp.c_fc", "out"),
    "mlp_act": ("transformer.h.{}.mlp.c_proj", "in"),
    "mlp_out": ("transformer.h.{}.mlp", "out"),
    "resid_post": ("transformer.h.{}", "out"),
}

PORTS = {"llama": LLAMA_PORTS, "gpt2": GPT2_PORTS}


def only_tensor(value: Any) -> Tensor:
    """The tensor of a module's input or output, which may come first in a tuple."""
    return value[0] if isinstance(value, tuple) else value


def record(module: nn.Module, ids: Tensor, ports: Mapping[str, tuple[str, Side]]) -> dict[str, Tensor]:
    """Copies of module inputs and outputs in one forward pass.

    Args:
        module: the model.
        ids: token ids, (batch, pos).
        ports: name to module path and side.

    Returns:
        The copies under the ports' names.
    """
    seen: dict[str, Tensor] = {}

    def reader(name: str, side: Side):
        def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
            given = args or (kwargs["hidden_states"],)
            seen[name] = only_tensor(output if side == "out" else given).clone()

        return read

    with torch.no_grad(), ExitStack() as stack:
        for name, (path, side) in ports.items():
            target = module.get_submodule(path)
            put = target.register_forward_hook if side == "out" else target.register_forward_pre_hook
            stack.callback(put(reader(name, side), with_kwargs=True).remove)
        module(ids)
    return seen


def naive_capture(kind: Literal["llama", "gpt2"], module: nn.Module, ids: Tensor, site: str) -> Tensor:
    """The activation at one site, `name.layer`, heads not separated.

    Args:
        kind: which table of paths.
        module: a model of that kind.
        ids: token ids, (batch, pos).
        site: a site of the table, e.g. `mlp_act.1`.

    Returns:
        A copy of the activation, (batch, pos, width).
    """
    name, _, layer = site.partition(".")
    path, side = PORTS[kind][name]
    return record(module, ids, {site: (path.format(layer), side)})[site]


def patched(
    module: nn.Module, ids: Tensor, path: str, side: Side, region: Any, value: Tensor | float
) -> Tensor:
    """Logits of one full forward pass in which a region of one module's input or output is replaced.

    Args:
        module: the model.
        ids: token ids, (batch, pos).
        path: the module whose input or output is replaced.
        side: which of the two.
        region: index into the tensor.
        value: what to put there.

    Returns:
        Logits, (batch, pos, vocabulary).
    """

    def replaced(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[region] = value
        return result

    def on_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (replaced(args[0]), *args[1:])

    def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (replaced(output[0]), *output[1:])
        return replaced(output)

    target = module.get_submodule(path)
    if side == "in":
        handle = target.register_forward_pre_hook(on_input)
    else:
        handle = target.register_forward_hook(on_output)
    try:
        with torch.no_grad():
            return module(ids).logits
    finally:
        handle.remove()


def naive_patch(
    module: nn.Module, ids: Tensor, blocks: str, layer: int, position: int, value: Tensor
) -> Tensor:
    """Logits of one full forward pass with the residual stream after one block replaced at one position.

    Args:
        module: the model.
        ids: token ids, (batch, pos).
        blocks: path of the list of blocks.
        layer: the block after which to replace.
        position: the position at which to replace.
        value: what to put there, (d_model,) or (batch, d_model).

    Returns:
        Logits, (batch, pos, vocabulary).
    """
    return patched(module, ids, f"{blocks}.{layer}", "out", (slice(None), position), value)
