"""Running a circuit: every receiver reads its own stream, in which only the circuit's edges are as they are now."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from assay.activations.circuits.graph import Graph, Receiver
from assay.models.edits import Edit
from assay.models.slopes import last_logits

ENTRIES_AT_ONCE = 2**26
"""Entries of what senders write, over the circuits that run side by side: 256 MB."""


def run_circuits(graph: Graph, ids: Tensor, other: Mapping[str, Tensor], kept: Tensor) -> Tensor:
    """Logits of a prompt when only some edges carry it, and all others what another run wrote.

    Args:
        graph: of the model.
        ids: token ids of the prompt, (1, pos).
        other: the graph's written and read sites of the other run.
        kept: which edges carry the prompt, (circuit, sender, receiver).

    Returns:
        Logits at the last position, (circuit, vocabulary).
    """
    whole = len(graph.senders) * ids.shape[1] * graph.model.d_model
    step = max(1, ENTRIES_AT_ONCE // whole)
    found = []
    for some in (kept & graph.allowed).split(step):
        logits, _ = last_logits(graph.model, ids.expand(len(some), -1), [], _edits(graph, other, some))
        found.append(logits)
    return torch.cat(found)


def _edits(graph: Graph, other: Mapping[str, Tensor], kept: Tensor) -> dict[str, Edit]:
    """Edits that note what each sender writes, and that give each receiver a stream of its own."""
    first, _ = graph.first_senders, graph.factors  # found by a run, which cannot begin inside another
    shape = other["resid_pre.0"].shape
    written = other["resid_pre.0"].new_zeros(
        len(kept), len(graph.senders), *shape[1:]
    )  # now, less in the other run
    share = kept.to(written)
    edits: dict[str, Edit] = {}

    def note(site: str, x: Tensor) -> Tensor:
        change = graph.added(site, x - other[site])
        written[:, first[site] : first[site] + change.shape[1]] = change
        return x

    def read(readers: list[tuple[int, Receiver]], x: Tensor) -> Tensor:
        base = graph.stream(readers[0][1], other)
        columns = [column for column, _ in readers]
        change = torch.einsum("csr,cspd->crpd", share[:, :, columns], written)
        values = graph.read(readers[0][1], (base + change).flatten(0, 1)).unflatten(0, (len(kept), -1))
        if readers[0][1].head is None:
            return values[:, 0]
        return torch.stack([values[:, i, :, i] for i in range(len(readers))], 2)

    for site in graph.written_sites:
        edits[site] = functools.partial(note, site)
    for site in dict.fromkeys(receiver.site for receiver in graph.receivers):
        edits[site] = functools.partial(
            read, [(i, r) for i, r in enumerate(graph.receivers) if r.site == site]
        )
    return edits
