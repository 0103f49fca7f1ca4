r"""A norm on its way out: alive for what still reads it so, and a constant for those readers that it is taken from.

What reads a norm is told apart: queries and keys, values, the MLP. Each of these readers has a constant of its own,
:math:`\bar\sigma_g`, a running mean of the norm's scale over ordinary tokens that stands still from the removal on. At
special tokens every constant is multiplied by one factor of the norm, which stands still once its last reader is gone.
No second norm is needed for that. A reader is affine in :math:`y = \hat x \odot w + b`, so that from its output
:math:`z` for a norm that divides by :math:`s`

.. math:: z' = r\,z + (1 - r)\,z(b), \qquad r = s / \bar\sigma_g

is its output for its own constant. With all readers gone :math:`r` is a constant, and goes into their weights.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.model import Model
from assay.models.norms.finding import KNOWN, Linear, Norm
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.folding import replace_norm
from assay.models.norms.recipe import Group
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


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear layer, or some of its outputs, that a norm serves apart from the rest of what reads it.

    Attributes:
        group: of the recipe's order.
        module: the layer.
        ports: where its outputs are of several groups, those of this one.
    """

    group: Group
    module: Linear
    ports: tuple[Port, ...] = ()

    def turned(self, z: Tensor, base: Tensor, ratio: Tensor) -> Tensor:
        """The layer's output z for a norm whose scale is that many times smaller; its bias' part as it is."""
        if not self.ports:
            return ratio * z + (1 - ratio) * base
        ratio = ratio[..., None]  # a head axis
        for port in self.ports:
            z = port.write(z, ratio * port.read(z) + (1 - ratio) * port.read(base))
        return z

    def scale(self, ratio: Tensor, bias: Tensor | None) -> None:
        """Let the weights do that from now on; in place.

        Args:
            ratio: a number.
            bias: of the norm.
        """
        outward = isinstance(self.module, nn.Linear)  # GPT-2's Conv1D keeps its weight (in, out)
        weight = (self.module.weight.T if outward else self.module.weight).detach().double()
        own: Any = self.module.bias  # None where the layer has none, whatever its annotation says
        offset = torch.zeros_like(weight[0]) if own is None else own.detach().double()
        reached = torch.zeros_like(offset) if bias is None else bias.detach().double().flatten() @ weight
        nothing, ratio = torch.zeros_like(offset), ratio.double().view(1, 1, 1)
        weight = self.turned(weight[None], nothing.view(1, 1, -1), ratio)[0]
        offset = self.turned(offset.view(1, 1, -1), (offset + reached).view(1, 1, -1), ratio).flatten()
        with torch.no_grad():
            self.module.weight.copy_(weight.T if outward else weight)
            if own is not None:
                own.copy_(offset)
            elif bool(offset.any()):
                self.module.bias = nn.Parameter(offset.to(self.module.weight.dtype))


class RemovableNorm(nn.Module):
    """A norm on its way out.

    Args:
        norm: what it replaces; its parameters go on being trained.
        step: what all norms of the model are told.
        dtype: of the model.
        rest: group of what reads it and is not served apart.
        apart: readers that are.
    """

    constants: Tensor
    special: Tensor
    offset: Tensor

    def __init__(
        self, norm: Norm, step: Step, dtype: torch.dtype, rest: Group, apart: Sequence[Reader] = ()
    ) -> None:
        super().__init__()
        self.norm, self.step, self.axis, self.axes = norm.module, step, norm.axis, len(norm.shape)
        self.centring, self.epsilon, self.width = norm.centring, norm.epsilon, norm.shape[-1]
        self.apart = tuple(apart)
        self.groups: tuple[Group, ...] = (*dict.fromkeys(reader.group for reader in apart), rest)
        self.gone: set[Group] = set()
        self.served: dict[Group, Tensor] = {}
        self.seen: Tensor | None = None
        none = torch.zeros(len(self.groups), dtype=torch.float64, device=norm.gain.device)
        self.register_buffer("constants", none)
        self.register_buffer("special", none[0].clone())
        self.register_buffer("offset", _offset(norm).to(dtype))

    @property
    def gain(self) -> Tensor:
        """w, whether the parameter holds w or w - 1, for all heads or for each."""
        held = _held(self.norm, "weight")
        return self.offset if held is None else _shaped(held, self.offset.shape) + self.offset

    @property
    def bias(self) -> Tensor | None:
        """b; ``None`` where there is none."""
        held = _held(self.norm, "bias")
        return None if held is None else _shaped(held, self.offset.shape)

    @property
    def removed(self) -> bool:
        """Whether nothing reads it alive."""
        return self.gone.issuperset(self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, or divide by the constant, for what is not served apart."""
        x = x - x.mean(-1, keepdim=True) if self.centring else x
        alive = torch.sqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        special = self._mask(x)
        self.seen = alive
        if self.step.momentum is not None:
            self._follow(alive.detach().double(), special)
        self.served = {group: self._scale(group, alive, special) for group in self.groups}
        y = x / self.served[self.groups[-1]] * self.gain
        return y if self.bias is None else y + self.bias

    def ratio(self, group: Group) -> Tensor | None:
        """What the output of a reader served apart is to be multiplied by; ``None`` where all are served alike."""
        used, own = self.served[self.groups[-1]], self.served[group]
        return None if used is own else used / own

    def constant(self, group: Group) -> float:
        """What the norm divides by for a group of its readers, at ordinary tokens."""
        return float(self.constants[self.groups.index(group)])

    def fixed(self, special: Sequence[int] = ()) -> FixedNorm:
        """What is left of it, with a scale of its own at special positions as long as they have one."""
        slots = max(special) + 2 if special else 1
        scales = self.constants[-1].repeat(slots)
        scales[list(special)] = self._at_special(len(self.groups) - 1)
        shape = [slots if axis == self.axis else 1 for axis in range(self.axes)]
        gain = self.gain.detach().clone() if _held(self.norm, "weight") is not None else None
        bias = None if self.bias is None else self.bias.detach().clone()
        one = scales.to(self.gain.dtype).view(shape)
        return FixedNorm(one, gain, bias, centring=self.centring, axis=max(self.axis, 0))

    def _scale(self, group: Group, alive: Tensor, special: Tensor) -> Tensor:
        if group not in self.gone:
            return alive
        index = self.groups.index(group)
        return torch.where(special, self._at_special(index), self.constants[index]).to(alive.dtype)

    def _at_special(self, index: int) -> Tensor:
        """The constant of one group at special tokens; the ordinary one where none was ever seen."""
        factor = self.special / self.constants[-1]
        return self.constants[index] * torch.where(self.special > 0, factor, torch.ones_like(factor))

    def _mask(self, x: Tensor) -> Tensor:
        if self.axis < 0:  # rows and positions are one axis
            return self.step.special.reshape(-1, *(1,) * (x.ndim - 1))
        shape = [
            x.shape[0] if axis == 0 else x.shape[axis] if axis == self.axis else 1 for axis in range(x.ndim)
        ]
        return self.step.special.view(shape)

    def _follow(self, alive: Tensor, special: Tensor) -> None:
        """Move the running scales of what is not gone towards this step's means over ordinary and special tokens."""
        special = special.expand_as(alive)
        momentum = self.step.momentum or 0.0
        living = [index for index, group in enumerate(self.groups) if group not in self.gone]
        followers = [(self.constants[index], ~special) for index in living]
        for running, chosen in [*followers, *([(self.special, special)] if living else [])]:
            if bool(chosen.any()):
                mean = alive[chosen].mean()
                running.copy_(mean if float(running) == 0 else momentum * running + (1 - momentum) * mean)


def make_removable(
    model: Model, norms: Sequence[Norm], step: Step, stack: ExitStack
) -> dict[str, RemovableNorm]:
    """Put a removable norm in the place of each; in place.

    Args:
        model: the copy.
        norms: its norms that are alive.
        step: what they are told.
        stack: whoever closes it has all readers served alike again.

    Returns:
        The removable norms by name.
    """
    made: dict[str, RemovableNorm] = {}
    for norm in norms:
        own = made[norm.name] = RemovableNorm(
            norm, step, model.dtype, _rest(norm), _readers_apart(model, norm)
        )
        replace_norm(model, norm, own)
        for reader in own.apart:
            stack.callback(reader.module.register_forward_hook(partial(_serve, own, reader)).remove)
    return made


def settle(
    model: Model, norms: Sequence[Norm], made: Mapping[str, RemovableNorm], special: Sequence[int]
) -> list[str]:
    """Put what is left in each norm's place: a fixed norm, or the norm itself where something reads it alive; in place.

    Args:
        model: the copy.
        norms: its norms.
        made: the removable norms by name.
        special: positions that still have a scale of their own.

    Returns:
        Names of the norms that are fixed.
    """
    settled: list[str] = []
    for norm in norms:
        if norm.name not in made:
            continue
        own = made[norm.name]
        if not own.removed or (special and own.axis < 0):
            replace_norm(model, norm, own.norm)
            continue
        for reader in own.apart:
            reader.scale(own.constants[-1] / own.constants[own.groups.index(reader.group)], own.bias)
        replace_norm(model, norm, own.fixed(special))
        settled.append(norm.name)
    return settled


def _rest(norm: Norm) -> Group:
    """The group of a norm whose readers are not told apart."""
    whole: dict[str, Group] = {"ln1": "v", "ln2": "mlp", "final_norm": "final"}
    return whole.get(norm.kind, "other")


def _readers_apart(model: Model, norm: Norm) -> list[Reader]:
    """The queries and keys that read a norm before attention, and the MLP where a parallel block shares that norm."""
    if norm.kind != "ln1":
        return []
    layer = int(norm.name.rpartition(".")[2])
    found: list[Reader] = []
    attention = model.parts.blocks[layer].attention
    inside = set() if attention is None else {id(module) for module in attention.modules()}
    readers = [cast("Linear", model.module.get_submodule(path)) for path in norm.readers]
    if norm.only_readers:
        found += [Reader("mlp", reader) for reader in readers if id(reader) not in inside]
    try:
        ports = [find_port(model.parts, model.module, f"{site}.{layer}") for site in ("q", "k")]
    except BadInput:
        return found
    mine = [(reader, tuple(port for port in ports if port.module is reader)) for reader in readers]
    if sum(len(some) for _, some in mine) == len(ports) and all(port.slot == "output" for port in ports):
        found += [Reader("qk", reader, some) for reader, some in mine if some]
    return found


def _serve(
    norm: RemovableNorm, reader: Reader, module: Linear, _: tuple[Any, ...], output: Tensor
) -> Tensor | None:
    """Turn a reader's output for what the norm gave into that for the reader's own scale."""
    ratio = norm.ratio(reader.group)
    if ratio is None:
        return None
    still = norm.gain.new_zeros(norm.width) if norm.bias is None else norm.bias
    return reader.turned(output, module.forward(still.view(1, 1, -1)), ratio)


def _held(module: nn.Module, name: str) -> list[nn.Parameter] | None:
    """A norm's parameters of one name; several where each head has its own."""
    found = [p for path, p in module.named_parameters() if path.rpartition(".")[2] == name]
    return found or None


def _shaped(held: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    return held[0] if len(held) == 1 else torch.stack(list(held)).view(*shape)


def _offset(norm: Norm) -> Tensor:
    """What the gain is beyond its parameter: zero, or one where that holds w - 1.

    Raises:
        BadInput: the norm has parameters that are not its gain and its bias.
    """
    weights, names = _held(norm.module, "weight"), [name for name, _ in norm.module.named_parameters()]
    others = [name for name in names if name.rpartition(".")[2] not in ("weight", "bias")]
    why = f"parameters named {', '.join(others[:3])}" if others else ""
    if weights is None and not why:
        return torch.ones(1, device=norm.gain.device)
    held = [] if weights is None else [weight.detach().double() for weight in weights]
    gain = norm.gain.reshape(-1, *held[0].shape)[0] if len(held) == 1 else norm.gain
    if not why and gain.numel() == sum(weight.numel() for weight in held):
        beyond = gain - _shaped(held, gain.shape)
        if (beyond - beyond.round()).abs().max() <= KNOWN * gain.abs().max():
            return beyond.round()
    raise BadInput(
        f"the norm {norm.name} ({type(norm.module).__name__}) is not one that can be trained away: it has "
        f"{why or 'a gain that its weights do not tell'}"
    )
