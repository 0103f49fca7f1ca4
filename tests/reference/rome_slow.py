"""Slow but obvious causal trace: one full forward pass a cell, with hooks on paths written by hand."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from reference.naive import only_tensor

PATHS = {
    "llama": {
        "embed": "model.embed_tokens",
        "state": "model.layers.{}",
        "mlp": "model.layers.{}.mlp",
        "attn": "model.layers.{}.self_attn",
    },
    "gpt2": {
        "embed": "transformer.wte",
        "state": "transformer.h.{}",
        "mlp": "transformer.h.{}.mlp",
        "attn": "transformer.h.{}.attn",
    },
}

Place = tuple[str, int]
"""Path of a module, and a position of its output."""


@dataclass(frozen=True, eq=False)
class SlowTrace:
    """One trace of one prompt: corrupted rows are run one after the other, each cell anew.

    Attributes:
        kind: which table of paths.
        module: the model.
        prompt: token ids of the prompt.
        subject: positions of the subject.
        answer: token ids of the answer.
        foil: the token the logit difference is taken against.
        noise: what is added to the embeddings, (sample, subject token, width); `None` for replacements.
        replacements: prompts with another subject, one a sample.
        window: how many blocks' modules are restored together.
    """

    kind: str
    module: nn.Module
    prompt: Sequence[int]
    subject: Sequence[int]
    answer: Sequence[int]
    foil: int
    noise: Tensor | None = None
    replacements: Sequence[Sequence[int]] = ()
    window: int = 10

    @property
    def layers(self) -> int:
        return self.module.config.num_hidden_layers

    @property
    def samples(self) -> int:
        return len(self.replacements) if self.noise is None else len(self.noise)

    def path(self, part: str, layer: int) -> str:
        return PATHS[self.kind][part].format(layer)

    def run(self, sample: int | None, put: dict[Place, Tensor]) -> tuple[Tensor, dict[Place, Tensor]]:
        """One forward pass of one row: the clean one, or a corrupted one with some outputs replaced.

        Returns:
            Logits where the answer's tokens are read, and every module output at every position.
        """
        ids = list(self.prompt if sample is None or self.noise is not None else self.replacements[sample])
        ids += self.answer[:-1]
        seen: dict[Place, Tensor] = {}

        def disturb(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
            changed = embedded.clone()
            for i, position in enumerate(self.subject):
                changed[0, position] += self.noise[sample, i]
            return changed

        def hook(path: str) -> Any:
            def replaced(_: nn.Module, __: Any, output: Any) -> Any:
                changed = only_tensor(output).clone()
                for position in range(len(ids)):
                    if (path, position) in put:
                        changed[0, position] = put[path, position]
                    seen[path, position] = changed[0, position]
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return replaced

        with torch.no_grad(), ExitStack() as stack:
            if sample is not None and self.noise is not None:
                embedding = self.module.get_submodule(PATHS[self.kind]["embed"])
                stack.callback(embedding.register_forward_hook(disturb).remove)
            for part in ("state", "mlp", "attn"):
                for layer in range(self.layers):
                    path = self.path(part, layer)
                    module = self.module.get_submodule(path)
                    stack.callback(module.register_forward_hook(hook(path)).remove)
            logits = self.module(torch.tensor([ids])).logits[0, len(self.prompt) - 1 :]
        return logits.double(), seen

    @cached_property
    def clean_run(self) -> tuple[Tensor, dict[Place, Tensor]]:
        return self.run(None, {})

    @cached_property
    def corrupted_runs(self) -> list[tuple[Tensor, dict[Place, Tensor]]]:
        return [self.run(sample, {}) for sample in range(self.samples)]

    def metrics(self, logits: Tensor) -> Tensor:
        """Probability, its logarithm, logit difference and KL(clean || this) of the answer's positions."""
        log_probability = torch.log_softmax(logits, -1)
        clean = torch.log_softmax(self.clean_run[0], -1)
        likelihood = sum(log_probability[i, token] for i, token in enumerate(self.answer))
        difference = logits[0, self.answer[0]] - logits[0, self.foil]
        kl = (clean.exp() * (clean - log_probability)).sum()
        return torch.stack([likelihood.exp(), likelihood, difference, kl])

    def restored_places(self, kind: str, layer: int, position: int) -> list[Place]:
        """What is put back to its clean value."""
        if kind.startswith("state"):
            return [(self.path("state", layer), position)]
        first = layer - self.window // 2
        while first < 0:
            first += 1
        while first + self.window > self.layers:
            first -= 1
        return [(self.path(kind, inside), position) for inside in range(first, first + self.window)]

    def severed_places(self, kind: str, layer: int, position: int) -> list[Place]:
        """What is held at its corrupted value."""
        part = {"state_mlp_severed": "mlp", "state_attn_severed": "attn"}.get(kind)
        later = range(layer + 1, self.layers) if part else ()
        return [(self.path(str(part), above), position) for above in later]

    def cell(self, kind: str, layer: int, position: int) -> Tensor:
        """Metrics of each sample with one cell restored, (sample, metric)."""
        _, clean = self.clean_run
        rows = []
        for sample in range(self.samples):
            _, corrupted = self.corrupted_runs[sample]
            put = {place: clean[place] for place in self.restored_places(kind, layer, position)}
            put |= {place: corrupted[place] for place in self.severed_places(kind, layer, position)}
            rows.append(self.metrics(self.run(sample, put)[0]))
        return torch.stack(rows)

    def grid(self, kind: str) -> Tensor:
        """Every cell of one kind, those before the subject too: (layer, position, sample, metric)."""
        return torch.stack(
            [
                torch.stack([self.cell(kind, layer, p) for p in range(len(self.prompt))])
                for layer in range(self.layers)
            ]
        )

    def clean(self) -> Tensor:
        """Metrics of the clean run, (metric,)."""
        return self.metrics(self.clean_run[0])

    def corrupted(self) -> Tensor:
        """Metrics of the corrupted runs, (sample, metric)."""
        return torch.stack([self.metrics(logits) for logits, _ in self.corrupted_runs])


def drawn_noise(samples: int, subject: int, width: int, scale: float, seed: int) -> Tensor:
    """The noise a setting's seed stands for, (sample, subject token, width)."""
    return scale * torch.randn(samples, subject, width, generator=torch.Generator().manual_seed(seed))


def spread(embedding: Tensor, tokens: Sequence[Sequence[int]]) -> float:
    """Standard deviation of all embedding entries of all tokens of a list of texts, by its definition."""
    entries = torch.cat([embedding[token] for text in tokens for token in text]).double()
    return float((((entries - entries.mean()) ** 2).sum() / (len(entries) - 1)).sqrt())
