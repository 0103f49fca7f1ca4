"""Forward hooks written by hand on the Hugging Face model: what any tool is built on, with nothing around it.

The trace is the loop of Meng et al. 2022 (ROME), a full forward pass per cell, but for two things that make
it cheaper: the clean row is run once, not in every batch, and only the last position meets the unembedding.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.worker import Answer, Task, Turn, Work, serve


@contextmanager
def hooked(edits: dict[nn.Module, Callable[[Tensor], Tensor | None]]) -> Generator[None]:
    """Let each function see, and if it returns one replace, the output of its module."""

    def hook(edit: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
        return lambda module, inputs, output: edit(output)

    handles = [module.register_forward_hook(hook(edit)) for module, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prepare(work: Work) -> dict[str, Task]:
    """Load the Hugging Face model."""
    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device).eval()
    embedding, layers = model.model.embed_tokens, model.model.layers
    corrupted_tokens = work.tokens.expand(work.samples, -1)

    def residuals() -> list[Tensor]:
        states: list[Tensor] = []
        with hooked(dict.fromkeys(layers, states.append)):
            model(work.tokens)
        return states

    def corrupt(output: Tensor) -> Tensor:
        output = output.clone()
        output[:, slice(*work.span)] += work.noise
        return output

    def cell(layer: int, position: int, clean: Tensor) -> float:
        def restore(output: Tensor) -> Tensor:
            output = output.clone()
            output[:, position] = clean
            return output

        with hooked({embedding: corrupt, layers[layer]: restore}):
            logits = model(corrupted_tokens, logits_to_keep=1).logits
        return logits[:, -1].softmax(-1)[:, work.answer].mean().item()

    def forward(turn: Turn) -> Answer:
        return {"last_logits": model(work.tokens).logits[0, -1]}

    def capture(turn: Turn) -> Answer:
        return {"last_residual": residuals()[-1][0, -1]}

    def trace(turn: Turn) -> Answer:
        clean = residuals()
        return {
            "restored": [cell(layer, position, clean[layer][0, position]) for layer, position in turn.cells]
        }

    return {"forward": forward, "capture": capture, "trace": trace}


if __name__ == "__main__":
    serve(prepare, ["transformers", "torch"])
