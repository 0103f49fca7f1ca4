r"""AtP*'s two mendings, for edges: queries and keys through the exact softmax, and slopes that leave a layer out.

**QK fix.** An edge into queries or keys acts through a softmax. With :math:`P` a head's pattern, :math:`P'` the one
when its queries (or keys), at every position, are read from the stream with the sender's change, and
:math:`G = \partial M / \partial P`,

.. math:: \widehat{e}(u \to q) = \sum_{ij} (P'_{ij} - P_{ij})\, G_{ij}

The norm and the projection before are exact too; what follows the pattern is linear. Keys that several query heads
share sum over these. Of a single attention whose output is read linearly this is the exact effect.

**GradDrop.** As of nodes (:mod:`assay.activations.circuits.node_scores`): with :math:`\widehat{e}_\ell` the score when
no slope passes through what layer :math:`\ell` writes, the mean of the magnitudes :math:`|\widehat{e}|` and
:math:`|\widehat{e}_\ell|` over those passes that leave the edge a way to the metric. An edge is cut where the layer of
its receiver is dropped, and nowhere else: what the sender writes is what the edge carries, and no slope is taken
through it. So the mean is over L passes for a receiver in a layer, and over L + 1 for the logits, whose slope no drop
changes.

Source: Kramár et al., 2403.00745, who define both for nodes; that for edges is ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from assay.activations.circuits.graph import Graph
from assay.activations.circuits.node_scores import TOKENS_AT_ONCE, Contrast, dropping
from assay.models.edits import Edit
from assay.models.scores import scores
from assay.models.slopes import Slopes, slopes

ROWS_AT_ONCE = 64
"""Senders whose queries and keys are put in by one pass."""


def mended_scores(
    found: Contrast, graph: Graph, change: Tensor, seen: Mapping[str, Tensor], *, drop: bool
) -> tuple[Tensor, Tensor]:
    """Attribute the metric's change to every edge, with queries and keys through the exact softmax.

    Args:
        found: the pair.
        graph: of the model.
        change: of what each sender writes, (sender, pos, d_model).
        seen: the base run's written and read sites.
        drop: average magnitudes over the passes that leave an edge alive; scores then have no sign.

    Returns:
        Scores (sender, receiver), float64; and the slope by what enters the first block, (pos, d_model).
    """
    layers = range(found.model.n_layers)
    patterns = [f"pattern.{layer}" for layer in layers]
    passes = [slopes(found.model, found.base, [*graph.read_sites, *patterns], found.number)]
    if drop:
        size = max(1, TOKENS_AT_ONCE // found.base.shape[1])
        for some in torch.arange(len(layers)).split(size):
            rows = found.base.expand(len(some), -1)
            edits = dropping(some.tolist())
            passes.append(slopes(found.model, rows, [*graph.read_sites, *patterns], found.number, edits))
    linear = torch.cat([_linear(graph, one, change) for one in passes])
    steep = {i: torch.cat([one.gradients[patterns[i]] for one in passes]).double() for i in layers}
    for name in "qk":
        _through_softmax(found, graph, change, seen, steep, name, linear)
    entering = passes[0].gradients["resid_pre.0"][0]
    if not drop:
        return linear[0], entering
    # a receiver past the last layer is cut by no drop
    living = torch.tensor([len(layers) + (receiver.layer == len(layers)) for receiver in graph.receivers])
    return linear.abs().sum(0) / living.to(linear), entering


def _linear(graph: Graph, one: Slopes, change: Tensor) -> Tensor:
    """(pass, sender, receiver), to first order."""
    by_receiver = graph.slopes(one.activations, one.gradients)
    return torch.einsum("spd,wrpd->wsr", change.double(), by_receiver.double())


def _through_softmax(
    found: Contrast,
    graph: Graph,
    change: Tensor,
    seen: Mapping[str, Tensor],
    steep: Mapping[int, Tensor],
    name: str,
    scored: Tensor,
) -> None:
    """Write the scores of queries, or of keys, into (pass, sender, receiver)."""
    layers = range(found.model.n_layers)
    pinned: dict[str, Edit] = {f"resid_pre.{i}": seen[f"resid_pre.{i}"] for i in layers}
    plain = {i: value.double().softmax(-1) for i, value in scores(found.model, found.base, pinned).items()}
    columns = {
        i: [c for c, receiver in enumerate(graph.receivers) if receiver.site == f"{name}.{i}"] for i in layers
    }
    for some in torch.arange(len(change)).split(ROWS_AT_ONCE):
        edits = dict(pinned)
        with torch.no_grad():
            for i in layers:
                reader = graph.receivers[columns[i][0]]
                edits[f"{name}.{i}"] = graph.read(reader, graph.stream(reader, seen) + change[some])
        turned = scores(found.model, found.base.expand(len(some), -1), edits)
        for i in layers:
            moved = turned[i].double().softmax(-1) - plain[i]
            effect = torch.einsum("shqk,whqk->wsh", moved, steep[i])
            own = effect.unflatten(-1, (len(columns[i]), -1)).sum(-1)  # query heads that share a key
            scored[:, some[:, None], torch.tensor(columns[i])[None]] = own.to(scored)
