r"""A norm on its way out: alive, then dividing what queries and keys read by a constant, then everything.

While it is alive it keeps a running mean of its scale over ordinary tokens and another over special ones; both stand
still from the first step of its removal on. That queries and keys are served apart from values needs no second norm.
A reader is affine in :math:`y = \hat x \odot w + b`, so that from its output :math:`z` for the living norm

.. math:: z' = r\,z + (1 - r)\,z(b), \qquad r = \sigma(x) / \bar\sigma

is its output for the fixed one.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.model import Model
from assay.models.norms.finding import Norm
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.folding import replace_norm
from assay.models.sites import Port, find_port


@dataclass(eq=False)
class Step:
    """What the norms of a model are told about the step they are in.

    Attributes:
        special: tokens whose scale is kept apart, (row, pos).
        momentum: of the running scales; ``None`` to leave them as they are.
    """

    special: Tensor
    momentum: float | None = None


class RemovableNorm(nn.Module):
    """A norm on its way out.

    Args:
        norm: what it replaces; its parameters go on being trained.
        step: what all norms of the model are told.
    """

    ordinary: Tensor
    special: Tensor
    offset: Tensor

    def __init__(self, norm: Norm, step: Step) -> None:
        super().__init__()
        self.norm, self.step, self.axis, self.axes = norm.module, step, norm.axis, len(norm.shape)
        self.centring, self.epsilon = norm.centring, norm.epsilon
        weight, bias = (getattr(norm.module, name, None) for name in ("weight", "bias"))
        plain = {id(p) for p in (weight, bias) if p is not None}
        if any(id(p) not in plain for p in norm.module.parameters()) or norm.axis < 0:
            raise BadInput(
                f"the norm {norm.name} ({type(norm.module).__name__}) is not one that can be trained away"
            )
        shape = (1,) if weight is None else weight.shape
        gain = norm.gain.reshape(-1, *shape)[0] if weight is not None else torch.ones(1, dtype=torch.float64)
        offset = gain if weight is None else (gain - weight.detach().double()).round()
        self.register_buffer(
            "offset", offset.to(norm.gain.device, torch.float32 if weight is None else weight.dtype)
        )
        self.register_buffer("ordinary", torch.zeros((), dtype=torch.float64, device=norm.gain.device))
        self.register_buffer("special", torch.zeros((), dtype=torch.float64, device=norm.gain.device))
        self.apart, self.removed = False, False
        self.ratio: Tensor | None = None
        self.seen: Tensor | None = None

    @property
    def gain(self) -> Tensor:
        """w, whether the parameter holds w or w - 1."""
        weight = getattr(self.norm, "weight", None)
        return self.offset if weight is None else weight + self.offset

    @property
    def bias(self) -> Tensor | None:
        """b; ``None`` where there is none."""
        return getattr(self.norm, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, or divide by the constant."""
        x = x - x.mean(-1, keepdim=True) if self.centring else x
        alive = torch.sqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        special = self._mask(x)
        self.seen, self.ratio = alive, None
        if self.step.momentum is not None and not (self.apart or self.removed):
            self._follow(alive.detach().double(), special)
        scale = alive
        if self.apart or self.removed:
            fixed = torch.where(special, self.special, self.ordinary).to(x.dtype)
            scale = fixed if self.removed else alive
            self.ratio = None if self.removed else alive / fixed
        y = x / scale * self.gain
        return y if self.bias is None else y + self.bias

    def fixed(self, special: Sequence[int] = ()) -> FixedNorm:
        """What is left of it, with a scale of its own at special positions as long as they have one."""
        slots = max(special) + 2 if special else 1
        scales = self.ordinary.repeat(slots)
        scales[list(special)] = self.special
        shape = [slots if axis == self.axis else 1 for axis in range(self.axes)]
        one = scales.to(self.gain.dtype).view(shape)
        gain = self.gain.detach().clone() if getattr(self.norm, "weight", None) is not None else None
        bias = None if self.bias is None else self.bias.detach().clone()
        return FixedNorm(one, gain, bias, centring=self.centring, axis=self.axis)

    def _mask(self, x: Tensor) -> Tensor:
        shape = [
            x.shape[0] if axis == 0 else x.shape[axis] if axis == self.axis else 1 for axis in range(x.ndim)
        ]
        return self.step.special.view(shape)

    def _follow(self, alive: Tensor, special: Tensor) -> None:
        """Move the running scales towards this step's means over ordinary and over special tokens."""
        special = special.expand_as(alive)
        momentum = self.step.momentum or 0.0
        for running, chosen in ((self.ordinary, ~special), (self.special, special)):
            if bool(chosen.any()):
                mean = alive[chosen].mean()
                running.copy_(mean if float(running) == 0 else momentum * running + (1 - momentum) * mean)


def make_removable(model: Model, norms: list[Norm], step: Step) -> dict[str, RemovableNorm]:
    """Put a removable norm in the place of each; in place.

    Args:
        model: the copy.
        norms: its norms that are alive.
        step: what they are told.

    Returns:
        The removable norms by name.
    """
    made: dict[str, RemovableNorm] = {}
    for norm in norms:
        made[norm.name] = RemovableNorm(norm, step)
        replace_norm(model, norm, made[norm.name])
    return made


def serve_apart(
    model: Model, norms: list[Norm], made: dict[str, RemovableNorm], stack: ExitStack
) -> list[str]:
    """Have queries and keys read the fixed norm as soon as it is to be served apart.

    Args:
        model: the copy, with removable norms in it.
        norms: its norms.
        made: the removable norms by name.
        stack: whoever closes it takes the hooks off.

    Returns:
        Names of the norms whose queries and keys can be served apart.
    """
    split: list[str] = []
    for norm in norms:
        if norm.kind != "ln1" or norm.name not in made:
            continue
        layer = norm.name.rpartition(".")[2]
        try:
            ports = [find_port(model.parts, model.module, f"{site}.{layer}") for site in ("q", "k")]
        except BadInput:
            continue
        readers = {id(model.module.get_submodule(path)) for path in norm.readers}
        if any(port.slot != "output" or id(port.module) not in readers for port in ports):
            continue
        for module in {id(port.module): port.module for port in ports}.values():
            mine = [port for port in ports if port.module is module]
            assert module is not None  # it is a reader
            stack.callback(module.register_forward_hook(partial(_serve, made[norm.name], mine)).remove)
        split.append(norm.name)
    return split


def settle(model: Model, norms: list[Norm], made: dict[str, RemovableNorm], special: Sequence[int]) -> None:
    """Put what is left in each norm's place: a fixed norm, or the norm itself where it was not removed; in place."""
    for norm in norms:
        if norm.name in made:
            own = made[norm.name]
            replace_norm(model, norm, own.fixed(special) if own.removed else own.norm)


def _serve(
    norm: RemovableNorm, ports: list[Port], reader: nn.Module, _: tuple[Any, ...], output: Tensor
) -> Tensor | None:
    """Turn the queries and keys of the living norm into those of the fixed one."""
    if norm.ratio is None:
        return None
    still = torch.zeros_like(norm.gain) if norm.bias is None else norm.bias
    base = reader.forward(still.view(1, 1, -1))
    ratio = norm.ratio[..., None]  # a head axis
    for port in ports:
        output = port.write(output, ratio * port.read(output) + (1 - ratio) * port.read(base))
    return output
