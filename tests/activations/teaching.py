"""Teaching a tiny model a few answers, so that there is something to find in it."""

from collections.abc import Sequence

import torch

from assay.models.model import Model


def teach(model: Model, lessons: Sequence[tuple[Sequence[int], int]], steps: int = 60) -> Model:
    """Train a tiny model until it answers each prompt's tokens with one token; the same at every call."""
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        for prompt, answer in lessons:
            logits = model.module(torch.tensor([prompt])).logits[:, -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor([answer])).backward()
        optimizer.step()
    return model
