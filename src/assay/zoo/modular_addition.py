r"""Modular addition: (a, b) -> a + b mod p, learned by heart first and understood later (grokking).

Two embeddings are added, squared and read out: :math:`(E_a + F_b)^{2}`, then a linear map to p scores. Trained on part
of all pairs with weight decay, the loss on the training pairs goes to zero long before that on the others does. The
architecture is that of A. Gromov 2023 (arXiv 2301.02679), which has a solution in closed form; here it is trained by
cross entropy.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.zoo.training import Batch, Training, generators, linear, train

INITIAL = 0.3
"""Standard deviation of the embeddings at the start."""


class Network(nn.Module):
    """Adds two embeddings, squares, and reads out p scores.

    Args:
        modulus: p.
        hidden: units between.
        generator: draws the weights.
    """

    def __init__(self, modulus: int, hidden: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Embedding.from_pretrained(
                INITIAL * torch.randn(modulus, hidden, generator=generator), freeze=False
            )
            for _ in range(2)
        )
        self.out = linear(hidden, modulus, bias=False, generator=generator)

    def forward(self, pairs: Tensor) -> Tensor:
        """Give scores (example, p) of pairs (example, 2)."""
        return self.out((self.left(pairs[:, 0]) + self.right(pairs[:, 1])).square())


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each pair, (example,), in nats."""
    return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def examples(
    modulus: int, share: float, *, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Split all pairs into those to train on and the others.

    Args:
        modulus: p.
        share: of the p^2 pairs that is trained on.
        generator: draws which.

    Returns:
        Pairs (n, 2) with their sums (n,), to train on; and the same of the others.
    """
    every = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    every = every[torch.randperm(len(every), generator=generator)]
    sums, kept = every.sum(1) % modulus, round(share * len(every))
    return (every[:kept], sums[:kept]), (every[kept:], sums[kept:])


def train_many(  # noqa: PLR0913 (each is one documented setting of the training)
    seeds: int,
    data: tuple[Tensor, Tensor],
    *,
    modulus: int = 23,
    hidden: int = 64,
    steps: int = 2500,
    keep_every: int = 25,
    rate: float = 3e-3,
    weight_decay: float = 1.0,
    generator: torch.Generator,
) -> Training:
    """Train many networks on the same pairs in one call, by AdamW on all of them; see `assay.zoo.training.train`.

    Args:
        seeds: number of networks.
        data: pairs and sums to train on, as `examples` gives them.
        modulus: p.
        hidden: units between.
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning.
        weight_decay: decoupled, as AdamW has it: weights shrink by rate times this in each step.
        generator: of weights.

    Raises:
        ValueError: pairs and sums of another modulus.
    """
    pairs, sums = data
    if not bool((pairs < modulus).all()) or not torch.equal(pairs.sum(1) % modulus, sums):
        raise ValueError(f"the data are not sums modulo {modulus}: pass the modulus they were made with")
    networks = [
        Network(modulus, hidden, generator=source) for source in generators(seeds, generator=generator)
    ]
    whole = tuple(part.expand(seeds, *part.shape) for part in data)
    optimizer = partial(torch.optim.AdamW, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    return train(networks, loss, lambda step: whole, optimizer=optimizer, steps=steps, keep_every=keep_every)
