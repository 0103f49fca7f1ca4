"""Slow but obvious direct logit attribution: norms and projections written out, one component after the other."""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference.naive import naive_capture

PARTS = {
    "llama": {
        "norm": "model.norm",
        "out": "model.layers.{}.self_attn.o_proj",
        "down": "model.layers.{}.mlp.down_proj",
    },
    "gpt2": {
        "norm": "transformer.ln_f",
        "out": "transformer.h.{}.attn.c_proj",
        "down": "transformer.h.{}.mlp.c_proj",
    },
}


@dataclass(frozen=True, eq=False)
class SlowAttribution:
    """The parts of one prompt's last residual stream.

    Attributes:
        kind: which architecture.
        module: the model.
        prompt: token ids.
        answer: the token whose logit is attributed.
        foil: the token whose logit is subtracted; `None` for none.
    """

    kind: Literal["llama", "gpt2"]
    module: nn.Module
    prompt: tuple[int, ...]
    answer: int
    foil: int | None

    @functools.cache  # noqa: B019 (a twin lives as long as its test)
    def site(self, name: str) -> Tensor:
        return naive_capture(self.kind, self.module, torch.tensor([self.prompt]), name)[0, -1].double()

    def path(self, name: str, layer: int = 0) -> Any:
        return self.module.get_submodule(PARTS[self.kind][name].format(layer))

    def written(self, name: str, layer: int) -> Tensor:
        """The output weights of a projection, one row for each of its inputs."""
        weight = self.path(name, layer).weight.detach().double()
        return weight if self.kind == "gpt2" else weight.T  # GPT-2 keeps them transposed

    def component(self, name: str) -> Tensor:
        """What a component writes, (d_model,)."""
        kind, *place = name.split(".")
        if kind == "embed":
            return self.site("resid_pre.0")
        layer = int(place[0])
        if kind == "head":
            width = self.module.config.hidden_size // self.module.config.num_attention_heads
            own = range(int(place[1]) * width, (int(place[1]) + 1) * width)
            z, weight = self.site(f"z.{layer}"), self.written("out", layer)
            return sum((z[i] * weight[i] for i in own), torch.zeros(weight.shape[1]).double())
        return self.site(f"{'attn_out' if kind == 'attention' else 'mlp_out'}.{layer}")

    def read(self, resid: Tensor) -> float:
        """The logit, or logit difference, of a residual stream, norm and all."""
        with torch.no_grad():
            logits = self.module.lm_head(self.path("norm")(resid.float()[None, None]))[0, 0].double()
        return float(logits[self.answer] - (0 if self.foil is None else logits[self.foil]))

    def attribution(self, vector: Tensor) -> float:
        """The share of a vector with the norm frozen."""
        resid = self.site(f"resid_post.{self.module.config.num_hidden_layers - 1}")
        norm, unembed = self.path("norm"), self.module.lm_head.weight.detach().double()
        eps = norm.eps if self.kind == "gpt2" else norm.variance_epsilon
        if self.kind == "gpt2":
            scale = ((resid - resid.mean()).square().mean() + eps).sqrt()
            vector = vector - vector.mean()
        else:
            scale = (resid.square().mean() + eps).sqrt()
        row = unembed[self.answer] - (0 if self.foil is None else unembed[self.foil])
        return float((vector / scale * norm.weight.detach().double() * row).sum())

    def direct_effect(self, vector: Tensor) -> float:
        """What is lost without a vector, the norm computed anew."""
        resid = self.site(f"resid_post.{self.module.config.num_hidden_layers - 1}")
        return self.read(resid) - self.read(resid - vector)

    def neuron(self, layer: int, index: int) -> Tensor:
        """What one neuron writes, (d_model,)."""
        return self.site(f"mlp_act.{layer}")[index] * self.written("down", layer)[index]
