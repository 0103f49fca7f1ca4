"""Components of a model: layers, attentions, MLPs, heads and neurons, and how each is replaced in a recorded run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
