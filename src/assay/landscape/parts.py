"""Parts of a module whose weights move while the others are held, several parts of one module."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.gradients import LARGE, is_mapped
from assay.landscape.losses import Loss
from assay.landscape.masks import Mask, flattened, named_mask
from assay.landscape.target import Data, Target, target
from assay.models.model import Model


@dataclass(frozen=True, eq=False)
class Parts:
    """A module at its anchor, and parts of it; make it with `parts_of`.

    Attributes:
        whole: the module with all that may move, its loss and data.
        masks: of each part by name, as `assay.landscape.masks` gives them.
    """

    whole: Target
    masks: Mapping[str, Mask]

    @property
    def source(self) -> str:
        """What run folders call it."""
        return self.whole.source

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.whole.module

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.whole.device

    @property
    def dtype(self) -> torch.dtype:
        """In which precision."""
        return self.whole.dtype

    @cached_property
    def together(self) -> bool:
        """Whether parts can be walked as one."""
        return self.whole.d < LARGE and is_mapped(self.whole)

    def one(self, name: str) -> Target:
        """Give what is sampled where one part moves, and hold no more than its own parameters."""
        mask = self.masks[name]
        made = replace(self.whole, named_in_mask=frozenset(mask))
        return replace(made, mask=flattened(mask, made.parameters))

    def row(self, name: str) -> Tensor:
        """Give a part's mask over all that may move, (d,) bool."""
        mask = self.masks[name]
        rows = [
            mask[own].flatten() if own in mask else torch.zeros(value.numel(), dtype=torch.bool)
            for own, value in self.whole.parameters.items()
        ]
        return torch.cat([row.to(self.device) for row in rows])

    def weight_hash(self) -> str:
        """Hash of the module and of every part."""
        hashes = [f"{name} {self.one(name).weight_hash()}" for name in self.masks]
        return hashlib.sha256(" ".join([self.whole.weight_hash(), *hashes]).encode()).hexdigest()


def parts_of(
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    parts: Mapping[str, Mapping[str, Tensor] | str] | Sequence[str] | None,
    *,
    source: str | None = None,
) -> Parts:
    """Bring together what is sampled and its parts; see `refined_learning_coefficients`.

    Raises:
        BadInput: no part, a part given twice or that is none, and what `assay.landscape.target.target` refuses.
    """
    whole = target(module, loss, data, source=source)
    if parts is None:
        parts = [f"{name}.*" for name, part in whole.module.named_modules() if _moves_itself(part)]
    if isinstance(parts, str):
        parts = [parts]
    if not parts:
        raise BadInput(
            f"parts={parts!r}: pass a list of names, such as ['head.0.1', 'mlp.0'] or ['layers.0.*'], or a mapping "
            "from names of your own to masks."
        )
    if not isinstance(parts, Mapping):
        if twice := sorted({name for name in parts if parts.count(name) > 1}):
            raise BadInput(f"parts names {twice[0]!r} twice: give each part once.")
        parts = dict(zip(parts, parts, strict=True))
    masks: dict[str, Mask] = {}
    for name, given in parts.items():
        mask = (
            dict(given)
            if not isinstance(given, str)
            else {own: part for own, part in named_mask(module, given).items() if own in whole.parameters}
        )
        unknown = sorted(set(mask) - set(whole.parameters))
        if unknown or not mask:
            called = f"names {unknown}, which cannot move" if mask else "has no parameter that requires grad"
            raise BadInput(f"part {name!r} {called}: {', '.join(whole.parameters)} can.")
        flattened(mask, {own: whole.parameters[own] for own in mask})
        masks[name] = mask
    return Parts(whole, masks)


def _moves_itself(module: nn.Module) -> bool:
    return any(value.requires_grad for value in module.parameters(recurse=False))
