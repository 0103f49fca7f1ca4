"""Attention patterns, recomputed from the queries and keys the module itself hands to its attention kernel.

Fused kernels never hold the pattern. Every attention implementation of PyTorch and transformers goes through
``scaled_dot_product_attention`` or a softmax over (batch, head, query, key) scores, so watching those two
calls inside an attention module serves every family, and leaves the kernel's own arithmetic as it is.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from assay.models import edits as editing
from assay.models.edits import Edit

AXES = {"rows": 0, "heads": 1, "positions": 2, "neurons": -1}
SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, torch.nn.functional.softmax)
SCORES_NDIM = (3, 4)


class AttentionPatterns(TorchFunctionMode):
    """Read or replace attention patterns while a module runs.

    Args:
        sites: attention module to the names of its pattern's site.
        edits: site to edit; a kernel whose pattern is edited is replaced by ``pattern @ values``.
        wanted: sites to read.
        captured: where what is read is put: patterns (batch, head, query, key).
        reached: where the names of sites are put that the module came by.
        shape: (batch, pos), for families that flatten batch and heads into one axis.
    """

    def __init__(
        self,
        sites: Mapping[nn.Module, list[str]],
        edits: Mapping[str, Edit],
        wanted: Sequence[str],
        captured: dict[str, Tensor],
        reached: set[str],
        *,
        shape: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self._rows, self._reached = shape[0] if shape else 1, reached
        self._sites, self._edits, self._wanted, self._captured = sites, edits, wanted, captured
        self._inside: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> "AttentionPatterns":
        """Start watching: the attention modules say when they begin and end."""
        for module, names in self._sites.items():
            for handle in self._bracket(module, names):
                self._stack.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching, whatever happened."""
        self._stack.close()
        super().__exit__(*exception)

    def _bracket(self, module: nn.Module, names: list[str]) -> tuple[RemovableHandle, RemovableHandle]:
        def begin(*_: Any) -> None:
            self._inside = names

        def end(*_: Any) -> None:
            self._inside = []

        return module.register_forward_pre_hook(begin), module.register_forward_hook(end)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Watch the two calls; every other one is passed on as it is."""
        kwargs = kwargs or {}
        names, result = self._inside, None
        if not names:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._inside = []  # what we compute ourselves is not watched
            pattern = attention_pattern(*args, **kwargs)
            changed = self._visit(names, pattern)
            value = args[2] if len(args) > 2 else kwargs["value"]
            replaced = self._replaces(names)
            result = changed @ _repeat_heads(value, pattern.shape[1]) if replaced else func(*args, **kwargs)
        elif func in SOFTMAX and args[0].ndim in SCORES_NDIM:
            self._inside = []
            result = func(*args, **kwargs)
            whole = result.view(
                self._rows, -1, *result.shape[-2:]
            )  # XGLM's kernel has batch and heads in one axis
            keys = whole.shape[-1] - (whole.shape[-1] - whole.shape[-2] == 1)  # a sink is one key more
            changed = self._visit(names, whole[..., :keys])
            if self._replaces(names):
                result = torch.cat([changed, whole[..., keys:]], -1).view_as(result)
        else:
            return func(*args, **kwargs)
        self._inside = names
        return result

    def _replaces(self, names: list[str]) -> bool:
        """Whether the network has to go on from the pattern seen here: edited, or to be reached by gradients."""
        reached = self._wanted if torch.is_grad_enabled() else ()
        return any(name in self._edits or name in reached for name in names)

    def _visit(self, names: list[str], pattern: Tensor) -> Tensor:
        changed = pattern
        self._reached.update(names)
        for name in names:
            if name in self._edits:
                changed = editing.apply(self._edits[name], changed, AXES, name)
        self._captured.update({name: changed for name in names if name in self._wanted})
        return changed


def attention_pattern(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    r"""The pattern of one kernel call, with the kernel's own arguments.

    .. math:: P = \mathrm{softmax}(s\,q k^\top + M)

    Args:
        query: (batch, head, query, d_head), positions already encoded.
        key: (batch, kv head, key, d_head).
        value: (batch, kv head, key, d_value); not used, but part of the call.
        attn_mask: additive, or boolean with ``True`` where attention is allowed; broadcastable.
        dropout_p: not used: patterns are those of evaluation.
        is_causal: whether query i sees keys up to i.
        scale: the factor s, one over the root of d_head by default.
        enable_gqa: key heads are shared by several query heads.

    Returns:
        (batch, head, query, key), rows summing to 1.
    """
    scores = attention_scores(
        query, key, value, attn_mask, dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return F.softmax(scores, dim=-1)


def attention_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The scores of one kernel call before softmax, mask included; arguments as of :func:`attention_pattern`."""
    key = _repeat_heads(key, query.shape[1])
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is None:
        return scores
    if attn_mask.dtype == torch.bool:
        return scores.masked_fill(~attn_mask, -torch.inf)
    return scores + attn_mask


def _repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    groups = heads // tensor.shape[1]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)
