"""Variants of a recorded run: what each replaces, where it begins to differ, and which can share a pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from assay.errors import BadInput
from assay.models.sites import HEADED, canonical, split


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """One replacement in a variant.

    Attributes:
        site: a site inside a block: ``resid_pre.3``, ``resid_post.3``, ``mlp_out.2``, ``z.5``...
        value: what to put there, broadcastable to (row, position, ...) of the recorded run's rows.
        positions: where; ``None`` for every position.
        head: which head, for q, k, v and z.
    """

    site: str
    value: Tensor
    positions: tuple[int, ...] | None = None
    head: int | None = None


Variant = tuple[SiteEdit, ...]


@dataclass(frozen=True, eq=False)
class PlacedEdit:
    """An edit with its place in the run: leaving block l is entering block l + 1, L is the last block's end.

    Attributes:
        name: the site's name without its layer.
        layer: the layer it is made at.
        positions: where, counted from 0; ``None`` for every position.
        edit: what the user gave.
    """

    name: str
    layer: int
    positions: tuple[int, ...] | None
    edit: SiteEdit

    @property
    def first(self) -> int:
        """The first position it changes."""
        return 0 if self.positions is None else min(self.positions)


@dataclass(frozen=True, eq=False)
class Planned:
    """A variant with the place it starts to differ at.

    Attributes:
        index: its number in the order given.
        layer: the first layer an edit is made at.
        position: the first position an edit is made at.
        edits: the edits, in the order given.
    """

    index: int
    layer: int
    position: int
    edits: tuple[PlacedEdit, ...]


def planned(variants: Sequence[Variant], layers: int, length: int) -> list[Planned]:
    """Place variants in a run.

    Args:
        variants: what each replaces.
        layers: number of blocks L.
        length: number of positions.

    Returns:
        The variants in the order given.

    Raises:
        BadInput: no variants, one without edits, a site outside the blocks, or a position out of range.
    """
    if not variants:
        raise BadInput("no variants were given")
    found = [
        tuple(_placed(edit, index, layers, length) for edit in variant)
        for index, variant in enumerate(variants)
    ]
    if not all(found):
        raise BadInput(f"variant {found.index(())} has no edits")
    return [
        Planned(index, min(e.layer for e in edits), min(e.first for e in edits), edits)
        for index, edits in enumerate(found)
    ]


def _placed(edit: SiteEdit, index: int, layers: int, length: int) -> PlacedEdit:
    name, layer = split(canonical(edit.site))
    who = f"variant {index} edits {edit.site!r}"
    if layer is None or name == "pattern":
        raise BadInput(f"{who}; partial forwards edit residual and module sites of blocks")
    if layer >= layers:
        raise BadInput(f"{who}; the model has layers 0 to {layers - 1}")
    if edit.positions == ():
        raise BadInput(f"{who} at no positions; leave them out for every position")
    if any(not -length <= p < length for p in edit.positions or ()):
        raise BadInput(f"variant {index} edits positions {edit.positions}; the prompt has {length}")
    if edit.head is not None and name not in HEADED:
        raise BadInput(
            f"variant {index} gives a head for {edit.site!r}, which has none; heads are axes of {HEADED[:-1]}"
        )
    if name == "resid_post":
        name, layer = "resid_pre", layer + 1
    return PlacedEdit(name, layer, edit.positions and tuple(p % length for p in edit.positions), edit)


def groups(variants: Sequence[Planned], at_once: Callable[[int], int]) -> list[list[Planned]]:
    """Variants that share a first position, shallowest first.

    Args:
        variants: all of them.
        at_once: from a first position to the most variants of a group.

    Returns:
        The groups.
    """
    ordered = sorted(variants, key=lambda variant: (variant.position, variant.layer))
    found: list[list[Planned]] = []
    for variant in ordered:
        here = variant.position
        if found and found[-1][0].position == here and len(found[-1]) < at_once(here):
            found[-1].append(variant)
        else:
            found.append([variant])
    return found


def edits_at(
    layer: int, active: Sequence[Planned], rows: int, start: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The edits of one layer of a pass in which variants stand one after the other.

    Args:
        layer: the layer.
        active: the variants of the pass.
        rows: rows of each variant.
        start: the first position of the pass.

    Returns:
        For each site that some variant edits, the function that edits the rows of those variants.
    """
    found: dict[str, list[tuple[slice, PlacedEdit]]] = {}
    for place, variant in enumerate(active):
        for edit in variant.edits:
            if edit.layer == layer:
                found.setdefault(edit.name, []).append((slice(place * rows, (place + 1) * rows), edit))

    def edited(places: list[tuple[slice, PlacedEdit]]) -> Callable[[Tensor], Tensor]:
        def apply(tensor: Tensor) -> Tensor:
            result = tensor.clone()
            for chosen, edit in places:
                _put(result[chosen], edit, start)
            return result

        return apply

    return {name: edited(places) for name, places in found.items()}


def _put(part: Tensor, placed: PlacedEdit, start: int) -> None:
    """Replace positions, and one head where that is asked, in one variant's rows of a site."""
    edit = placed.edit
    where = slice(None) if placed.positions is None else [p - start for p in placed.positions]
    if edit.head is not None:
        heads = part.shape[2]
        if not -heads <= edit.head < heads:
            raise BadInput(f"head {edit.head} of {edit.site!r}; there are {heads}, numbered 0 to {heads - 1}")
        part = part[:, :, edit.head]
    try:
        part[:, where] = edit.value.to(part)
    except RuntimeError as error:
        raise BadInput(
            f"the edit at {edit.site!r} has a value of shape {tuple(edit.value.shape)} that does not fit: it "
            f"replaces {tuple(part[:, where].shape)}, (row, position, ...)"
        ) from error
