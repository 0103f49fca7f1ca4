r"""First-order effects of patching every node of one pair of prompts: AtP, its QK fix and GradDrop.

With :math:`a` an activation in the base run, :math:`a'` the same in the source run and :math:`M` the metric,

.. math:: \widehat{e}(n) = (a'_n - a_n) \cdot \frac{\partial M}{\partial a_n}

**QK fix.** A query or key acts through a softmax, which is flat where attention is saturated. So it is put in exactly:
with :math:`P` the pattern, :math:`P'` the one with the query or key of one position replaced, and
:math:`G = \partial M / \partial P`,

.. math:: \widehat{e}(q_i) = \sum_j (P'_{ij} - P_{ij})\,G_{ij}, \qquad
          \widehat{e}(k_j) = \sum_i \frac{r_{ij}}{1 + r_{ij}} \Big(G_{ij} - \sum_m P_{im} G_{im}\Big), \quad
          r_{ij} = P_{ij}\,(e^{s'_{ij} - s_{ij}} - 1)

where :math:`s` are scores. The second is what replacing the single score :math:`s_{ij}` by :math:`s'_{ij}` does to
row i of the pattern, written out; a key shared by several query heads sums over them.

**GradDrop.** A direct and an indirect effect may cancel. With :math:`\widehat{e}_\ell` the effect when no slope passes
through what layer :math:`\ell` writes, the magnitude is the mean over those passes that leave the node a way to the
metric, the pass that drops nothing among them,

.. math:: \frac{1}{1 + |D_n|} \Big( |\widehat{e}(n)| + \sum_{\ell \in D_n} |\widehat{e}_\ell(n)| \Big)

A node within a layer acts through what that layer writes alone, so that its :math:`D_n` are the L - 1 others; the
residual stream goes on beside every layer, and its :math:`D_n` are all L.

Source: Kramár et al., AtP*, 2403.00745. They average over :math:`D_n` alone, of nodes within a layer; here the pass
that drops nothing counts too, for a chain through every layer is cut by every drop. The formula for keys, which needs
no pattern for each position, is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from assay.activations.divergence import log_probabilities
from assay.activations.indifferent import indifferent_copy
from assay.activations.prompt_pairs import Direction, Gauge
from assay.errors import BadInput
from assay.models.edits import Edit, at
from assay.models.model import Model, Tokens
from assay.models.scores import scores
from assay.models.sites import split
from assay.models.slopes import Slopes, last_logits, slopes

NodeMethod = Literal["atp", "qk_fix", "grad_drop", "atp_star"]
SUMMED = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "attn_in",
    "mlp_in",
    "q",
    "k",
    "v",
    "z",
)
"""Sites of which a whole vector is one node; of the others each entry is."""
WRITTEN = ("attn_out", "mlp_out")
STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Sites that reach the metric past every layer; all others only through what their own layer writes."""
LARGEST_EXPONENT = 700.0
"""The exponential of more is infinite in float64."""
TOKENS_AT_ONCE = 256
"""Tokens of one pass in which slopes are dropped: their graph is kept whole, for SmolLM2 about 2 MB a token."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """A pair of prompts, one of which is to be patched from the other.

    Attributes:
        model: a decoder.
        base: token ids of the run that is patched, (1, pos).
        source: token ids of the run that values come from, (1, pos).
        names: names of the sites whose nodes are patched.
        activations: of the source run, by site.
        gauge: the one metric.
        measured: the metric of the source run.
    """

    model: Model
    base: Tensor
    source: Tensor
    names: tuple[str, ...]
    activations: Mapping[str, Tensor]
    gauge: Gauge
    measured: float

    def number(self, logits: Tensor) -> Tensor:
        """The metric of each row of logits, (row,)."""
        return self.gauge(logits)[..., 0]

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """The sites of each name, by layer."""
        return _sites(self.model, self.names)

    @property
    def sites(self) -> list[str]:
        """Every site of the names."""
        return [site for sites in self.by_name.values() for site in sites]

    def indifferent(self, seed: int) -> "Contrast":
        """The same base prompt, with a copy of it as the source in which there is nothing to find.

        Args:
            seed: of the copy's tokens.
        """
        copied = indifferent_copy(self.model, self.base, self.source, self.gauge, seed * 1_000_003)
        logits, held = last_logits(self.model, copied, self.sites)
        return replace(self, source=copied, activations=held, measured=float(self.number(logits)[0]))


def contrast(
    model: Model,
    pair: tuple[Tokens, Tokens],
    names: Sequence[str],
    *,
    direction: Direction,
    gauge: Callable[[Tensor], Gauge],
) -> Contrast:
    """Run the source prompt of a pair, and whichever is clean.

    Args:
        model: a decoder.
        pair: the clean and the corrupted prompt's token ids.
        names: names of sites.
        direction: which of the two is the source.
        gauge: makes the gauge of the clean run's last log-probabilities.

    Returns:
        What attribution needs.
    """
    clean, corrupted = (torch.tensor([ids], device=model.device) for ids in pair)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    sites = [site for sites in _sites(model, names).values() for site in sites]
    logits, held = last_logits(model, source, sites)
    final = logits if direction == "denoise" else last_logits(model, clean, [])[0]
    made = gauge(log_probabilities(final[0]))
    return Contrast(model, base, source, tuple(names), held, made, float(made(logits)[0, 0]))


def _sites(model: Model, names: Sequence[str]) -> dict[str, list[str]]:
    """The sites of each name, by layer, from one look at the model: it lists all that it has each time."""
    found: dict[str, list[str]] = {}
    for site in model.sites():
        found.setdefault(split(site)[0], []).append(site)
    return {name: found.get(name, []) for name in names}


@dataclass(frozen=True, eq=False)
class Attributions:
    """First-order effects of one pair.

    Attributes:
        nodes: by the name of a site, (layer, pos), with heads or entries after them where the site has them.
        value: the metric of the base run.
    """

    nodes: Mapping[str, Tensor]
    value: float


def attribute(found: Contrast, method: NodeMethod) -> Attributions:
    """Attribute the metric's change to every node.

    Args:
        found: the pair.
        method: ``atp``; with its ``qk_fix``, with ``grad_drop``, or ``atp_star`` with both.

    Returns:
        The effects; magnitudes where slopes were dropped.

    Raises:
        BadInput: GradDrop of a single layer, or a fix of attention whose scores cannot be read.
    """
    given = found.activations
    fixed = method in ("qk_fix", "atp_star") and bool({"q", "k"} & set(found.names))
    patterns = [f"pattern.{layer}" for layer in range(found.model.n_layers)] if fixed else []
    pinned = [f"resid_pre.{layer}" for layer in range(found.model.n_layers)] if fixed else []
    wanted = list(dict.fromkeys([*found.sites, *patterns, *pinned]))
    one = slopes(found.model, found.base, wanted, found.number)
    effects = _contracted(found, one, given)
    mixed = _mixed(found, one, given) if fixed else {}
    effects |= _attention(found, one, mixed)
    if method in ("grad_drop", "atp_star"):
        effects = _dropped(found, given, mixed, effects)
    nodes = {
        name: torch.stack([effects[site][0] for site in sites]).double()
        for name, sites in found.by_name.items()
    }
    return Attributions(nodes, float(one.value[0]))


def _contracted(found: Contrast, one: Slopes, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The change of each activation times its slope: (row, pos, ...)."""
    effects = {}
    for name, sites in found.by_name.items():
        for site in sites:
            product = (source[site] - one.activations[site]).mul_(one.gradients[site])
            effects[site] = product.sum(-1) if name in SUMMED else product
    return effects


@dataclass(frozen=True, eq=False)
class Mixed:
    """What putting single queries and keys in does to a layer's pattern, in float64.

    Attributes:
        pattern: of the base run, (head, query, key).
        by_query: change of row i by the query at i, (head, query, key).
        by_key: share r / (1 + r) of entry (i, j) by the key at j, (head, query, key).
    """

    pattern: Tensor
    by_query: Tensor
    by_key: Tensor


def _mixed(found: Contrast, one: Slopes, source: Mapping[str, Tensor]) -> dict[int, Mixed]:
    """Scores of three rows whose residual stream is the base run's: as it is, with other queries, with other keys."""
    rows, layers = 3, range(found.model.n_layers)
    edits: dict[str, Edit] = {f"resid_pre.{i}": one.activations[f"resid_pre.{i}"] for i in layers}
    for row, name in ((1, "q"), (2, "k")):
        if name in found.names:
            edits |= {f"{name}.{i}": at(source[f"{name}.{i}"], rows=row) for i in layers}
    seen = scores(found.model, found.base.expand(rows, -1), edits)
    return {layer: _mix(*seen[layer].double()) for layer in layers}


def _mix(plain: Tensor, queries: Tensor, keys: Tensor) -> Mixed:
    pattern = plain.softmax(-1)
    raised = torch.where(pattern > 0, keys - plain, 0).clamp_max(LARGEST_EXPONENT)
    ratio = pattern * raised.expm1()
    return Mixed(pattern, queries.softmax(-1) - pattern, ratio / (1 + ratio))


def _attention(found: Contrast, one: Slopes, mixed: Mapping[int, Mixed]) -> dict[str, Tensor]:
    """Effects of queries and keys through the exact softmax: (row, pos, head)."""
    effects = {}
    for layer, mix in mixed.items():
        slope = one.gradients[f"pattern.{layer}"].double()
        if "q" in found.names:
            effects[f"q.{layer}"] = (mix.by_query * slope).sum(-1).mT
        if "k" in found.names:
            above = slope - (mix.pattern * slope).sum(-1, keepdim=True)
            by_head = (mix.by_key * above).sum(-2)  # row, query head, key
            groups = one.activations[f"k.{layer}"].shape[2]
            effects[f"k.{layer}"] = by_head.unflatten(1, (groups, -1)).sum(2).mT
    return effects


def _dropped(
    found: Contrast, source: Mapping[str, Tensor], mixed: Mapping[int, Mixed], whole: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Mean magnitude over the passes that leave a node alive: that of no drop, and those that drop another layer."""
    layers, length = found.model.n_layers, found.base.shape[1]
    if layers == 1:
        raise BadInput(
            "GradDrop drops one layer at a time and needs two or more; use method='atp' or 'qk_fix'"
        )
    total = {site: effect.abs().double() for site, effect in whole.items()}
    wanted = [*found.sites, *(f"pattern.{layer}" for layer in mixed)]
    for dropped in torch.arange(layers).split(max(1, TOKENS_AT_ONCE // length)):
        base = found.base.expand(len(dropped), -1)
        rows = slopes(found.model, base, wanted, found.number, dropping(dropped.tolist()))
        effects = _contracted(found, rows, source) | _attention(found, rows, mixed)
        for row, layer in enumerate(dropped.tolist()):
            for name in WRITTEN:  # seen behind the point where slopes are dropped
                if f"{name}.{layer}" in effects:
                    effects[f"{name}.{layer}"][row] = 0
        for site, effect in effects.items():
            total[site] += effect.abs().double().sum(0, keepdim=True)
    return {site: value / (layers + (split(site)[0] in STREAM)) for site, value in total.items()}


def dropping(layers: Sequence[int]) -> dict[str, Edit]:
    """Edits of a pass in whose rows no slope goes through what one layer writes.

    Args:
        layers: which layer, for each row.
    """
    return {
        f"{name}.{layer}": at(Tensor.detach, rows=row) for row, layer in enumerate(layers) for name in WRITTEN
    }
