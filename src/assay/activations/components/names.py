"""Components by name: all of a kind, single ones, edges between two, and directions at a site."""

import functools
import re
from collections.abc import Callable, Sequence

from assay.activations.components.component import GROUPS, SITES, Component, Kind
from assay.activations.components.links import DIRECTION, READERS, Edge, read_direction
from assay.errors import BadInput
from assay.models.intervention import capture
from assay.models.model import Model

Width = Callable[[Kind, int], int]


def find_components(model: Model, words: Sequence[str]) -> list[Component]:
    """The components that words stand for.

    Args:
        model: a decoder.
        words: ``layers``, ``attention``, ``mlp``, ``heads`` for all of a kind; ``head.3.5``, ``neuron.3.112``,
            ``mlp.3``, ``attention.3``, ``layer.3`` for one; ``head.3.5>mlp.7``, ``embed>attention.2``, ``mlp.3>output``
            for an edge; ``direction:SITE:NUMBERS`` for a direction
            (:func:`assay.activations.components.links.direction`).

    Returns:
        The components by layer, each once.

    Raises:
        BadInput: no word, an unknown one, a layer, head or neuron out of range or not computed as a tensor, an edge
            that runs backwards, or a direction of another width.
    """
    width = functools.cache(lambda kind, layer: _width(model, kind, layer))
    found = {component for word in words for component in _named(model, word, width)}
    if not found:
        raise BadInput("no components were named; pass 'heads', 'mlp', 'attention', 'layers', or 'head.3.5'")
    order = [*SITES, "direction", "edge"]
    return sorted(
        found,
        key=lambda component: (component.layer, order.index(component.kind), component.index, component.name),
    )


def _named(model: Model, word: str, width: Width) -> list[Component]:
    if found := DIRECTION.fullmatch(word):
        return [read_direction(model, found[1], found[2])]
    if ">" in word:
        return [_edge(model, word, width)]
    if word in GROUPS:
        kind = GROUPS[word]
        layers = [layer for layer in range(model.n_layers) if width(kind, layer)]
        if not layers:
            raise BadInput(
                f"components={word!r}: {model.source} computes no {SITES[kind]} that could be replaced"
            )
        if kind != "head":
            return [Component(kind, layer) for layer in layers]
        return [Component(kind, layer, head) for layer in layers for head in range(width(kind, layer))]
    match = re.fullmatch(r"(layer|attention|mlp)\.(\d+)|(head|neuron)\.(\d+)\.(\d+)", word)
    if match is None:
        raise BadInput(
            f"components={word!r}: expected layers, attention, mlp or heads, or one component such as mlp.3, head.3.5 "
            "or neuron.3.112"
        )
    kind, layer = match[1] or match[3], int(match[2] or match[4])
    if layer >= model.n_layers:
        raise BadInput(f"components={word!r}: the model has layers 0 to {model.n_layers - 1}")
    component = Component(kind, layer, int(match[5]) if match[5] else -1)  # type: ignore[arg-type]
    count = width(component.kind, layer)
    if not count:
        raise BadInput(
            f"components={word!r}: {model.source} computes no {component.sites} that could be replaced"
        )
    if component.index >= count:
        raise BadInput(f"components={word!r}: block {layer} has {count}, numbered 0 to {count - 1}")
    return [component]


def _edge(model: Model, word: str, width: Width) -> Edge:
    source_word, _, reader_word = word.partition(">")
    reader, _, number = reader_word.partition(".")
    if reader not in READERS or (reader != "output") != number.isdigit():
        raise BadInput(f"components={word!r}: an edge ends in attention.3, mlp.3 or output")
    layer = int(number) if number else model.n_layers - 1
    if layer >= model.n_layers:
        raise BadInput(f"components={word!r}: the model has layers 0 to {model.n_layers - 1}")
    source = Component("embed", 0) if source_word == "embed" else _named(model, source_word, width)[0]
    if source_word in GROUPS or source.kind in ("edge", "direction"):
        raise BadInput(
            f"components={word!r}: an edge begins at embed, head.3.5, neuron.3.112, mlp.3, attention.3 or layer.3"
        )
    block = model.parts.blocks[source.layer]
    normed = {"head": block.after_attention, "neuron": block.after_mlp}
    if normed.get(source.kind) is not None:
        raise BadInput(
            f"components={word!r}: {model.source} norms what a block writes, which is then no sum of parts"
        )
    own_block = source.kind in ("head", "attention") and reader == "mlp" and not block.parallel
    if reader != "output" and source.kind != "embed" and source.layer >= layer + own_block:
        raise BadInput(f"components={word!r}: {reader}.{layer} does not read what {source.name} writes")
    needed = {
        "attention": ["attn_in"],
        "mlp": ["mlp_in", *([] if block.parallel else ["resid_mid"])],
        "output": [],
    }
    if missing := [name for name in needed[reader] if f"{name}.{layer}" not in model.sites(name)]:
        raise BadInput(f"components={word!r}: {model.source} has no {', '.join(missing)} there")
    return Edge("edge", layer, model=model, source=source, reader=reader)  # type: ignore[arg-type]


def _width(model: Model, kind: Kind, layer: int) -> int:
    """How many of a kind a block has; 0 where it computes no such tensor."""
    if not all(f"{site}.{layer}" in model.sites(site) for site in SITES[kind]):
        return 0
    if kind == "head":
        return model.parts.blocks[layer].n_heads
    if kind != "neuron":
        return 1
    return capture(model, [0], [f"mlp_act.{layer}"])[f"mlp_act.{layer}"].shape[-1]
