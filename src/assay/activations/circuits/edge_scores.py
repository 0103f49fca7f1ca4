r"""First-order effects of patching every edge of one pair of prompts, and exact effects of some.

.. math:: \widehat{e}(u \to v) = (a'_u - a_u) \cdot \int_0^1 \frac{\partial M}{\partial x_v}\Big|_{x + \alpha (x' - x)}
          \, d\alpha

with :math:`a_u` what the sender writes in the base run and :math:`a'_u` in the source run, :math:`x_v` what the
receiver reads of the stream, and :math:`x` the embeddings. EAP takes the slope at :math:`\alpha = 0` alone; EAP-IG
integrates.

Attention turns within a small part of the way, which rules of few points miss. But what slopes add up to between two
points is known, the difference of :math:`M` there. So ``adaptive`` halves whichever part of the way is integrated worst
(Gauss's rule of three points on each) until the whole is right to 1%. ``gauss`` is Gauss's rule on the whole way, and
``endpoint`` the usual rule, the mean of the slopes at k/n for k from 1 to n, whose error falls as 1/n.

``eap_qk_fix`` and ``eap_star`` are in :mod:`assay.activations.circuits.edge_star`.

Sources: Syed et al., 2310.10348 (EAP); Hanna et al., 2403.17806 (EAP-IG, on inputs).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from assay.activations.circuits.edge_star import mended_scores
from assay.activations.circuits.graph import Graph, check_sums
from assay.activations.circuits.node_scores import Contrast
from assay.models.partial import Recording, partial_forward
from assay.models.slopes import last_logits, slopes

EdgeMethod = Literal["eap", "eap_ig", "eap_qk_fix", "eap_star"]
MENDED = ("eap_qk_fix", "eap_star")
Quadrature = Literal["adaptive", "gauss", "endpoint"]
ACCURACY = 0.01
"""Error at which the adaptive rule stops, relative to the difference of the runs."""
PART = 3
"""Slopes on each part of the way, for the adaptive rule."""
TOKENS_AT_ONCE = 256
"""Tokens of one differentiated pass: their graph is kept whole, for SmolLM2 about 1 MB a token."""


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """First-order effects of one pair.

    Attributes:
        scores: (sender, receiver), float64; zero where the receiver reads before the sender writes.
        value: the metric of the base run.
        whole: what the slopes say that the embeddings do together: the difference of the runs, if they say right.
        change: what each sender writes in the source run less in the base run, (sender, pos, d_model).
        seen: the base run's activations, by site.
    """

    scores: Tensor
    value: float
    whole: float
    change: Tensor
    seen: Mapping[str, Tensor]


def rule(quadrature: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    """Points and weights of an integral from 0 to 1.

    Args:
        quadrature: ``gauss`` or ``endpoint``, which do not look at what they integrate.
        steps: number of points.

    Returns:
        The points, and weights that sum to 1.
    """
    if quadrature == "endpoint":
        return [(k + 1) / steps for k in range(steps)], [1 / steps] * steps
    points, weights = np.polynomial.legendre.leggauss(steps)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def score_edges(
    found: Contrast, graph: Graph, method: EdgeMethod, steps: int, quadrature: Quadrature
) -> EdgeScores:
    """Attribute the metric's change to every edge.

    Args:
        found: the pair, with the graph's written and read sites of the source run.
        graph: of the model.
        method: ``eap``, ``eap_ig``, ``eap_qk_fix`` or ``eap_star``.
        steps: slopes along the way from base to source; for ``eap_ig``.
        quadrature: how they are weighed.

    Returns:
        The scores.

    Raises:
        BadInput: a model whose stream is not the sum of what its parts write.
    """
    sites = list(dict.fromkeys([*graph.written_sites, *graph.read_sites]))
    logits, seen = last_logits(found.model, found.base, [*sites, "embed"])
    check_sums(graph, seen, found.activations)
    change = (graph.written(found.activations) - graph.written(seen))[0]
    value = float(found.number(logits)[0])
    if method in MENDED:
        mended, entering = mended_scores(found, graph, change, seen, drop=method == "eap_star")
        whole = float((change[0].double() * entering.double()).sum())
        return EdgeScores(mended * graph.allowed, value, whole, change, seen)
    if method == "eap":
        points, weights = [0.0], [1.0]
    elif quadrature == "adaptive":
        points, weights = adapted(found, seen, change[0], steps)
    else:
        points, weights = rule(quadrature, steps)
    source = found.activations["embed"]
    mean = torch.zeros(1)
    whole = 0.0
    length = found.base.shape[1]
    for some in torch.arange(len(points)).split(max(1, TOKENS_AT_ONCE // length)):
        share = torch.tensor([points[i] for i in some]).to(source)[:, None, None]
        weight = torch.tensor([weights[i] for i in some]).to(source)[:, None, None, None]
        between = seen["embed"] + share * (source - seen["embed"])
        one = slopes(
            found.model, found.base.expand(len(some), -1), graph.read_sites, found.number, {"embed": between}
        )
        mean = mean + (weight * graph.slopes(one.activations, one.gradients)).sum(0)
        entering = one.gradients["resid_pre.0"].double() * weight[:, 0]
        whole += float((change[0].double() * entering.sum(0)).sum())
    scores = torch.einsum("spd,rpd->sr", change.double(), mean.double()) * graph.allowed
    return EdgeScores(scores, value, whole, change, seen)


def adapted(
    found: Contrast, seen: Mapping[str, Tensor], change: Tensor, steps: int
) -> tuple[list[float], list[float]]:
    """Points and weights that make the slopes add up to the metric's difference, as far as ``steps`` allow.

    Args:
        found: the pair, with the source run's embeddings.
        seen: the base run's embeddings.
        change: of the stream that enters the first block, (pos, d_model).
        steps: most slopes, ``PART`` or more.

    Returns:
        The points, and weights that sum to 1.
    """
    gauss = rule("gauss", PART)

    def embeddings(points: Sequence[float]) -> Tensor:
        share = torch.tensor(points).to(change)[:, None, None]
        return seen["embed"] + share * (found.activations["embed"] - seen["embed"])

    def at_end(point: float) -> float:
        logits, _ = last_logits(found.model, found.base, [], {"embed": embeddings([point])})
        return float(found.number(logits)[0])

    def error(part: tuple[float, float]) -> float:
        (low, high), rows = part, found.base.expand(PART, -1)
        edits = {"embed": embeddings([low + (high - low) * point for point in gauss[0]])}
        one = slopes(found.model, rows, ["resid_pre.0"], found.number, edits)
        slope = (one.gradients["resid_pre.0"].double() * change.double()).sum((1, 2))
        said = (high - low) * float(slope @ torch.tensor(gauss[1], dtype=torch.float64).to(slope))
        return said - (value[high] - value[low])

    value = {point: at_end(point) for point in (0.0, 1.0)}
    parts = {(0.0, 1.0): error((0.0, 1.0))}
    enough = ACCURACY * abs(value[1.0] - value[0.0])
    while sum(map(abs, parts.values())) > enough and PART * (len(parts) + 1) <= steps:
        low, high = max(parts, key=lambda part: abs(parts[part]))
        middle = (low + high) / 2
        value[middle] = at_end(middle)
        del parts[low, high]
        parts |= {half: error(half) for half in ((low, middle), (middle, high))}
    points = [low + (high - low) * point for low, high in sorted(parts) for point in gauss[0]]
    return points, [(high - low) * weight for low, high in sorted(parts) for weight in gauss[1]]


def patch_edges(
    found: Contrast,
    graph: Graph,
    recording: Recording,
    scored: EdgeScores,
    edges: Sequence[tuple[int, int]],
    max_rows: int | None,
) -> Tensor:
    """The metric's change when single edges carry what the source run writes.

    Args:
        found: the pair.
        graph: of the model.
        recording: of the base run.
        scored: what senders write, and the base run's activations.
        edges: sender and receiver numbers.
        max_rows: most rows in one pass; ``None`` for what memory allows.

    Returns:
        (edge,), float64.
    """
    differing = (scored.change != 0).flatten(2).any(-1).any(0).nonzero()[:, 0].tolist()
    if not differing or not edges:
        return torch.zeros(len(edges), dtype=torch.float64)
    where = tuple(range(differing[0], found.base.shape[1]))
    variants = []
    for sender, receiver in edges:
        reader = graph.receivers[receiver]
        stream = graph.stream(reader, scored.seen) + scored.change[sender]
        variants.append((graph.edit(reader, stream, where),))
    measured = partial_forward(recording, variants, found.gauge, max_rows=max_rows)[:, 0, 0, 0]
    return measured.double() - scored.value
