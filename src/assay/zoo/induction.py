"""A two-layer attention-only transformer that learns to copy from its context: induction heads, and their bump.

Each text is a random block of tokens repeated to the end, with a period drawn anew, so that no fixed distance will do:
a token that was seen before is followed by what followed it then. At first the loss stays near ln(vocabulary); within
a short stretch of training the loss of repeated tokens falls, when a head of the second layer learns to use one of the
first that looks one token back. Compare C. Olsson et al. 2022 (transformer-circuits.pub), where it shows as a bump.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.zoo.training import Batch, Training, generators, linear, train

VOCABULARY, LENGTH, WIDTH, HEADS = 32, 32, 32, 2
PERIODS = (8, 16)
"""Shortest and longest period of a text."""
INITIAL = 0.16
"""Standard deviation of the embeddings at the start."""


class Attention(nn.Module):
    """Causal attention of two heads."""

    def __init__(self, *, generator: torch.Generator) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            linear(WIDTH, WIDTH, bias=False, generator=generator) for _ in range(4)
        )

    def forward(self, stream: Tensor) -> Tensor:
        """Give what attention adds to a stream (example, position, width)."""
        query, key, value = (
            part(stream).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        length = stream.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Embeddings of tokens and positions, two layers of attention, an unembedding.

    Args:
        generator: draws the weights.
    """

    def __init__(self, *, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(INITIAL * torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.positions = nn.Parameter(INITIAL * torch.randn(LENGTH, WIDTH, generator=generator))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.layers = nn.ModuleList(Attention(generator=generator) for _ in range(2))
        self.out = linear(WIDTH, VOCABULARY, bias=False, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """Give scores (example, position, token) of ids (example, position)."""
        stream = self.tokens[ids] + self.positions
        for norm, layer in zip(self.norms, self.layers, strict=False):
            stream = stream + layer(norm(stream))
        return self.out(self.norms[-1](stream))


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each token given those before it, (example, position - 1), in nats."""
    scores, after = module(batch[0])[:, :-1], batch[0][:, 1:]
    each = functional.cross_entropy(scores.flatten(0, 1), after.flatten(), reduction="none")
    return each.view(after.shape)


def examples(n: int, *, generator: torch.Generator) -> Tensor:
    """Draw texts, (n, position): a random block repeated to the end, of a random period each."""
    shortest, longest = PERIODS
    period = torch.randint(shortest, longest + 1, (n, 1), generator=generator)
    block = torch.randint(VOCABULARY, (n, longest), generator=generator)
    return block.gather(1, torch.arange(LENGTH) % period)


def train_many(
    seeds: int,
    *,
    steps: int = 1500,
    keep_every: int = 15,
    rate: float = 1e-3,
    batch_size: int = 32,
    generator: torch.Generator,
) -> Training:
    """Train many networks in one call by Adam; see `assay.zoo.training.train`.

    Args:
        seeds: number of networks.
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning.
        batch_size: fresh texts in each step.
        generator: of weights and of texts.
    """
    sources = generators(seeds, generator=generator)
    networks = [Network(generator=source) for source in sources]

    def batches(step: int) -> Batch:
        return (torch.stack([examples(batch_size, generator=source) for source in sources]),)

    optimizer = partial(torch.optim.Adam, lr=rate)
    return train(networks, loss, batches, optimizer=optimizer, steps=steps, keep_every=keep_every)
