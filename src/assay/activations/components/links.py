"""Components that are no module's output: a direction at a site, and an edge from one component to one reader."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from assay.activations.components.component import Component
from assay.errors import BadInput
from assay.models.model import Model
from assay.models.partial import Recording, SiteEdit, Variant
from assay.models.sites import canonical, split

Reader = Literal["attention", "mlp", "output"]
READERS: tuple[Reader, ...] = ("attention", "mlp", "output")
WHOLE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites as wide as the residual stream."""
DIRECTION = re.compile(r"direction:([^:]+):(.+)")
EXACT = 1e-3
"""How far a block's contributions may be from what it adds, relative to the largest entry."""


def direction(site: str, vector: Sequence[float] | Tensor) -> str:
    """Write a direction at a site as the name of a component.

    Args:
        site: a residual site, or what attention or an MLP writes: ``resid_mid.5``, ``mlp_out.3``.
        vector: (d_model,), of any length but zero.

    Returns:
        The name, for ``components`` of :func:`assay.ablate`.
    """
    return f"direction:{site}:" + ",".join(repr(float(entry)) for entry in vector)


def read_direction(model: Model, site: str, numbers: str) -> "Direction":
    """The direction that a name stands for.

    Args:
        model: a decoder.
        site: the site's name.
        numbers: the vector's entries, with commas between them.

    Returns:
        The component.

    Raises:
        BadInput: another site, a vector of another length, one that is zero, or what is no number.
    """
    name, layer = split(canonical(site))
    if layer is None or name not in WHOLE or canonical(site) not in model.sites():
        raise BadInput(
            f"direction:{site}: expected one of {', '.join(WHOLE)} with a layer that this model has"
        )
    try:
        vector = torch.tensor([float(entry) for entry in numbers.split(",")], dtype=torch.float64)
    except ValueError as error:
        raise BadInput(f"direction:{site}: {error}; write numbers with commas between them") from error
    if len(vector) != model.d_model or not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise BadInput(
            f"direction:{site}: {len(vector)} numbers; expected {model.d_model}, finite and not all zero"
        )
    unit = vector / vector.norm()
    return Direction("direction", layer, site=f"{name}.{layer}", vector=tuple(unit.tolist()))


@dataclass(frozen=True)
class Direction(Component):
    """The part of a site along a direction; what replaces it leaves all other directions as they are.

    Attributes:
        site: where.
        vector: of length 1, (d_model,).
    """

    site: str = ""
    vector: tuple[float, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """``direction.resid_mid.5.1f3a2c``: the site, and a mark of the vector."""
        mark = hashlib.sha256(repr(self.vector).encode()).hexdigest()[:6]
        return f"direction.{self.site}.{mark}"

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site."""
        return (self.site,)

    @property
    def place(self) -> tuple[int, ...]:
        """Numbers that no other component has."""
        return (self.layer, 0, *map(ord, self.name))

    def part(self, tensor: Tensor) -> Tensor:
        """The coordinate along the direction, (..., pos, 1)."""
        return (tensor @ self._unit(tensor))[..., None]

    def edit(self, site: str, own: Tensor, value: Tensor) -> SiteEdit:
        """The edit that sets the coordinate and nothing else."""
        return SiteEdit(site, own + (value - self.part(own)) * self._unit(own))

    def change(self, recording: Recording, values: Mapping[str, Tensor]) -> Tensor:
        """How far the coordinate goes, along the direction."""
        own = recording.sites[self.site]
        return (values[self.site] - self.part(own)) * self._unit(own)

    def _unit(self, like: Tensor) -> Tensor:
        return torch.tensor(self.vector, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Edge(Component):
    """What one reader sees of one component, everything else of either left as it is.

    Attributes:
        model: the decoder.
        source: the component that writes.
        reader: attention or MLP of block ``layer``, or the readout.
    """

    model: Model | None = field(default=None, repr=False)
    source: Component = Component("embed", 0)
    reader: Reader = "output"

    @property
    def name(self) -> str:
        """``head.3.5>mlp.7``, ``embed>output``."""
        source = "embed" if self.source.kind == "embed" else self.source.name
        return f"{source}>{self.reader}" + ("" if self.reader == "output" else f".{self.layer}")

    @property
    def sites(self) -> tuple[str, ...]:
        """What the source writes."""
        return self.source.sites

    @property
    def recorded(self) -> tuple[str, ...]:
        """What the source writes, what its block adds, and what the reader reads."""
        layer = self.source.layer
        written = () if self.source.kind == "embed" else (f"attn_out.{layer}", f"mlp_out.{layer}")
        middle = (f"resid_mid.{self.layer}",) if self._from_the_middle else ()
        return (*self.sites, *written, *middle)

    @property
    def place(self) -> tuple[int, ...]:
        """Numbers that no other component has."""
        return (self.layer, 0, *map(ord, self.name))

    def part(self, tensor: Tensor) -> Tensor:
        """The source's part."""
        return self.source.part(tensor)

    def variant(self, recording: Recording, values: Mapping[str, Tensor]) -> Variant:
        """The edit of what the reader reads, through its norm.

        Raises:
            BadInput: the source's block does not add up to what it writes.
        """
        return self.moved(recording, self.change(recording, values))

    def change(self, recording: Recording, values: Mapping[str, Tensor]) -> Tensor:
        """How what the source writes changes."""
        return self.source.change(recording, values)

    def moved(self, recording: Recording, change: Tensor) -> Variant:
        """The edit of what the reader reads, where what the source writes is changed.

        Raises:
            BadInput: the source's block does not add up to what it writes.
        """
        stream = recording.resid[self.layer] if self.reader != "output" else recording.resid[-1]
        if self._from_the_middle:
            stream = recording.sites[f"resid_mid.{self.layer}"]
        read = stream + self._factor(recording) * change
        if self.reader == "output":
            return (SiteEdit(f"resid_post.{len(recording.resid) - 2}", read),)
        norm = self._norm
        with torch.no_grad():
            read = read if norm is None else norm(read)
        return (SiteEdit(f"{'attn_in' if self.reader == 'attention' else 'mlp_in'}.{self.layer}", read),)

    @property
    def _block(self) -> "tuple[nn.Module | None, nn.Module | None, bool]":
        assert self.model is not None  # edges are made by name, with their model
        block = self.model.parts.blocks[self.layer]
        return block.first_norm, block.second_norm, block.parallel

    @property
    def _norm(self) -> nn.Module | None:
        first, second, parallel = self._block
        if self.reader == "attention":
            return first
        return second or (first if parallel else None)

    @property
    def _from_the_middle(self) -> bool:
        return self.reader == "mlp" and not self._block[2]

    def _factor(self, recording: Recording) -> float:
        """What the source's block multiplies contributions by: 1 but in a few families."""
        if self.source.kind == "embed":
            return 1.0
        layer = self.source.layer
        written = (recording.sites[f"attn_out.{layer}"] + recording.sites[f"mlp_out.{layer}"]).double()
        change = (recording.resid[layer + 1] - recording.resid[layer]).double()
        factor = float((change * written).sum() / written.square().sum())
        if float((change - factor * written).abs().max()) > EXACT * float(
            recording.resid[layer + 1].abs().max()
        ):
            raise BadInput(
                f"{self.name}: block {layer} adds something else than what its attention and MLP write"
            )
        return 1.0 if abs(factor - 1) < EXACT else factor
