"""Slow but obvious patching: one full forward pass a cell, with hooks on paths written by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reference.naive import PORTS, naive_capture, patched

METRICS = ("log_probability", "probability", "logit_difference", "kl_from_clean")


@dataclass(frozen=True, eq=False)
class SlowPatching:
    """Patching between two prompts.

    Attributes:
        kind: which table of paths.
        module: the model.
        clean: token ids of the clean prompt.
        corrupted: token ids of the corrupted prompt, as many.
        answer: token id of the answer.
        foil: the token the logit difference is taken against.
        site: what is patched.
        direction: ``denoise`` or ``noise``.
    """

    kind: Literal["llama", "gpt2"]
    module: nn.Module
    clean: Sequence[int]
    corrupted: Sequence[int]
    answer: int
    foil: int
    site: str = "resid_pre"
    direction: str = "denoise"

    @property
    def base_and_source(self) -> tuple[Tensor, Tensor]:
        """The prompt that is patched, and the one that values come from."""
        clean, corrupted = torch.tensor([self.clean]), torch.tensor([self.corrupted])
        return (corrupted, clean) if self.direction == "denoise" else (clean, corrupted)

    def metrics(self, logits: Tensor) -> Tensor:
        """Every metric of the logits at the last position, (metric,)."""
        with torch.no_grad():
            clean = self.module(torch.tensor([self.clean])).logits[0, -1].double().log_softmax(-1)
        log_probability = logits.double().log_softmax(-1)
        kl = sum(float(clean[t].exp()) * float(clean[t] - log_probability[t]) for t in range(len(clean)))
        answer = float(log_probability[self.answer])
        return torch.tensor(
            [answer, torch.tensor(answer).exp(), logits[self.answer] - logits[self.foil], kl],
            dtype=torch.float64,
        )

    def run(self, ids: Tensor) -> Tensor:
        """Metrics of an unpatched prompt."""
        with torch.no_grad():
            return self.metrics(self.module(ids).logits[0, -1])

    def cell(
        self, layer: int, position: int, head: int | None = None, source: Sequence[int] | None = None
    ) -> Tensor:
        """Metrics of the base prompt with one place patched.

        Args:
            layer: the layer.
            position: the position.
            head: which head, for sites with heads of width `d_head`.
            source: where the value comes from, if not from the other prompt of the pair.

        Returns:
            (metric,).
        """
        base, other = self.base_and_source
        given = other if source is None else torch.tensor([source])
        value = naive_capture(self.kind, self.module, given, f"{self.site}.{layer}")[0, position]
        width = self.module.config.hidden_size // self.module.config.num_attention_heads
        part = slice(None) if head is None else slice(head * width, (head + 1) * width)
        path, side = PORTS[self.kind][self.site]
        logits = patched(self.module, base, path.format(layer), side, (0, position, part), value[part])
        return self.metrics(logits[0, -1])

    def grid(self, layers: int, positions: Sequence[int]) -> Tensor:
        """Metrics of every cell: (metric, layer, position)."""
        rows = [torch.stack([self.cell(layer, p) for p in positions]) for layer in range(layers)]
        return torch.stack(rows).permute(2, 0, 1)
