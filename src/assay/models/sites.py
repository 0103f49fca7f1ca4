"""Sites: the names of activations, and the port of the module tree where each can be read and replaced.

A site is ``name`` or ``name.layer``: ``resid_pre.5``, ``mlp_out.3``, ``z.2``, ``logits``. TransformerLens names
(``blocks.5.hook_resid_pre``) are aliases. On a model that is not a decoder, and for anything the names do not
reach, a site is the dotted path of a module (its output), or the path followed by ``:in`` (its input).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.anatomy import Anatomy, Block, divisor

PER_LAYER = ("resid_pre", "ln1_scale", "attn_in", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid",
             "ln2_scale", "mlp_in", "mlp_pre", "mlp_act", "mlp_out", "resid_post")  # fmt: skip
WHOLE = ("embed", "final_norm_scale", "final_norm", "logits")
HEADED = ("q", "k", "v", "z", "pattern")

ALIASES = {
    r"hook_embed|embed\.hook_out": "embed",
    r"blocks\.(\d+)\.(?:hook_resid_pre|hook_in)": "resid_pre.{}",
    r"blocks\.(\d+)\.(?:hook_resid_mid|ln2\.hook_in)": "resid_mid.{}",
    r"blocks\.(\d+)\.(?:hook_resid_post|hook_out)": "resid_post.{}",
    r"blocks\.(\d+)\.(?:hook_attn_out|attn\.hook_out)": "attn_out.{}",
    r"blocks\.(\d+)\.(?:hook_mlp_out|mlp\.hook_out)": "mlp_out.{}",
    r"blocks\.(\d+)\.attn\.hook_(q|k|v|z|pattern)": "{1}.{0}",
    r"blocks\.(\d+)\.attn\.(q|k|v)\.hook_out": "{1}.{0}",
    r"blocks\.(\d+)\.ln1\.hook_normalized": "attn_in.{}",
    r"blocks\.(\d+)\.ln2\.hook_normalized": "mlp_in.{}",
    r"blocks\.(\d+)\.mlp\.hook_pre": "mlp_pre.{}",
    r"blocks\.(\d+)\.mlp\.hook_post": "mlp_act.{}",
    r"blocks\.(\d+)\.ln([12])\.hook_scale": "ln{1}_scale.{0}",
    r"ln_final\.hook_scale": "final_norm_scale",
    r"ln_final\.hook_normalized": "final_norm",
    r"unembed\.hook_out": "logits",
}


@dataclass(frozen=True)
class HeadView:
    """How a projection's last axis holds heads: it is viewed as ``shape``, and ``axis`` narrowed to the part.

    Concatenated q, k, v of equal width are ``(heads + 2 kv_heads, d_head)`` narrowed along axis 0; GPT-NeoX keeps
    ``(heads, 3, d_head)`` narrowed along axis 1.
    """

    shape: tuple[int, ...]
    axis: int
    start: int
    length: int

    def part(self, tensor: Tensor) -> Tensor:
        """The part as a view, its head axes not yet merged."""
        return tensor.unflatten(-1, self.shape).narrow(self.axis - len(self.shape), self.start, self.length)


@dataclass(frozen=True, eq=False)
class Port:
    """Where a site lives: the input or output of a module, and how its tensor is seen.

    Attributes:
        module: the module; ``None`` for the model's own output.
        slot: which side of the module.
        heads: how heads lie in the last axis, for q, k, v and z.
        derive: for read-only sites, the function from the port's tensor to the site's value.
        shared: the tensor is read by two branches, so an edit has to be made in place.
        attention: the attention module whose pattern the site is.
        overwritten: the model goes on to overwrite the tensor, so that it has to be given a copy.
    """

    module: nn.Module | None
    slot: Literal["input", "output"] = "output"
    heads: HeadView | None = None
    derive: Callable[[Tensor], Tensor] | None = None
    shared: bool = False
    attention: nn.Module | None = None
    overwritten: bool = False
    axes: dict[str, int] = field(
        default_factory=lambda: {"rows": 0, "positions": 1, "heads": 2, "neurons": -1}
    )

    def read(self, tensor: Tensor) -> Tensor:
        """The site's value in the port's tensor: a view wherever the memory layout allows one."""
        if self.derive is not None:
            return self.derive(tensor)
        return tensor if self.heads is None else self.heads.part(tensor).flatten(2, -2)

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        """The port's tensor with the site's value replaced."""
        if self.shared:
            return tensor.copy_(value)
        if self.heads is None:
            return value
        result = tensor.clone()
        part = self.heads.part(result)
        part.copy_(value.reshape(part.shape))
        return result


@cache
def canonical(site: str) -> str:
    """The project's name of a site given by that name or by a TransformerLens name."""
    for pattern, name in ALIASES.items():
        if match := re.fullmatch(pattern, site):
            return name.format(*match.groups())
    return site


def split(site: str) -> tuple[str, int | None]:
    """Name and layer of a canonical site; layer ``None`` where it has none."""
    name, dot, layer = site.rpartition(".")
    return (name, int(layer)) if dot and layer.isdigit() and name in PER_LAYER else (site, None)


def find_port(anatomy: Anatomy | None, module: nn.Module, site: str) -> Port:
    """The port of a site.

    Args:
        anatomy: the decoder's parts; ``None`` for a plain module.
        module: the whole model.
        site: a site's name or alias, or a module path with an optional ``:in``.

    Returns:
        The port.

    Raises:
        BadInput: no such site, no such layer, or this architecture has none, with the reason.
    """
    name, layer = split(canonical(site))
    if anatomy is not None and layer is not None:
        if layer >= len(anatomy.blocks):
            raise BadInput(f"site {site!r}: the model has layers 0 to {len(anatomy.blocks) - 1}")
        port = _block_port(name, anatomy.blocks[layer])
        if port is None:
            raise BadInput(f"site {site!r}: {_absence(name, anatomy.blocks[layer])}")
        return port
    if anatomy is not None and name in WHOLE:
        return _whole_port(name, anatomy)
    path, _, side = site.partition(":")
    try:
        return Port(module.get_submodule(path), "input" if side == "in" else "output")
    except AttributeError:
        raise BadInput(_unknown_site(site, anatomy, module)) from None


def available(anatomy: Anatomy) -> list[str]:
    """Every site this architecture has, in the order of the forward pass."""
    names = ["embed"]
    for index, block in enumerate(anatomy.blocks):
        names += [f"{name}.{index}" for name in PER_LAYER if _block_port(name, block) is not None]
    return [*names, *(("final_norm_scale", "final_norm") if anatomy.final_norm is not None else ()), "logits"]


def _whole_port(name: str, anatomy: Anatomy) -> Port:
    if name == "logits":
        return Port(None)
    if name == "embed":
        return Port(anatomy.embed)
    if anatomy.final_norm is None:
        raise BadInput(f"site {name!r}: the last block ends in its own norm, there is no final norm")
    if name == "final_norm":
        return Port(anatomy.final_norm)
    return _scale_port(anatomy.final_norm)


def _block_port(name: str, block: Block) -> Port | None:  # noqa: PLR0911 (one return a site)
    match name:
        case "resid_pre":
            return Port(block.module, "input")
        case "resid_post":
            return Port(block.module)
        case "resid_mid":
            return _middle_port(block)
        case "attn_in":
            return _port(block.attention, "input")
        case "attn_out":
            return _port(block.after_attention or block.attention_out)
        case "mlp_in":
            return _port(block.mlp_reader, "input")
        case "mlp_out":
            inside = block.mlp_adds_residual or block.mlp is block.module
            module = block.after_mlp or (block.mlp_down if inside else block.mlp)
            return module and Port(module, overwritten=block.parallel)  # Falcon adds attention to it in place
        case "mlp_pre":
            return _port(block.activation if block.mlp_down is not None else None, "input")
        case "mlp_act":
            return _port(block.mlp_down, "input")
        case "ln1_scale" | "ln2_scale":
            norm = block.first_norm if name == "ln1_scale" else block.second_norm
            return None if norm is None else _scale_port(norm)
        case "pattern":
            axes = {"rows": 0, "heads": 1, "positions": 2, "neurons": -1}
            return Port(None, attention=block.attention, axes=axes)
        case _:
            return _head_port(name, block)


def _port(module: nn.Module | None, slot: Literal["input", "output"] = "output") -> Port | None:
    return None if module is None else Port(module, slot)


def _middle_port(block: Block) -> Port | None:
    if block.parallel:
        return None
    reader = block.second_norm if block.after_attention is None or block.first_norm is not None else None
    return _port_shared(reader or block.mlp_reader)


def _port_shared(module: nn.Module | None) -> Port | None:
    return None if module is None else Port(module, "input", shared=True)


def _scale_port(norm: nn.Module) -> Port:
    return Port(norm, "input", derive=lambda x: divisor(norm, x))


def _head_port(name: str, block: Block) -> Port | None:
    if name == "z":
        out = block.attention_out
        return None if out is None else Port(out, "input", HeadView((block.n_heads, -1), 0, 0, block.n_heads))
    module = {"q": block.q, "k": block.k, "v": block.v}[name]
    if module is not None:
        heads = block.n_heads if name == "q" else block.n_kv_heads
        clipped = getattr(getattr(block.attention, "config", None), "clip_qkv", None) is not None
        return Port(module, heads=HeadView((heads, -1), 0, 0, heads), overwritten=clipped)
    if block.fused is None:
        return None
    return Port(block.fused, "output", _fused_view(name, block))


def _fused_view(name: str, block: Block) -> HeadView:
    """Where q, k or v lies in a fused projection: four conventions are in use."""
    heads, kv = block.n_heads, block.n_kv_heads
    index = "qkv".index(name)
    config = getattr(block.attention, "config", None)
    kind = type(block.attention).__name__
    if kind == "CodeGenAttention":  # written for four-way model parallelism, in the order q, v, k
        return HeadView((4, 3, heads // 4, -1), 1, "qvk".index(name), 1)
    if getattr(
        config, "new_decoder_architecture", False
    ):  # Falcon: each group holds its queries, one key, one value
        group = heads // kv
        return HeadView((kv, group + 2, -1), 1, (0, group, group + 1)[index], group if name == "q" else 1)
    grouped = kv != heads
    interleaved = hasattr(block.attention, "query_key_value") or kind.startswith("GPTBigCode")
    if interleaved and not grouped:
        return HeadView((heads, 3, -1), 1, index, 1)
    return HeadView((heads + 2 * kv, -1), 0, (0, heads, heads + kv)[index], heads if name == "q" else kv)


def _absence(name: str, block: Block) -> str:
    kind = type(block.module).__name__
    if name == "resid_mid" and block.parallel:
        return f"{kind} runs attention and MLP in parallel on resid_pre; there is nothing in the middle"
    if name in ("mlp_pre", "mlp_act"):
        return f"{kind} has a mixture of experts with fused weights; its neurons are no tensor of the forward pass"
    if name.endswith("_scale"):
        return f"{kind} has no norm there"
    return f"{kind} does not compute {name} as one module's output (its attention is laid out otherwise)"


def _unknown_site(site: str, anatomy: Anatomy | None, module: nn.Module) -> str:
    if anatomy is None:
        paths = [name for name, _ in module.named_modules() if name]
        return f"unknown site {site!r}; here sites are module paths (':in' for the input): {', '.join(paths[:12])}"
    per_layer = ", ".join(f"{name}.L" for name in PER_LAYER)
    return (
        f"unknown site {site!r}. Sites are {', '.join(WHOLE)}, {per_layer} with a layer L from 0 to "
        f"{len(anatomy.blocks) - 1}, their TransformerLens names, or the path of a module"
    )
