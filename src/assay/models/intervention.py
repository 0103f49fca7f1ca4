"""Capture and intervene: read and replace activations at sites in one forward pass of the untouched module.

Hooks are put on for one pass and taken off after it, also after an exception. Where nothing is edited the
module computes what it would have computed: logits are bit-identical, because hooks read and change nothing.
"""

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from assay.errors import BadInput
from assay.models import edits as editing
from assay.models.edits import Edit
from assay.models.inputs import Batch, Prompt, batch, few_logits
from assay.models.model import Model
from assay.models.pattern import AttentionPatterns
from assay.models.sites import Port, find_port

Inputs: TypeAlias = "Batch | Prompt | Sequence[Prompt] | Mapping[str, Any] | tuple[Any, ...]"


def capture(
    model: Model, inputs: Inputs, sites: str | Sequence[str], *, grad: bool = False
) -> dict[str, Tensor]:
    """Read activations at sites in one forward pass.

    Args:
        model: a model from ``load`` or ``wrap``.
        inputs: a text, a list of texts, token ids, or a ``Batch``; for a module that is not a decoder, a
            tensor, a tuple of positional arguments or a mapping of keyword arguments.
        sites: one or several names of sites (:mod:`assay.models.sites`), TransformerLens names, or module paths.
        grad: keep the graph, so that gradients flow to and through what is captured.

    Returns:
        The activations under the names they were asked by, batch first: residual sites (batch, pos, d_model);
        ``q``, ``k``, ``v``, ``z`` (batch, pos, head, d_head); ``pattern`` (batch, head, query, key); neurons
        (batch, pos, neuron); ``logits`` (batch, pos, vocabulary). They are views of what the module computed,
        not copies; a ``clone()`` is the caller's to make.

    Raises:
        BadInput: an unknown site or layer, or a site this architecture does not have.
    """
    return intervene(model, inputs, {}, capture=[sites] if isinstance(sites, str) else sites, grad=grad)


def intervene(
    model: Model,
    inputs: Inputs,
    edits: Mapping[str, Edit],
    *,
    capture: Sequence[str] = ("logits",),
    grad: bool = False,
) -> dict[str, Tensor]:
    """Replace activations at sites, and read others, in one forward pass.

    A site that is both edited and captured is captured after its edit: as the rest of the network sees it.

    Args:
        model: a model from ``load`` or ``wrap``.
        inputs: as for :func:`capture`.
        edits: site to edit: a tensor, a number, a function of the activation, ``at(...)`` for a part of it,
            or a sequence of edits applied in order.
        capture: the sites to read.
        grad: keep the graph.

    Returns:
        The captured activations under the names they were asked by.

    Raises:
        BadInput: an unknown site, a read-only one (norm scales), or an edit whose shape does not fit.
    """
    return forward(model, inputs, edits, capture, grad=grad)[0]


def forward(
    model: Model,
    inputs: Inputs,
    edits: Mapping[str, Edit],
    capture: Sequence[str],
    *,
    grad: bool = False,
    **extra: Any,
) -> tuple[dict[str, Tensor], Any]:
    """One pass with edits and captures; the rooms' own way in, where the module's output or arguments matter.

    Args:
        model: the model.
        inputs: as for :func:`capture`.
        edits: as for :func:`intervene`.
        capture: the sites to read.
        grad: keep the graph.
        **extra: further keyword arguments of the module's forward.

    Returns:
        What was captured, and the module's own output.

    Raises:
        BadInput: as for :func:`intervene`.
    """
    arguments, keywords, shape = _arguments(model, inputs)
    wiring = Wiring.of(model, edits, capture, shape)
    with torch.set_grad_enabled(grad), wiring.connected(), _patterns(wiring):
        few = {} if wiring.reads_logits(model) else few_logits(model)
        output = model.module(*arguments, **few, **keywords, **extra)
    wiring.check_reached()
    return _with_output(wiring, output, edits, capture), output


@dataclass(eq=False)
class Wiring:
    """The hooks of one forward pass: which ports are edited and read, and what has been read so far.

    ``shape`` is (batch, pos): some families flatten the two inside their blocks, and are seen unflattened.
    """

    shape: tuple[int, int] | None
    ports: dict[str, Port] = field(default_factory=dict)
    edits: dict[str, Edit] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    captured: dict[str, Tensor] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, model: Model, edits: Mapping[str, Edit], capture: Sequence[str], shape: tuple[int, int] | None
    ) -> "Wiring":
        """Find the ports of everything edited and captured.

        Raises:
            BadInput: an unknown site, or an edit of a read-only one.
        """
        wiring = cls(shape, edits=dict(edits), wanted=list(capture))
        for site in (*edits, *capture):
            wiring.ports[site] = find_port(model.anatomy, model.module, site)
        for site in edits:
            if wiring.ports[site].derive is not None:
                raise BadInput(
                    f"site {site!r} is computed from a norm's input and can only be read; edit that input instead"
                )
        return wiring

    def reads_logits(self, model: Model) -> bool:
        """Whether some site is the model's output, or the unembedding's."""
        unembed = model.anatomy and model.anatomy.unembed
        return any(port.attention is None and port.module in (None, unembed) for port in self.ports.values())

    @contextmanager
    def connected(self) -> Generator[None]:
        """Put the hooks on, and take them off whatever happens."""
        by_module: dict[tuple[nn.Module, str], list[str]] = defaultdict(list)
        for site, port in self.ports.items():
            if port.module is not None:
                by_module[(port.module, port.slot)].append(site)
        with ExitStack() as stack:
            for (module, slot), sites in by_module.items():
                stack.callback(self._hook(module, slot, sites).remove)
            yield

    def _hook(self, module: nn.Module, slot: str, sites: list[str]) -> RemovableHandle:
        def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            tensor = _first(args, kwargs)
            changed = self.visit(sites, tensor)
            return None if changed is tensor else _replace_first(args, kwargs, changed)

        def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            changed = self.visit(sites, tensor)
            if changed is tensor:
                return None
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        if slot == "input":
            return module.register_forward_pre_hook(on_input, with_kwargs=True)
        return module.register_forward_hook(on_output)

    def check_reached(self) -> None:
        """Make sure that the pass came by every port: an edit that was never made must not go unnoticed.

        Raises:
            BadInput: a site was edited or asked for where the module did not come by.
        """
        inside = [
            site for site, port in self.ports.items() if port.module is not None or port.attention is not None
        ]
        if missing := [site for site in inside if site not in self.reached]:
            raise BadInput(f"sites {missing} were not reached by this forward pass")

    def visit(self, sites: list[str], tensor: Tensor) -> Tensor:
        """Apply the edits of the sites at one port, then read them; the tensor itself where nothing was edited."""
        flat = (
            self.shape is not None and tensor.ndim == 2 and tensor.shape[0] == self.shape[0] * self.shape[1]
        )
        seen = tensor.unflatten(0, self.shape) if flat and self.shape is not None else tensor
        changed = seen
        self.reached.update(sites)
        for site in sites:
            if site in self.edits:
                port = self.ports[site]
                changed = port.write(
                    changed, editing.apply(self.edits[site], port.read(changed), port.axes, site)
                )
        for site in sites:
            if site in self.wanted:
                self.captured[site], changed = _captured(self.ports[site], changed, upstream=flat)
        if changed is seen:
            return tensor
        return changed.flatten(0, 1) if flat else changed


def _captured(port: Port, tensor: Tensor, *, upstream: bool) -> tuple[Tensor, Tensor]:
    """A site's value, and the port's tensor as the network shall see it.

    A view is no ancestor of what the network computes from the tensor it views, and a module's input may be
    read elsewhere too. Where gradients are asked for, the network is therefore given a tensor made from the
    value, so that they are the slopes of an edit; ``upstream`` says that even the whole is a view.
    """
    value = port.read(tensor)
    if torch.is_grad_enabled() and port.derive is None and value.is_floating_point():
        whole = port.heads is not None and _same_memory(value, tensor)
        if port.shared and upstream:
            value = value.clone()
        elif whole:  # written back as a view: no copy here, none amid zeros in the backward pass
            value = tensor.view(value.shape)
        elif upstream or value is not tensor or (port.slot == "input" and not port.shared):
            value = value.view_as(value)
        if not value.requires_grad:  # the weights are frozen: the graph starts here
            value.requires_grad_()
        if value is not tensor:
            tensor = value.view(tensor.shape) if whole else port.write(tensor, value)
    return value, tensor.clone() if port.overwritten else tensor


def _same_memory(part: Tensor, whole: Tensor) -> bool:
    """Whether a view holds all of a tensor, in its order."""
    return (
        part.numel() == whole.numel()
        and part.data_ptr() == whole.data_ptr()
        and part.is_contiguous()
        and whole.is_contiguous()
    )


def _patterns(wiring: Wiring) -> AttentionPatterns | ExitStack:
    watched = {site: port for site, port in wiring.ports.items() if port.attention is not None}
    if not watched:
        return ExitStack()
    modules: dict[nn.Module, list[str]] = defaultdict(list)
    for site, port in watched.items():
        modules[port.attention].append(site)  # type: ignore[index]
    return AttentionPatterns(
        modules, wiring.edits, wiring.wanted, wiring.captured, wiring.reached, shape=wiring.shape
    )


def _with_output(
    wiring: Wiring, output: Any, edits: Mapping[str, Edit], capture: Sequence[str]
) -> dict[str, Tensor]:
    """Serve the sites that are the model's own output."""
    whole = [site for site, port in wiring.ports.items() if port.module is None and port.attention is None]
    if whole:
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        logits = output[0] if logits is None else logits
        for site in whole:
            if site in edits:
                logits = editing.apply(edits[site], logits, wiring.ports[site].axes, site)
        wiring.captured.update(dict.fromkeys(whole, logits))
    return {site: wiring.captured[site] for site in capture}


def _arguments(
    model: Model, inputs: Inputs
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int] | None]:
    if model.anatomy is None:
        if isinstance(inputs, Mapping):
            return (), dict(inputs), None
        return (inputs if isinstance(inputs, tuple) else (inputs,)), {}, None
    made = batch(model, inputs)  # type: ignore[arg-type]
    rows, positions = made.input_ids.shape
    return (), made.arguments(model), (rows, positions)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if args:
        return args[0]
    return (
        kwargs["hidden_states"]
        if "hidden_states" in kwargs
        else next(v for v in kwargs.values() if isinstance(v, Tensor))
    )


def _replace_first(args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> tuple[Any, Any]:
    if args:
        return (value, *args[1:]), kwargs
    name = (
        "hidden_states"
        if "hidden_states" in kwargs
        else next(k for k, v in kwargs.items() if isinstance(v, Tensor))
    )
    return args, {**kwargs, name: value}
