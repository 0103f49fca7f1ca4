"""Slow but obvious ablation: one full forward pass an input and component, with hooks on paths written by hand."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reference.naive import PORTS, naive_capture, only_tensor

SITES = {
    "layer": ("attn_out", "mlp_out"), "attention": ("attn_out",), "mlp": ("mlp_out",), "head": ("z",),
    "neuron": ("mlp_act",),
}  # fmt: skip
WRITTEN = {"head": "attn_out", "neuron": "mlp_out"}


@dataclass(frozen=True, eq=False)
class SlowAblation:
    """Ablation on a data set.

    Attributes:
        kind: which table of paths.
        module: the model.
        inputs: token ids, all of one length.
        value: what stands in.
        noise: standard deviations of the noise.
        seed: of partners, noise and random directions.
    """

    kind: Literal["llama", "gpt2"]
    module: nn.Module
    inputs: Sequence[Sequence[int]]
    value: str = "mean"
    noise: float = 1.0
    seed: int = 0

    def ids(self, number: int) -> Tensor:
        return torch.tensor([self.inputs[number]])

    @cached_property
    def partners(self) -> list[int]:
        """Each input's partner: the next one of a random order."""
        order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return [order[(order.index(number) + 1) % len(order)] for number in range(len(order))]

    def activations(self, site: str) -> Tensor:
        """The site in every input, (input, pos, width)."""
        return torch.cat(
            [naive_capture(self.kind, self.module, self.ids(i), site) for i in range(len(self.inputs))]
        )

    def part(self, component: str) -> slice:
        """Which entries of a site belong to a component."""
        kind, *rest = component.split(".")
        width = self.module.config.hidden_size // self.module.config.num_attention_heads
        if kind == "head":
            return slice(int(rest[1]) * width, (int(rest[1]) + 1) * width)
        return slice(int(rest[1]), int(rest[1]) + 1) if kind == "neuron" else slice(None)

    def drawn(self, component: str, number: int, site: int, stream: int, shape: torch.Size) -> Tensor:
        """The Gaussian numbers that the seed stands for."""
        kind, layer, *index = component.split(".")
        place = [int(layer), int(index[0]) + 1 if index else 0, site, *(ord(letter) for letter in kind)]
        seed = int(np.random.default_rng([self.seed, stream, number, *place]).integers(2**63))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def replacement(self, component: str, number: int, index: int) -> Tensor:
        """What stands in for a component at its site of some index, (pos, width of the part)."""
        kind, layer = component.split(".")[:2]
        every = self.activations(f"{SITES[kind][index]}.{layer}")[..., self.part(component)]
        own = every[number]
        if self.value == "zero":
            value = 0 * own
        elif self.value == "mean":
            value = every.mean((0, 1)).expand_as(own)
        elif self.value == "position_mean":
            value = every.mean(0)
        elif self.value == "resample":
            value = every[self.partners[number]]
        else:
            spread = every.flatten(0, 1).std(0, unbiased=False)
            value = own + self.noise * spread * self.drawn(component, number, index, 0, own.shape)
        return value

    def astray(self, component: str, number: int) -> tuple[str, Tensor]:
        """Where the component's change meets the stream, and that site moved as far in a random direction."""
        kind, layer = component.split(".")[:2]
        part, change = self.part(component), torch.zeros(())
        for index, name in enumerate(SITES[kind]):
            own = self.activations(f"{name}.{layer}")[number][:, part]
            change = change + self.replacement(component, number, index) - own
        if kind in WRITTEN:
            path, _ = PORTS[self.kind][SITES[kind][0]]
            weight = self.module.get_submodule(path.format(layer)).weight.detach()
            change = (
                change @ (weight if self.kind == "gpt2" else weight.T)[part]
            )  # (width of the site, d_model)
        site = f"{WRITTEN.get(kind, SITES[kind][-1])}.{layer}"
        direction = self.drawn(component, number, 0, 1, change.shape)
        size = change.norm(dim=-1) / direction.norm(dim=-1)
        return site, self.activations(site)[number] + size[:, None] * direction

    def logits(self, number: int, component: str | None = None, *, random: bool = False) -> Tensor:
        """Logits of one input, with a component replaced, (pos, vocabulary)."""
        with torch.no_grad(), ExitStack() as stack:
            if component is not None:
                kind, layer = component.split(".")[:2]
                edits = [
                    (f"{name}.{layer}", self.replacement(component, number, i), self.part(component))
                    for i, name in enumerate(SITES[kind])
                ]
                if random:
                    edits = [(*self.astray(component, number), slice(None))]
                for site, value, part in edits:
                    path, side = PORTS[self.kind][site.partition(".")[0]]
                    module = self.module.get_submodule(path.format(layer))
                    stack.callback(self.hook(module, side, part, value).remove)
            return self.module(self.ids(number)).logits[0].double()

    def hook(self, module: nn.Module, side: str, part: slice, value: Tensor) -> Any:
        def put(tensor: Tensor) -> Tensor:
            tensor = tensor.clone()
            tensor[0, :, part] = value
            return tensor

        def on_output(_: nn.Module, __: Any, output: Any) -> Any:
            changed = put(only_tensor(output))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        if side == "in":
            return module.register_forward_pre_hook(lambda _, args: (put(args[0]), *args[1:]))
        return module.register_forward_hook(on_output)

    def effect(self, component: str, number: int, *, random: bool = False) -> Tensor:
        """Loss difference, KL, top-1 agreement and change of the logit difference of one input, (metric,)."""
        clean, edited = self.logits(number), self.logits(number, component, random=random)
        p, q = clean.log_softmax(-1), edited.log_softmax(-1)
        loss, kl, same, moved = [], [], [], []
        for t in range(len(p)):
            kl.append(float((p[t].exp() * (p[t] - q[t])).sum()))
            same.append(float(p[t].argmax() == q[t].argmax()))
            if t + 1 < len(p):
                token = self.inputs[number][t + 1]
                foil = next(int(i) for i in p[t].argsort(descending=True) if int(i) != token)
                loss.append(float(p[t, token] - q[t, token]))
                before, after = (x[t, token] - x[t, foil] for x in (clean, edited))
                moved.append(float(after - before))
        return torch.tensor([np.mean(values) for values in (loss, kl, same, moved)])

    def loss(self, number: int) -> float:
        """Mean negative log-probability of the next token."""
        p = self.logits(number).log_softmax(-1)
        return -float(np.mean([float(p[t, token]) for t, token in enumerate(self.inputs[number][1:])]))
