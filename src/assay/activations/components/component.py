"""Components of a model: layers, attentions, MLPs, heads and neurons, and how each is replaced in a recorded run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.models.partial import Recording, SiteEdit, Variant

Kind = Literal["layer", "attention", "mlp", "head", "neuron", "embed", "direction", "edge"]
GROUPS: dict[str, Kind] = {"layers": "layer", "attention": "attention", "mlp": "mlp", "heads": "head"}
SITES: dict[Kind, tuple[str, ...]] = {
    "layer": ("attn_out", "mlp_out"),
    "attention": ("attn_out",),
    "mlp": ("mlp_out",),
    "head": ("z",),
    "neuron": ("mlp_act",),
    "embed": ("resid_pre",),
}
"""What each kind writes."""
ADDED: dict[Kind, str] = {"head": "attn_out", "neuron": "mlp_out"}
"""Where what a part of a block writes meets the residual stream."""


@dataclass(frozen=True)
class Component:
    """One part of a model that can be replaced.

    Attributes:
        kind: layer, attention, mlp, head or neuron; or one of the kinds made of these
            (:mod:`assay.activations.components.links`).
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

    @property
    def recorded(self) -> tuple[str, ...]:
        """The sites a recording needs for it."""
        return self.sites

    @property
    def place(self) -> tuple[int, ...]:
        """Numbers that no other component has."""
        return (self.layer, self.index + 1, *map(ord, self.kind))

    def part(self, tensor: Tensor) -> Tensor:
        """Its part of a site's tensor, (..., pos, width): a view."""
        if self.kind == "head":
            return tensor[..., self.index, :]
        return tensor[..., self.index, None] if self.kind == "neuron" else tensor

    def variant(self, recording: Recording, values: Mapping[str, Tensor]) -> Variant:
        """The edits that replace it in a recorded run.

        Args:
            recording: the run, with the sites it needs.
            values: what to put in the place of its part of each site, as wide as the part.

        Returns:
            The edits, at every position.
        """
        return tuple(self.edit(site, recording.sites[site], value) for site, value in values.items())

    def change(self, recording: Recording, values: Mapping[str, Tensor]) -> Tensor:
        """How a replacement changes what is added to the residual stream.

        Args:
            recording: the run, with the sites it needs.
            values: what to put in the place of its part of each site, as wide as the part.

        Returns:
            What it adds then less what it adds as it is, (row, pos, d_model).
        """
        if self.kind in ADDED:
            return self._added(recording, values) - self._added(recording, {})
        return torch.stack([value - recording.sites[site] for site, value in values.items()]).sum(0)

    def moved(self, recording: Recording, change: Tensor) -> Variant:
        """The edit that changes what is added to the residual stream as if the component had.

        Args:
            recording: the run, with the sites it needs.
            change: (row, pos, d_model).

        Returns:
            The edit, at every position.
        """
        if self.kind in ADDED:
            return (SiteEdit(f"{ADDED[self.kind]}.{self.layer}", self._added(recording, {}) + change),)
        site = self.sites[-1]  # a layer's is added where its MLP writes, when its attention has
        return (SiteEdit(site, recording.sites[site] + change),)

    def _added(self, recording: Recording, values: Mapping[str, Tensor]) -> Tensor:
        """What a head's attention or a neuron's MLP adds, with values in the place of its part."""
        (site,) = self.sites
        inside = recording.sites[site].clone()
        for value in values.values():
            self.part(inside).copy_(value)
        block = recording.blocks.model.parts.blocks[self.layer]
        head = self.kind == "head"
        project, norm = (
            (block.attention_out, block.after_attention) if head else (block.mlp_down, block.after_mlp)
        )
        assert project is not None  # its input is a site
        with torch.no_grad():
            added = project(inside.flatten(2))
            return added if norm is None else norm(added)

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
