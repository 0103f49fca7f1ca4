"""The two ends of a path by name: what writes, and what reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from assay.activations.circuits.graph import Graph, Receiver
from assay.errors import BadInput


@dataclass(frozen=True)
class Sender:
    """One end of a path.

    Attributes:
        name: as it was given.
        site: what is replaced in the third pass.
        stage: receivers of higher stages read what it writes.
        head: which head of the site; ``None`` for the others.
    """

    name: str
    site: str
    stage: int
    head: int | None = None


@dataclass(frozen=True)
class Target:
    """The other end of a path: one or several receivers that read together.

    Attributes:
        name: as it was given.
        readers: the receivers.
        stage: of the first of them.
    """

    name: str
    readers: tuple[Receiver, ...]

    @property
    def stage(self) -> int:
        """When it reads."""
        return self.readers[0].stage


def find_senders(graph: Graph, names: Sequence[str]) -> list[Sender]:
    """The senders that names stand for.

    Args:
        graph: of the model.
        names: ``head.3.5``, ``mlp.3``, ``attention.3``, ``resid.3``, ``embed``; ``heads`` and ``mlps`` for all.

    Returns:
        The senders in the order given, each once.

    Raises:
        BadInput: no name, or an unknown one.
    """
    known = {"embed": Sender("embed", "resid_pre.0", -1)}
    for layer, block in enumerate(graph.model.parts.blocks):
        made = [Sender(f"head.{layer}.{i}", f"z.{layer}", 2 * layer, i) for i in range(block.n_heads)]
        made.append(Sender(f"mlp.{layer}", f"mlp_out.{layer}", 2 * layer + 1))
        made.append(Sender(f"attention.{layer}", f"attn_out.{layer}", 2 * layer))
        made.append(Sender(f"resid.{layer}", f"resid_pre.{layer}", 2 * layer - 1))
        known |= {sender.name: sender for sender in made}
    groups = {
        group: [name for name in known if name.startswith(start)]
        for group, start in (("heads", "head."), ("mlps", "mlp."))
    }
    wanted = [one for name in names for one in groups.get(name, [name])]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise BadInput(
            f"senders={tuple(names)}: {', '.join(unknown) or 'none'} is no sender here. Give head.L.H, mlp.L, "
            f"attention.L, resid.L, embed, heads or mlps; layers 0 to {graph.model.n_layers - 1}, heads 0 to "
            f"{graph.model.parts.blocks[0].n_heads - 1}"
        )
    return [known[name] for name in dict.fromkeys(wanted)]


def find_targets(graph: Graph, names: Sequence[str]) -> list[Target]:
    """The receivers that names stand for.

    Args:
        graph: of the model.
        names: ``q.5.1``, ``k.5.0``, ``v.5.0``, ``mlp.5``, ``resid.5``, ``logits``; ``head.5.1`` where each head has
            keys and values of its own.

    Returns:
        The receivers in the order given, each once.

    Raises:
        BadInput: no name, an unknown one, or a head whose keys and values others read too.
    """
    readers = {receiver.name: receiver for receiver in graph.receivers}
    known = {name: Target(name, (receiver,)) for name, receiver in readers.items()}
    shared: dict[str, tuple[str, str, str]] = {}
    for layer, block in enumerate(graph.model.parts.blocks):
        group = block.n_heads // block.n_kv_heads
        for head in range(block.n_heads):
            names_of = (f"q.{layer}.{head}", f"k.{layer}.{head // group}", f"v.{layer}.{head // group}")
            name = f"head.{layer}.{head}"
            if group == 1:
                known[name] = Target(name, tuple(readers[one] for one in names_of))
            else:
                shared[name] = names_of
        stream = Receiver(f"resid.{layer}", f"resid_pre.{layer}", 2 * layer, layer)
        known[stream.name] = Target(stream.name, (stream,))
    if grouped := [name for name in names if name in shared]:
        q, k, v = shared[grouped[0]]
        raise BadInput(
            f"receivers={tuple(names)}: {grouped[0]} shares its keys and values with others, which would read what "
            f"it is told. Give {q} for the head alone; {k} and {v} are its group's"
        )
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise BadInput(
            f"receivers={tuple(names)}: {', '.join(unknown) or 'none'} is no receiver here. Give q.L.H, k.L.H, v.L.H, "
            f"head.L.H, mlp.L, resid.L or logits; layers 0 to {graph.model.n_layers - 1}"
        )
    return [known[name] for name in dict.fromkeys(names)]
