"""Components of a model: layers, attentions, MLPs, heads and neurons by name, and what stands in for them."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, Variant

Value = Literal["zero", "mean", "position_mean", "resample", "noise"]
Kind = Literal["layer", "attention", "mlp", "head", "neuron"]
GROUPS: dict[str, Kind] = {"layers": "layer", "attention": "attention", "mlp": "mlp", "heads": "head"}
SITES: dict[Kind, tuple[str, ...]] = {
    "layer": ("attn_out", "mlp_out"),
    "attention": ("attn_out",),
    "mlp": ("mlp_out",),
    "head": ("z",),
    "neuron": ("mlp_act",),
}
"""What each kind writes."""
INPUTS_AT_ONCE = 16


@dataclass(frozen=True)
class Component:
    """One part of a model that can be replaced.

    Attributes:
        kind: layer, attention, mlp, head or neuron.
        layer: its block.
        index: which head or neuron; -1 for the others.
    """

    kind: Kind
    layer: int
    index: int = -1

    @property
    def name(self) -> str:
        """``head.3.5``, ``mlp.3``."""
        return f"{self.kind}.{self.layer}" + (f".{self.index}" if self.index >= 0 else "")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it writes."""
        return tuple(f"{site}.{self.layer}" for site in SITES[self.kind])

    def part(self, tensor: Tensor) -> Tensor:
        """Its part of a site's tensor, (..., pos, width): a view."""
        if self.kind == "head":
            return tensor[..., self.index, :]
        return tensor[..., self.index, None] if self.kind == "neuron" else tensor

    def edit(self, site: str, own: Tensor, value: Tensor) -> SiteEdit:
        """The edit that puts a value in the place of its part.

        Args:
            site: one of its sites.
            own: the site's whole tensor, (row, pos, ...).
            value: what to put there, as wide as the part.

        Returns:
            The edit, at every position.
        """
        if self.kind != "neuron":
            return SiteEdit(site, value, head=self.index if self.kind == "head" else None)
        whole = own.clone()
        whole[..., self.index] = value[..., 0]
        return SiteEdit(site, whole)


def find_components(model: Model, words: Sequence[str]) -> list[Component]:
    """The components that words stand for.

    Args:
        model: a decoder.
        words: ``layers``, ``attention``, ``mlp``, ``heads`` for all of a kind; ``head.3.5``, ``neuron.3.112``,
            ``mlp.3``, ``attention.3``, ``layer.3`` for one.

    Returns:
        The components by layer, each once.

    Raises:
        BadInput: no word, an unknown one, or a layer, head or neuron out of range or not computed as a tensor.
    """
    width = functools.cache(lambda kind, layer: _width(model, kind, layer))
    found = {component for word in words for component in _named(model, word, width)}
    if not found:
        raise BadInput("no components were named; pass 'heads', 'mlp', 'attention', 'layers', or 'head.3.5'")
    order = list(SITES)
    return sorted(
        found, key=lambda component: (component.layer, order.index(component.kind), component.index)
    )


def _named(model: Model, word: str, width: Callable[[Kind, int], int]) -> list[Component]:
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


def _width(model: Model, kind: Kind, layer: int) -> int:
    """How many of a kind a block has; 0 where it computes no such tensor."""
    if not all(f"{site}.{layer}" in model.sites(site) for site in SITES[kind]):
        return 0
    if kind == "head":
        return model.parts.blocks[layer].n_heads
    if kind != "neuron":
        return 1
    return capture(model, [0], [f"mlp_act.{layer}"])[f"mlp_act.{layer}"].shape[-1]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a data set says of each site.

    Attributes:
        position_mean: mean over inputs, (pos, ...).
        mean: mean over inputs and positions, (...).
        deviation: standard deviation over inputs and positions, (...).
    """

    position_mean: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    deviation: Mapping[str, Tensor]


def statistics(model: Model, tokens: Sequence[Tokens], sites: Sequence[str]) -> Statistics:
    """Means and standard deviations over a data set, in float64.

    Args:
        model: a decoder.
        tokens: token ids of the inputs, all of one length.
        sites: which sites.

    Returns:
        The statistics.
    """
    total: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    for start in range(0, len(tokens), INPUTS_AT_ONCE):
        captured = capture(model, [list(row) for row in tokens[start : start + INPUTS_AT_ONCE]], sites)
        for site, value in captured.items():
            total[site] = total.get(site, torch.zeros((), dtype=torch.float64)) + value.double().sum(0)
            square[site] = square.get(
                site, torch.zeros((), dtype=torch.float64)
            ) + value.double().square().sum(0)
    position_mean = {site: value / len(tokens) for site, value in total.items()}
    mean = {site: value.mean(0) for site, value in position_mean.items()}
    variance = {site: square[site].mean(0) / len(tokens) - mean[site].square() for site in total}
    return Statistics(
        position_mean, mean, {site: value.clamp_min(0).sqrt() for site, value in variance.items()}
    )


@dataclass(frozen=True, eq=False)
class Replacements:
    """What stands in for components in a few recorded inputs.

    Attributes:
        recording: the inputs' runs, with the components' sites.
        inputs: the number of each input in the data set.
        value: what stands in.
        statistics: of the data set; ``None`` for values that need none.
        partners: the sites in the inputs that values are resampled from; empty for other values.
        noise: standard deviations of the noise.
        seed: of the noise and of the random directions.
    """

    recording: Recording
    inputs: Sequence[int]
    value: Value
    statistics: Statistics | None
    partners: Mapping[str, Tensor]
    noise: float
    seed: int

    def variant(self, component: Component, *, random: bool = False) -> Variant:
        """The edits that replace a component.

        Args:
            component: which.
            random: go as far as its replacement from what it is, in a random direction.

        Returns:
            The edits.
        """
        edits = []
        for site in component.sites:
            whole = self.recording.sites[site]
            own = component.part(whole)
            value = self._value(component, site, own)
            if random:
                direction = self._drawn(component, site, own, stream=1)
                size = (value - own).norm(dim=-1, keepdim=True)
                value = own + size * direction / direction.norm(dim=-1, keepdim=True)
            edits.append(component.edit(site, whole, value))
        return tuple(edits)

    def own(self, component: Component) -> Variant:
        """The edits that replace a component by what it is."""
        sites = self.recording.sites
        return tuple(
            component.edit(site, sites[site], component.part(sites[site])) for site in component.sites
        )

    def _value(self, component: Component, site: str, own: Tensor) -> Tensor:
        if self.value == "zero":
            return torch.zeros_like(own)
        if self.value == "resample":
            return component.part(self.partners[site]).to(own)
        assert self.statistics is not None  # every other value is made of them
        if self.value == "noise":
            spread = component.part(self.statistics.deviation[site][None])[0].to(own)
            return own + self.noise * spread * self._drawn(component, site, own, stream=0)
        if self.value == "mean":
            return component.part(self.statistics.mean[site][None])[0].to(own).expand_as(own)
        return component.part(self.statistics.position_mean[site]).to(own).expand_as(own)

    def _drawn(self, component: Component, site: str, own: Tensor, stream: int) -> Tensor:
        """Gaussian numbers of an input and a component, whatever else is measured beside them."""
        place = (component.layer, component.index + 1, component.sites.index(site), *map(ord, component.kind))
        rows = []
        for number in self.inputs:
            seed = int(np.random.default_rng([self.seed, stream, number, *place]).integers(2**63))
            rows.append(torch.randn(own.shape[1:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows).to(own)
