"""Training many networks at once: all seeds are one batched call, and every checkpoint is kept.

Networks of one architecture are stacked along a leading axis, run together by ``torch.func``, and updated by one
optimizer. Each sees its own batches, so a network trains as it would alone, up to the rounding of batched products.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

Batch = tuple[Tensor, ...]
State = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""loss(module, batch) -> one value per example, (example,), or per token, (example, token)."""


@dataclass(frozen=True)
class Training:
    """What training leaves behind.

    Attributes:
        steps: the steps kept, ascending: the number of updates that came before.
        loss: mean over the batch of each kept step, (kept step, seed).
        weights: name -> weights at each kept step, (kept step, seed, ...).
        module: the architecture; its own weights mean nothing.
    """

    steps: tuple[int, ...]
    loss: Tensor
    weights: State
    module: nn.Module

    @property
    def seeds(self) -> int:
        """Number of networks."""
        return self.loss.shape[1]

    def states(self, seed: int = 0) -> dict[int, State]:
        """Give one network's checkpoints: step -> weights by name."""
        return {
            step: {name: value[index, seed] for name, value in self.weights.items()}
            for index, step in enumerate(self.steps)
        }

    def network(self, seed: int = 0, step: int | None = None) -> nn.Module:
        """Copy one network as it was at a kept step; at the last when no step is given."""
        made = copy.deepcopy(self.module)
        made.load_state_dict(self.states(seed)[self.steps[-1] if step is None else step])
        return made


def train(
    networks: Sequence[nn.Module],
    loss: Loss,
    batches: Callable[[int], Batch],
    *,
    optimizer: Callable[[list[Tensor]], Optimizer],
    steps: int,
    keep_every: int,
) -> Training:
    """Train networks of one architecture together.

    Args:
        networks: one for each seed, in the state in which they begin; left untouched.
        loss: of one network and its batch, one value per example or token.
        batches: the number of the step -> tensors whose first axis counts the networks.
        optimizer: makes the optimizer of the stacked weights. It must treat weights one by one (SGD, Adam, AdamW
            and their momenta), or networks would see each other.
        steps: number of updates.
        keep_every: keep the loss and the weights at every so many steps, and at the last.

    Returns:
        Losses and checkpoints.
    """
    stacked, buffers = stack_module_state(list(networks))
    module = copy.deepcopy(networks[0])
    whole = _WithLoss(module, loss)
    updates = optimizer(list(stacked.values()))

    def mean(weights: State, held: State, batch: Batch) -> Tensor:
        named = {f"module.{name}": value for name, value in {**weights, **held}.items()}
        return functional_call(whole, named, (batch,)).mean()

    each = vmap(mean)
    kept: list[int] = []
    losses: list[Tensor] = []
    checkpoints: list[State] = []
    for step in range(steps + 1):
        value = each(stacked, buffers, batches(step))
        if step % keep_every == 0 or step == steps:
            kept.append(step)
            losses.append(value.detach())
            checkpoints.append({name: part.detach().clone() for name, part in stacked.items()})
        if step < steps:
            updates.zero_grad()
            value.sum().backward()
            updates.step()
    weights = {name: torch.stack([checkpoint[name] for checkpoint in checkpoints]) for name in stacked}
    return Training(tuple(kept), torch.stack(losses), weights, module)


def linear(inputs: int, outputs: int, *, bias: bool = True, generator: torch.Generator) -> nn.Linear:
    """Make a linear layer with torch's own initial law, U(-1, 1) / sqrt(inputs), drawn from a generator."""
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")
    bound = inputs**-0.5
    with torch.no_grad():
        for value in layer.parameters():
            value.uniform_(-bound, bound, generator=generator)
    return layer


def generators(seeds: int, *, generator: torch.Generator) -> list[torch.Generator]:
    """Draw an independent source of chance for each of several networks; the first do not depend on how many."""
    words = [int(torch.randint(2**62, (), generator=generator)) for _ in range(seeds)]
    return [torch.Generator().manual_seed(word) for word in words]


class _WithLoss(nn.Module):
    """A module and its loss in one, so that a loss sees the module under substituted weights."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self._loss = module, loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.module, batch)
