r"""A decoder as a graph: what each part writes to the residual stream, and through what each part reads it.

Senders are the embedding, every head and every MLP; receivers are the queries, keys and values of every head, every
MLP, and the logits. An edge ``head.0.3>k.4.1`` is the share of one sender in what one receiver reads. The stream is a
sum: changing one edge adds the change of what the sender writes to what the receiver reads, and to nothing else.

What a sender writes is what enters the stream: behind a norm of the block's own, and times the block's multiplier.
Where such a norm stands behind attention (Gemma 2, OLMo 2), its heads write no shares of their own: each changes the
scale that all of them are divided by. There attention is one sender, ``attention.3``. To hold the norm's scale as it is
in one of the runs would tell heads apart, but their changes would not add up to the change of the stream.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.intervention import capture
from assay.models.model import Model
from assay.models.partial import SiteEdit
from assay.models.sites import Port, find_port

TOLERANCE = 1e-3
"""How far sums and norms may be from what the model computed, relative to the largest entry."""
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Receiver:
    """One reader of the stream.

    Attributes:
        name: ``q.4.1``, ``mlp.4`` or ``logits``.
        site: where what it reads can be replaced.
        stage: the senders of lower stages write before it reads.
        layer: its block; the number of blocks for the logits.
        head: which head of the site; ``None`` for the others.
    """

    name: str
    site: str
    stage: int
    layer: int
    head: int | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """The graph of a model; made by :func:`graph_of`.

    Attributes:
        model: the decoder.
        senders: names, in the order in which they write.
        stages: when each sender writes.
        receivers: in the order in which they read.
    """

    model: Model
    senders: tuple[str, ...]
    stages: tuple[int, ...]
    receivers: tuple[Receiver, ...]

    @functools.cached_property
    def allowed(self) -> Tensor:
        """Which senders write before which receivers read, (sender, receiver)."""
        writes = torch.tensor(self.stages)[:, None]
        return writes < torch.tensor([receiver.stage for receiver in self.receivers])[None]

    @property
    def written_sites(self) -> list[str]:
        """The sites that hold what senders write."""
        layers = range(self.model.n_layers)
        return ["resid_pre.0", *(site for i in layers for site in (self.attention_site(i), f"mlp_out.{i}"))]

    @property
    def read_sites(self) -> list[str]:
        """The sites whose slopes tell those of what receivers read, and the streams they read."""
        layers = range(self.model.n_layers)
        names = ("resid_pre", "q", "k", "v", "mlp_in", *(() if self._parallel else ("resid_mid",)))
        return [*(f"{name}.{layer}" for layer in layers for name in names), f"resid_post.{layers[-1]}"]

    @property
    def kinds(self) -> str:
        """How senders are named, for messages."""
        apart = [block.after_attention is None for block in self.model.parts.blocks]
        return ", ".join(
            [
                "embed",
                *(["head.L.H"] if any(apart) else []),
                *([] if all(apart) else ["attention.L"]),
                "mlp.L",
            ]
        )

    @property
    def _parallel(self) -> bool:
        return self.model.parts.blocks[0].parallel

    @property
    def site_names(self) -> list[str]:
        """Names of all of these sites, and of the embedding, without their layers."""
        return sorted(
            {site.partition(".")[0] for site in (*self.written_sites, *self.read_sites)} | {"embed"}
        )

    def attention_site(self, layer: int) -> str:
        """The site that holds what a block's attention writes: its heads apart, unless a norm mixes them."""
        normed = self.model.parts.blocks[layer].after_attention is not None
        return f"{'attn_out' if normed else 'z'}.{layer}"

    @property
    def first_senders(self) -> dict[str, int]:
        """Number of the first sender that writes at each of the `written_sites`."""
        counts = [
            self.model.parts.blocks[int(site.partition(".")[2])].n_heads if site[0] == "z" else 1
            for site in self.written_sites
        ]
        return dict(zip(self.written_sites, itertools.accumulate([0, *counts]), strict=False))

    @functools.cached_property
    def factors(self) -> tuple[float, ...]:
        """What each block multiplies by what it adds to the stream: 1 but in a few families (Granite)."""
        names = ("resid_pre", "resid_post", "attn_out", "mlp_out")
        layers = range(self.model.n_layers)
        seen = capture(self.model, [0], [f"{name}.{layer}" for layer in layers for name in names])
        found = []
        for layer in layers:
            before, after, attention, mlp = (seen[f"{name}.{layer}"].double() for name in names)
            added, size = attention + mlp, float((attention + mlp).square().sum())
            factor = float(((after - before) * added).sum()) / size if size else 1.0
            found.append(1.0 if abs(factor - 1) < TOLERANCE else factor)
        return tuple(found)

    def added(self, site: str, value: Tensor) -> Tensor:
        """What the senders that write at a site add to the stream, biases of output projections left out.

        Args:
            site: one of the `written_sites`.
            value: what stands there, (row, pos, ...).

        Returns:
            (row, sender, pos, d_model).
        """
        name, _, layer = site.partition(".")
        if name == "resid_pre":
            return value[:, None]
        return self.factors[int(layer)] * (self.heads(int(layer), value) if name == "z" else value[:, None])

    def written(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What each sender writes, biases of output projections left out.

        Args:
            seen: the `written_sites` of some rows.

        Returns:
            (row, sender, pos, d_model).
        """
        return torch.cat([self.added(site, seen[site]) for site in self.written_sites], 1)

    def heads(self, layer: int, z: Tensor) -> Tensor:
        """What each head of a block gives, (row, head, pos, d_model), of z (row, pos, head, d_head)."""
        project = self.model.parts.blocks[layer].attention_out
        assert project is not None  # graph_of has refused others
        heads = z.shape[2]
        alone = z.new_zeros(z.shape[0], heads, *z.shape[1:])
        for head in range(heads):
            alone[:, head, :, head] = z[:, :, head]
        with torch.no_grad():
            flat = alone.flatten(-2)
            return project.forward(flat) - project.forward(torch.zeros_like(flat[:1, :1, :1]))

    def stream(self, receiver: Receiver, seen: Mapping[str, Tensor]) -> Tensor:
        """The residual stream that a receiver reads, (row, pos, d_model)."""
        return seen[self.stream_site(receiver)]

    def stream_site(self, receiver: Receiver) -> str:
        """The site of the residual stream that a receiver reads."""
        if receiver.site.startswith("resid"):  # the stream itself
            return receiver.site
        middle = receiver.site.startswith("mlp_in") and not self._parallel
        return f"{'resid_mid' if middle else 'resid_pre'}.{receiver.layer}"

    def read(self, receiver: Receiver, stream: Tensor) -> Tensor:
        """What stands at a receiver's site when it reads a stream; past the hooks of the modules that read.

        Args:
            receiver: which.
            stream: (row, pos, d_model).

        Returns:
            (row, pos, head, d_head) of every head of the site, or (row, pos, d_model).
        """
        if receiver.site.startswith("resid"):
            return stream
        norm, port = self._readers[receiver.site]
        normed = stream if norm is None else norm.forward(stream)
        return normed if port is None else port.read(port.module.forward(normed))  # type: ignore[union-attr]

    def edit(self, receiver: Receiver, stream: Tensor, positions: tuple[int, ...]) -> SiteEdit:
        """The edit that lets one receiver, and nothing else, read another stream.

        Args:
            receiver: which.
            stream: (row, pos, d_model), at every position.
            positions: where it differs from the one of the run.

        Returns:
            The edit, at these positions.
        """
        with torch.no_grad():
            value = self.read(receiver, stream[:, list(positions)])
        value = value if receiver.head is None else value[:, :, receiver.head]
        return SiteEdit(receiver.site, value, positions, receiver.head)

    def slopes(self, seen: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
        """Slopes by what each receiver reads of the stream.

        Args:
            seen: the `read_sites` of some rows.
            gradients: by them.

        Returns:
            (row, receiver, pos, d_model).
        """
        found = []
        sites = dict.fromkeys(receiver.site for receiver in self.receivers)
        for site in sites:
            own = [receiver for receiver in self.receivers if receiver.site == site]
            stream, gradient = self.stream(own[0], seen), gradients[site]
            if own[0].name == "logits":
                found.append(gradient[:, None])
                continue
            parts = [
                _pulled_back(functools.partial(self.read, one), stream, gradient, one.head) for one in own
            ]
            found.append(torch.stack(parts, 1))
        return torch.cat(found, 1)

    @functools.cached_property
    def _readers(self) -> dict[str, tuple[nn.Module | None, Port | None]]:
        readers: dict[str, tuple[nn.Module | None, Port | None]] = {}
        for layer, block in enumerate(self.model.parts.blocks):
            for name in "qkv":
                site = f"{name}.{layer}"
                readers[site] = (block.first_norm, find_port(self.model.parts, self.model.module, site))
            readers[f"mlp_in.{layer}"] = (
                block.second_norm or (block.first_norm if block.parallel else None),
                None,
            )
        return readers


def _pulled_back(
    read: functools.partial[Tensor], stream: Tensor, gradient: Tensor, head: int | None
) -> Tensor:
    """The slope by the stream that one receiver reads, from the slope by what stands at its site."""
    with torch.enable_grad():
        given = stream.detach().requires_grad_()
        value = read(given)
        value, slope = (value, gradient) if head is None else (value[:, :, head], gradient[:, :, head])
        return torch.autograd.grad((value * slope).sum(), given)[0]


def graph_of(model: Model) -> Graph:
    """Make the graph of a decoder.

    Args:
        model: the decoder.

    Returns:
        The graph.

    Raises:
        BadInput: a decoder whose heads or MLPs are not to be told apart in what is written or read.
    """
    blocks = model.parts.blocks
    needed = ("q", "k", "v", "z", "mlp_in", "mlp_out")
    missing = [name for name in needed if len(model.sites(name)) < len(blocks)]
    if missing:
        raise BadInput(
            f"{model.source} does not compute {', '.join(missing)} in every block; it has no graph of heads"
        )
    senders, stages, receivers = ["embed"], [-1], []
    for layer, block in enumerate(blocks):
        stage = 2 * layer
        apart = [f"head.{layer}.{head}" for head in range(block.n_heads)]
        attention = apart if block.after_attention is None else [f"attention.{layer}"]
        senders += [*attention, f"mlp.{layer}"]
        stages += [*[stage] * len(attention), stage + 1]
        for name, count in (("q", block.n_heads), ("k", block.n_kv_heads), ("v", block.n_kv_heads)):
            receivers += [
                Receiver(f"{name}.{layer}.{i}", f"{name}.{layer}", stage, layer, i) for i in range(count)
            ]
        receivers.append(Receiver(f"mlp.{layer}", f"mlp_in.{layer}", stage + (not block.parallel), layer))
    receivers.append(Receiver("logits", f"resid_post.{len(blocks) - 1}", 2 * len(blocks), len(blocks)))
    return Graph(model, tuple(senders), tuple(stages), tuple(receivers))


def check_sums(graph: Graph, seen: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Refuse a model whose stream is not the sum of what is written, or not read as the graph has it.

    Args:
        graph: of the model.
        seen: `written_sites` and `read_sites` of a run.
        other: the same of another run.

    Raises:
        BadInput: it is not.
    """
    last = f"resid_post.{graph.model.n_layers - 1}"
    change = other[last] - seen[last]
    total = (graph.written(other) - graph.written(seen)).sum(1)
    if not _alike(total, change, scale=seen[last]):
        raise BadInput(
            f"{graph.model.source}: what the parts write does not add up to the residual stream; see `assay doctor`, "
            "check D108"
        )
    for receiver in graph.receivers:
        with torch.no_grad():
            value = graph.read(receiver, graph.stream(receiver, seen))
        if not _alike(value, seen[receiver.site], scale=seen[receiver.site]):
            raise BadInput(
                f"{graph.model.source}: {receiver.site} is not read from the stream through its norm alone"
            )


def _alike(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    return float((found - expected).abs().max()) <= TOLERANCE * float(scale.abs().max())


def find_edges(graph: Graph, names: Sequence[str]) -> list[tuple[int, int]]:
    """Sender and receiver numbers of edges given by name.

    Args:
        graph: of the model.
        names: ``head.0.3>k.4.1`` and the like.

    Returns:
        The pairs of numbers.

    Raises:
        BadInput: an unknown name, or a receiver that reads before the sender writes.
    """
    places = {receiver.name: i for i, receiver in enumerate(graph.receivers)}
    found = []
    for name in names:
        sender, _, receiver = name.partition(">")
        if sender not in graph.senders or receiver not in places:
            raise BadInput(
                f"edge {name!r}: write it as 'head.0.3>k.4.1'. Senders are {graph.kinds}; receivers q.L.H, "
                f"k.L.H, v.L.H, mlp.L and logits; layers 0 to {graph.model.n_layers - 1}"
            )
        pair = graph.senders.index(sender), places[receiver]
        if not graph.allowed[pair]:
            raise BadInput(f"edge {name!r}: {receiver} reads before {sender} writes")
        found.append(pair)
    return found
