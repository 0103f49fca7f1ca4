"""Slow but obvious logit lens: one layer and one position at a time, over the whole vocabulary, in float64."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reference.naive import record

NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f"}
STREAMS = {
    "llama": {
        "first": "model.layers.0",
        "resid": "model.layers.{}",
        "attn_out": "model.layers.{}.self_attn",
        "mlp_out": "model.layers.{}.mlp",
    },
    "gpt2": {
        "first": "transformer.h.0",
        "resid": "transformer.h.{}",
        "attn_out": "transformer.h.{}.attn",
        "mlp_out": "transformer.h.{}.mlp",
    },
}


@dataclass(frozen=True, eq=False)
class SlowLens:
    """Reads single vectors through the model's final norm and unembedding, both in float64.

    Attributes:
        kind: which tables of paths.
        module: the model.
        tokens: token ids.
    """

    kind: str
    module: nn.Module
    tokens: list[int]

    def states(self, stream: str) -> list[Tensor]:
        """The vectors at every layer, (position, d_model) each."""
        paths = STREAMS[self.kind]
        layers = range(self.module.config.num_hidden_layers)
        ports = {f"{layer}": (paths[stream].format(layer), "out") for layer in layers}
        if stream == "resid":
            ports = {"first": (paths["first"], "in"), **ports}
        return [value[0] for value in record(self.module, torch.tensor([self.tokens]), ports).values()]

    def log_probabilities(self, state: Tensor) -> Tensor:
        """Of the whole vocabulary, read from one vector, (vocabulary,)."""
        norm = copy.deepcopy(self.module.get_submodule(NORMS[self.kind])).double()
        with torch.no_grad():
            logits = self.module.get_output_embeddings().weight.double() @ norm(state.double())
        return torch.log_softmax(logits, -1)

    def final(self, position: int) -> Tensor:
        """What the last layer says at one position."""
        return self.log_probabilities(self.states("resid")[-1][position])

    def cell(self, state: Tensor, position: int) -> dict[str, float | int | list]:
        """Everything the lens says of one vector."""
        said, final = self.log_probabilities(state), self.final(position)
        order = said.argsort(descending=True).tolist()
        found: dict[str, float | int | list] = {
            "top_token": order,
            "top_probability": said.exp().sort(descending=True).values.tolist(),
            "entropy": float(-(said.exp() * said).sum()),
            "kl_to_final": float((final.exp() * (final - said)).sum()),
        }
        if position + 1 < len(self.tokens):
            target = self.tokens[position + 1]
            found["target_rank"] = order.index(target)
            found["target_log_probability"] = float(said[target])
        return found
