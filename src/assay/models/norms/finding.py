"""Finding a model's norms: where they stand, what they compute, and which linear layers read them.

Nothing here knows a family. A forward of a few tokens tells which norms are reached, in which order, and on which axis
of their input the position is. Probes in float64 tell gain, bias, centring and epsilon, and whether a norm is of a
known kind. A reader is a linear layer whose input is a norm's output; that nothing else reads it is shown by the
gradient of a perturbation that those readers are spared.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay.errors import BadInput
from assay.models.finite import require_finite
from assay.models.gauges import KeepFloat64
from assay.models.model import Model
from assay.models.norms.fixed import FixedNorm

LENGTHS = (5, 6)
"""Two prompts of different lengths tell which axis is the position."""
KNOWN = 1e-6
"""How far a norm may be from the equation it is taken for, relative to its largest output, in float64."""
HUGE = 1e15
"""A probe in which every epsilon is lost."""
DISABLED = 1e5
"""An epsilon from here on is there to switch a norm off: the relative error of its scale is var / (2 epsilon)."""

CONFIGURED = (
    "layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_epsilon", "norm_eps", "layernorm_epsilon",
)  # fmt: skip
"""What configurations call the epsilon of their norms."""

Linear = nn.Linear | Conv1D


@dataclass(frozen=True, eq=False)
class Norm:
    r"""One norm of a model: :math:`y = (x - \bar x) / \sqrt{\mathrm{var}(x) + \epsilon} \odot w + b`.

    Attributes:
        name: ``ln1.3`` and ``ln2.3`` read the stream before attention and MLP of block 3, ``post_attn.3`` and
            ``post_mlp.3`` normalise what they write; ``final_norm``; others by their own name: ``q_norm.3``.
        path: where it is in the module tree.
        module: the norm.
        shape: shape of its input for one row and one position.
        axis: which axis of the input is the position; -1 where rows and positions are one axis.
        centring: whether the mean is subtracted (LayerNorm) or not (RMSNorm).
        epsilon: as its behaviour tells it; 0 for a norm fixed by Assay.
        gain: w, in float64, of ``shape`` or broadcastable to it.
        bias: b, likewise.
        readers: paths of the linear layers that read it.
        only_readers: whether nothing else reads it.
    """

    name: str
    path: str
    module: nn.Module
    shape: tuple[int, ...]
    axis: int
    centring: bool
    epsilon: float
    gain: Tensor
    bias: Tensor
    readers: tuple[str, ...]
    only_readers: bool

    @property
    def kind(self) -> str:
        """Its name without the layer."""
        kind, _, layer = self.name.rpartition(".")
        return kind if layer.isdigit() else self.name

    @property
    def is_fixed(self) -> bool:
        """Whether its scale is a constant: fixed by Assay, or drowned in a huge epsilon."""
        return isinstance(self.module, FixedNorm) or self.epsilon >= DISABLED

    @property
    def is_identity(self) -> bool:
        """Whether it does nothing at all."""
        return isinstance(self.module, FixedNorm) and self.module.is_identity

    @property
    def by_position(self) -> bool:
        """Whether it was fixed with scales of their own at some positions, which no weight can hold."""
        return isinstance(self.module, FixedNorm) and self.module.by_position

    def obstacle(self) -> str:
        """Why its gain cannot be moved into what reads it; empty where it can."""
        if not self.readers:
            return "no linear layer reads it"
        return "" if self.only_readers else "something other than linear layers reads it"


@dataclass(eq=False)
class _Seen:
    """Shapes a norm was given, one a call, and the perturbations of what it gave."""

    shapes: list[torch.Size] = field(default_factory=list)
    perturbations: list[Tensor] = field(default_factory=list)


_Outputs = dict[int, tuple[str, Tensor, Tensor]]
"""By the storage that holds it: the norm's path, its output, and its perturbed output."""


def find_norms(model: Model) -> list[Norm]:
    """Find every norm that a forward pass comes by, in its order.

    Args:
        model: a decoder.

    Returns:
        The norms.

    Raises:
        BadInput: the model has none, or one that is no known kind, or whose weights are NaN or infinite.
    """
    candidates = dict(_candidates(model.module))
    for path, norm in candidates.items():
        require_finite(norm, path)
    seen, readers, only = _traced(model, candidates) if candidates else ({}, {}, {})
    names = _names(model, candidates)
    norms = [
        _described(names[path], path, candidates[path], found, tuple(readers[path]), only[path])
        for path, found in seen.items()
        if not _passes_on(candidates[path], found.shapes[0])
    ]
    if not norms:
        what = "what is called one passes on what it is given" if candidates else "no module is called one"
        raise BadInput(f"{model.source} has no norms: {what}")
    return norms


def _candidates(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules called norms, but none inside another."""
    found: list[str] = []
    for path, child in module.named_modules():
        named = "norm" in type(child).__name__.lower()
        named = named and not any(isinstance(inner, Linear) for inner in child.modules())
        if path and named and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
            yield path, child


def _names(model: Model, candidates: Mapping[str, nn.Module]) -> dict[str, str]:
    parts = model.parts
    known = {id(parts.final_norm): "final_norm"}
    for layer, block in enumerate(parts.blocks):
        roles = {
            "ln1": block.first_norm, "ln2": block.second_norm,
            "post_attn": block.after_attention, "post_mlp": block.after_mlp,
        }  # fmt: skip
        known |= {id(norm): f"{role}.{layer}" for role, norm in roles.items() if norm is not None}
    layers = {id(child): i for i, block in enumerate(parts.blocks) for child in block.module.modules()}
    names: dict[str, str] = {}
    for path, norm in candidates.items():
        layer = layers.get(id(norm))
        own = path.rpartition(".")[2] + ("" if layer is None else f".{layer}")
        name = known.get(id(norm), own)
        names[path] = path if name in names.values() else name
    return names


def _traced(
    model: Model, candidates: Mapping[str, nn.Module]
) -> tuple[dict[str, _Seen], dict[str, list[str]], dict[str, bool]]:
    """Inputs of each norm reached, the linear layers that read it, and whether nothing else does."""
    seen: dict[str, _Seen] = {}
    readers: dict[str, list[str]] = {path: [] for path in candidates}
    of_output: _Outputs = {}

    with ExitStack() as stack, torch.enable_grad():
        for path, norm in candidates.items():
            stack.callback(norm.register_forward_hook(partial(_perturb, path, seen, of_output)).remove)
        for path, layer in model.module.named_modules():
            if isinstance(layer, Linear):
                stack.callback(
                    layer.register_forward_pre_hook(partial(_spare, path, readers, of_output)).remove
                )
        total = torch.zeros((), device=model.device, requires_grad=True)
        for length in LENGTHS:
            ids = torch.arange(length, device=model.device).remainder(model.parts.vocabulary)[None]
            output = model.module(input_ids=ids)
            logits = output if isinstance(output, Tensor) else output.logits
            total = total + logits.float().sum()
        return seen, readers, _only(seen, total)


def _perturb(
    path: str,
    seen: dict[str, _Seen],
    of_output: _Outputs,
    norm: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    """Give what reads a norm a perturbed copy of its output, in a storage of its own.

    Raises:
        BadInput: the norm is given more than its input.
    """
    if any(isinstance(arg, Tensor) for arg in args[1:]):
        raise BadInput(
            f"the norm {path} ({type(norm).__name__}) is given a gate beside its input: neither a LayerNorm nor an "
            "RMSNorm, and not to be folded or fixed"
        )
    found = seen.setdefault(path, _Seen())
    perturbation = torch.zeros_like(output, requires_grad=True)
    perturbed = output + perturbation
    found.shapes.append(args[0].shape)
    found.perturbations.append(perturbation)
    of_output[perturbed.untyped_storage().data_ptr()] = (path, output, perturbed)
    return perturbed


def _spare(
    path: str, readers: dict[str, list[str]], of_output: _Outputs, _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """Give a linear layer that reads a norm the output without its perturbation."""
    found = of_output.get(args[0].untyped_storage().data_ptr())
    if found is None or found[2].numel() != args[0].numel():
        return None
    norm, output, _perturbed = found
    if path not in readers[norm]:
        readers[norm].append(path)
    return (output.reshape(args[0].shape), *args[1:])


def _only(seen: Mapping[str, _Seen], total: Tensor) -> dict[str, bool]:
    """Whether the perturbation of a norm's output, of which its linear readers are spared, reaches nothing."""
    all_of_them = [perturbation for found in seen.values() for perturbation in found.perturbations]
    slopes = cast("Sequence[Tensor | None]", torch.autograd.grad(total, all_of_them, allow_unused=True))
    pairs = zip(all_of_them, slopes, strict=True)
    reaching = {id(perturbation) for perturbation, slope in pairs if slope is not None}
    return {
        path: reaching.isdisjoint(id(perturbation) for perturbation in found.perturbations)
        for path, found in seen.items()
    }


def _described(
    name: str, path: str, module: nn.Module, seen: _Seen, readers: tuple[str, ...], only: bool
) -> Norm:
    first, second = seen.shapes[0], seen.shapes[-1]
    changed = [axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    axis = changed[0] if changed and changed[0] > 0 else -1
    shape = tuple(1 if at in (0, axis) else size for at, size in enumerate(first))
    centring, measured, gain, bias = constants(name, module, shape)
    return Norm(name, path, module, shape, axis, centring, measured, gain, bias, readers, only)


def constants(name: str, module: nn.Module, shape: tuple[int, ...]) -> tuple[bool, float, Tensor, Tensor]:
    """What a norm computes, by probes in float64.

    Args:
        name: for the message.
        module: the norm.
        shape: of its input, for one row and one position.

    Returns:
        Whether it centres, its epsilon, its gain and its bias.

    Raises:
        BadInput: it is neither a LayerNorm nor an RMSNorm.
    """
    if isinstance(module, FixedNorm):
        ones = torch.ones(shape, dtype=torch.float64, device=module.scale.device)
        gain = ones if module.weight is None else ones * module.weight.detach().double()
        bias = 0 * ones if module.bias is None else 0 * ones + module.bias.detach().double()
        return module.centring, 0.0, gain, bias
    run, steps = partial(_run, copy.deepcopy(module).double()), _steps(module, shape[-1])
    probe, other = steps.cos().expand(shape), (2 * steps).sin().expand(shape)
    bias = run(0 * probe)
    plain, shifted = run(probe) - bias, run(probe + 1.0) - bias
    centring = bool((plain - shifted).abs().max() <= KNOWN * plain.abs().max())
    unit = _direction(probe, centring, 0.0)
    gain = (run(HUGE * unit) - bias) / unit
    measured = _measured_epsilon(lambda scale: float((run(scale * unit) - bias).abs().max()))
    given = run(other) - bias
    error = (_direction(other, centring, measured) * gain - given).abs().max()
    affine = measured > HUGE  # its output grew with its input as far as it was followed
    if affine or not error <= KNOWN * given.abs().max():
        raise BadInput(
            f"the norm {name} ({type(module).__name__}) is neither a LayerNorm nor an RMSNorm: it cannot be folded or "
            "fixed"
        )
    return centring, measured, gain, bias


def _passes_on(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether it is only called a norm, and gives what it is given; one that Assay made so is still a norm."""
    if isinstance(module, FixedNorm):
        return False
    probe = _steps(module, shape[-1]).expand(*shape)
    return torch.equal(_run(copy.deepcopy(module).double(), probe), probe)


def _steps(module: nn.Module, width: int) -> Tensor:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.linspace(-1.0, 2.0, width, dtype=torch.float64, device=device)


def _run(norm: nn.Module, x: Tensor) -> Tensor:
    with KeepFloat64(), torch.no_grad():
        return cast("Tensor", norm(x))


def _direction(x: Tensor, centring: bool, eps: float) -> Tensor:
    """What a norm without gain and bias makes of x."""
    spread = x - x.mean(-1, keepdim=True) if centring else x
    return spread / (spread.square().mean(-1, keepdim=True) + eps).sqrt()


def configured_epsilons(settings: Mapping[str, Any]) -> dict[str, float]:
    """The epsilons that a configuration sets for norms, by name.

    Args:
        settings: the configuration of the language model: ``vars`` of a config, or its JSON.
    """
    return {name: float(settings[name]) for name in CONFIGURED if settings.get(name) is not None}


def _measured_epsilon(size: Callable[[float], float]) -> float:
    """Epsilon from the sizes of the output for inputs of mean square c^2, which are as c / sqrt(c^2 + epsilon)."""
    ratio, scale = 0.0, 0.0
    for scale in (1e-3, 1.0, 1e3, 1e6):
        ratio = size(scale) / size(HUGE)
        if ratio > 1e-3:
            break
    return max(0.0, scale**2 * (1 / ratio**2 - 1))
