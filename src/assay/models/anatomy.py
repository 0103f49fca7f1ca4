"""Where an architecture keeps its parts: embedding, blocks, attention, MLP, norms, unembedding.

Nothing here knows a model family by name. The parts are found in the module tree: the block list is the longest
``ModuleList`` of alike modules, everything else goes by what Hugging Face authors call it. A model whose tree is
named otherwise is described in five lines with :class:`Layout`.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn

from assay.errors import BadInput

ATTENTION = ("self_attn", "self_attention", "attn", "attention", "temporal_block")
MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe")
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLP_DOWN = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "wo")
ACTIVATION = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
FIRST_NORM = ("input_layernorm", "ln_1", "ln1", "norm_1", "self_attn_layer_norm", "input_norm",
              "attention_norm", "attention_layernorm", "ln_attn")  # fmt: skip
SECOND_NORM = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_attention_layernorm", "ln_2", "ln2", "norm_2",
               "final_layer_norm", "ffn_norm", "ln_mlp", "feedforward_layernorm")  # fmt: skip
AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm", "post_attn_norm")
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffn_norm")
FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "layer_norm", "embedding_norm")
EPSILON = ("eps", "variance_epsilon", "epsilon", "layer_norm_epsilon")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of an unknown architecture are, as dotted paths; what ``assay.wrap(..., layout=)`` takes.

    Attributes:
        blocks: path of the ``ModuleList`` of blocks, from the model.
        attention: path of the attention module, from a block.
        mlp: path of the MLP module, from a block.
        final_norm: path of the norm after the last block, from the model.
        unembed: path of the unembedding, from the model; empty where ``get_output_embeddings`` finds it.
    """

    blocks: str
    attention: str
    mlp: str
    final_norm: str
    unembed: str = ""


@dataclass(frozen=True, eq=False)
class Block:
    """The parts of one block; ``None`` where the architecture has no such part.

    Attributes:
        module: the block itself.
        attention: the attention module.
        attention_out: the output projection of attention; its input is ``z``.
        q, k, v: the projection modules, where they are three modules.
        fused: the one projection that holds q, k and v, otherwise.
        mlp: the MLP or mixture module; the block itself where the MLP's layers hang on the block.
        mlp_reader: the module whose input is ``mlp_in``: the MLP, or the first layer that hangs on the block.
        mlp_down: the projection from neurons to the residual stream; its input is ``mlp_act``.
        activation: the non-linearity module; its input is ``mlp_pre``.
        first_norm, second_norm: the norms that read the residual stream before attention and before the MLP.
        after_attention, after_mlp: the norms applied to what attention and MLP write.
        parallel: attention and MLP read the same residual stream, so there is no ``resid_mid``.
        mlp_adds_residual: the MLP module's output already holds the residual stream.
        n_heads, n_kv_heads: query heads, and key/value heads.
    """

    module: nn.Module
    attention: nn.Module | None
    attention_out: nn.Module | None
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    fused: nn.Module | None
    mlp: nn.Module | None
    mlp_reader: nn.Module | None
    mlp_down: nn.Module | None
    activation: nn.Module | None
    first_norm: nn.Module | None
    second_norm: nn.Module | None
    after_attention: nn.Module | None
    after_mlp: nn.Module | None
    parallel: bool
    mlp_adds_residual: bool
    n_heads: int
    n_kv_heads: int


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where a decoder keeps its parts.

    Attributes:
        embed: the token embedding.
        blocks: the blocks, first to last.
        final_norm: the norm after the last block; ``None`` for blocks that end in a norm of their own.
        unembed: the unembedding; ``None`` for a model without a language-modelling head.
        d_model: width of the residual stream.
        layout: the paths it was found by, where the user gave them.
    """

    embed: nn.Module
    blocks: tuple[Block, ...]
    final_norm: nn.Module | None
    unembed: nn.Module | None
    d_model: int
    layout: "Layout | None" = None

    @cached_property
    def vocabulary(self) -> int:
        """Number of rows of the token embedding."""
        return int(cast("Tensor", self.embed.weight).shape[0])

    @property
    def embed_width(self) -> int:
        """Width of what the embedding gives; OPT projects it to the width of the residual stream."""
        return int(cast("Tensor", self.embed.weight).shape[1])


def find_anatomy(module: nn.Module, layout: Layout | None = None) -> Anatomy:
    """Find the parts of a decoder.

    Args:
        module: a Hugging Face causal language model, or any decoder whose tree ``layout`` describes.
        layout: paths to use instead of the search.

    Returns:
        The anatomy.

    Raises:
        BadInput: the parts are not found; the message lists the candidates in the tree and shows a layout.
    """
    path, blocks = _block_list(module, layout)
    container = module.get_submodule(path.rpartition(".")[0])
    config = text_config(module)
    final_norm = module.get_submodule(layout.final_norm) if layout else _final_norm(module, container, path)
    embed = _embedding(module)
    unembed = (
        module.get_submodule(layout.unembed)
        if layout and layout.unembed
        else _call(module, "get_output_embeddings")
    )
    parts = tuple(_block(block, config, layout) for block in blocks)
    for part in ("attention", "mlp"):  # in a hybrid some blocks have other mixers than attention
        if all(getattr(block, part) is None for block in parts):
            raise BadInput(
                _unknown(module, f"no {type(blocks[0]).__name__} has a child I know as its {part}")
            )
    width = int(getattr(config, "hidden_size", None) or cast("Tensor", embed.weight).shape[1])
    return Anatomy(embed, parts, final_norm, unembed, width, layout)


def text_config(module: nn.Module) -> object:
    """The configuration of the language model in a module; ``None`` where it has none."""
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_centring(norm: nn.Module, width: int) -> bool:
    """Whether a norm subtracts the mean (LayerNorm) or not (RMSNorm), found by shifting a probe vector.

    The norm's forward is called past its hooks: this runs inside them.
    """
    known = getattr(norm, "centring", None)
    if isinstance(known, bool):
        return known
    parameter = next(norm.parameters(), None)
    device, dtype = (parameter.device, parameter.dtype) if parameter is not None else ("cpu", torch.float32)
    probe = torch.linspace(-1.0, 2.0, width, device=device, dtype=dtype).view(1, 1, -1)
    with torch.no_grad():
        plain, shifted = norm.forward(probe), norm.forward(probe + 1.0)
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2
    return bool((plain - shifted).abs().max() <= tolerance * plain.abs().max())


def epsilon(norm: nn.Module) -> float:
    """The constant a norm adds to the variance or mean square; PyTorch's default where it names none (OLMo)."""
    return next((float(getattr(norm, name)) for name in EPSILON if hasattr(norm, name)), 1e-5)


def divisor(norm: nn.Module, x: Tensor) -> Tensor:
    r"""What a norm divides its input by, (..., 1): :math:`\sqrt{\mathrm{var}(x) + \epsilon}` and its like.

    Args:
        norm: the norm; one whose scale is a constant tells it itself.
        x: its input, (..., d).
    """
    own = getattr(norm, "divisor", None)
    if callable(own):
        return cast("Tensor", own(x))
    square = x.square().mean(-1, keepdim=True)
    if is_centring(norm, x.shape[-1]):
        square = x.var(-1, keepdim=True, unbiased=False)
    return torch.sqrt(square + epsilon(norm))


def _block_list(module: nn.Module, layout: Layout | None) -> tuple[str, nn.ModuleList]:
    if layout:
        try:
            blocks = module.get_submodule(layout.blocks)
        except AttributeError:
            raise BadInput(
                _unknown(module, f"the layout's blocks {layout.blocks!r} is not a path of the model")
            ) from None
        return layout.blocks, blocks  # type: ignore[return-value]
    lists = {name: child for name, child in module.named_modules() if isinstance(child, nn.ModuleList)}
    alike = {
        name: child
        for name, child in lists.items()
        if any(_descend(block, ATTENTION) is not None for block in child) and not _inside_another(name, lists)
    }
    if not alike:
        raise BadInput(_unknown(module, "no ModuleList of blocks with an attention module"))
    best = max(alike, key=lambda name: len(alike[name]))
    return best, alike[best]


def _inside_another(name: str, lists: dict[str, nn.ModuleList]) -> bool:
    return any(name.startswith(other + ".") for other in lists)


def _block(block: nn.Module, config: object, layout: Layout | None) -> Block:
    attention = block.get_submodule(layout.attention) if layout else _descend(block, ATTENTION)
    mlp = block.get_submodule(layout.mlp) if layout else _descend(block, MLP)
    down = _descend(mlp, MLP_DOWN, within=1) if mlp is not None else None
    activation = _descend(mlp, ACTIVATION, within=1) if mlp is not None else None
    if (
        mlp is None and (down := getattr(block, "fc2", None)) is not None
    ):  # OPT, XGLM: the layers hang on the block
        mlp, activation = block, _descend(block, ACTIVATION, within=1)
    heads = _attention_heads(config)
    q, k, v = (_descend(attention, (name,)) if attention is not None else None for name in QUERY_KEY_VALUE)
    first, second, after_attention, after_mlp = _norms(block, config)
    parallel = not _norms_sums(config) and _is_parallel(config, second, after_attention)
    return Block(
        module=block,
        attention=attention,
        attention_out=_descend(attention, ATTENTION_OUT) if attention is not None else None,
        q=q, k=k, v=v,
        fused=_descend(attention, FUSED) if attention is not None and q is None else None,
        mlp=mlp,
        mlp_reader=getattr(block, "fc1", None) if mlp is block else mlp,
        mlp_down=down,
        activation=activation,
        first_norm=first,
        second_norm=second,
        after_attention=after_attention,
        after_mlp=after_mlp,
        parallel=parallel,
        mlp_adds_residual=mlp is not None and "residual" in inspect.signature(mlp.forward).parameters,
        n_heads=heads[0],
        n_kv_heads=heads[1],
    )  # fmt: skip


def _norms_sums(config: object) -> bool:
    """Whether what a norm gives is the stream itself (OPT-350m), not only what attention or MLP read."""
    return getattr(config, "do_layer_norm_before", True) is False


def _norms(block: nn.Module, config: object) -> tuple[nn.Module | None, ...]:
    """First, second, after-attention and after-MLP norm.

    ``post_attention_layernorm`` means two things: the norm before the MLP (Llama), or the norm of what attention
    wrote (Gemma 2, OLMo 2). It is the latter where another norm stands before the MLP, or none before attention.
    """
    if _norms_sums(config):
        return None, None, None, None
    first = _descend(block, FIRST_NORM)
    after_mlp = _descend(block, AFTER_MLP)
    after_attention = _descend(block, AFTER_ATTENTION[:1])
    ambiguous = _descend(block, AFTER_ATTENTION[1:])
    has_other = _descend(block, SECOND_NORM[:2]) is not None
    if after_attention is None and (has_other or (first is None and after_mlp is not None)):
        after_attention = ambiguous
    second = next(
        (
            n
            for name in SECOND_NORM
            if (n := _descend(block, (name,))) is not None and n is not after_attention
        ),
        None,
    )
    return first, second, after_attention, after_mlp


def _is_parallel(config: object, second: nn.Module | None, after_attention: nn.Module | None) -> bool:
    for flag in ("use_parallel_residual", "parallel_attn"):
        if hasattr(config, flag):
            return bool(getattr(config, flag)) or bool(getattr(config, "new_decoder_architecture", False))
    return second is None and after_attention is None


def _attention_heads(config: object) -> tuple[int, int]:
    def first(*names: str) -> int | None:
        return next((int(v) for name in names if isinstance(v := getattr(config, name, None), int)), None)

    heads = first("num_attention_heads", "n_head", "n_heads", "num_heads") or 1
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return heads, 1
    nested = getattr(config, "attn_config", None)
    grouped = first("num_key_value_heads", "num_kv_heads") or getattr(nested, "kv_n_heads", None)
    return heads, int(grouped or heads)


def _embedding(module: nn.Module) -> nn.Module:
    embed = _call(module, "get_input_embeddings")
    if embed is None:
        embed = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    if embed is None:
        raise BadInput(_unknown(module, "no token embedding (nn.Embedding)"))
    return embed


def _final_norm(module: nn.Module, container: nn.Module, blocks_path: str) -> nn.Module | None:
    name = blocks_path.rpartition(".")[2]
    children = list(container.named_children())
    before = sum(1 for _ in takewhile(lambda pair: pair[0] != name, children))
    ordered = children[before + 1 :] + children[:before]  # OPT registers its final norm before the blocks
    for wanted in FINAL_NORM:
        for child_name, child in ordered:
            if child_name == wanted:
                return child
    if any(getattr(container, wanted, module) is None for wanted in FINAL_NORM):
        return None
    raise BadInput(_unknown(module, f"no final norm beside {blocks_path!r}"))


def _call(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return getattr(module, name)()
    except (AttributeError, NotImplementedError):
        return None


def _descend(module: nn.Module, names: tuple[str, ...], within: int = 3) -> nn.Module | None:
    """The shallowest submodule with one of the names, in the order of the names at each depth.

    Expert lists are not entered: an expert's projection is not the block's.
    """
    level = [module]
    for _ in range(within):
        for name in names:
            for parent in level:
                child = getattr(parent, name, None)
                if isinstance(child, nn.Module):
                    return child
        level = [child for parent in level for child in _enterable(parent)]
    return None


def _enterable(parent: nn.Module) -> Iterator[nn.Module]:
    return (
        child
        for name, child in parent.named_children()
        if not isinstance(child, nn.ModuleList) and name != "experts"
    )


def _unknown(module: nn.Module, why: str) -> str:
    lists = [
        f"    {name}: {len(child)} x {type(child[0]).__name__}({', '.join(n for n, _ in child[0].named_children())})"
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    ]
    norms = [
        f"    {name}: {type(m).__name__}"
        for name, m in module.named_modules()
        if "norm" in type(m).__name__.lower()
    ]
    return (
        f"I cannot find my way in {type(module).__name__}: {why}.\n"
        "Candidates for blocks:\n" + ("\n".join(lists[:8]) or "    none") + "\n"
        "Candidates for the final norm:\n" + ("\n".join(norms[-4:]) or "    none") + "\n"
        "Describe it yourself:\n"
        "    assay.wrap(module, tokenizer, layout=assay.Layout(\n"
        '        blocks="model.layers", attention="self_attn", mlp="mlp",\n'
        '        final_norm="model.norm", unembed="lm_head"))'
    )
