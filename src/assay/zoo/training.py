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
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Training:
    """What training leaves behind.

    Attributes:
        steps: the steps kept, ascending: the number of updates that came before.
        loss: mean over the batch of each kept step, (kept step, seed).
        weights: name -> weights at each kept step, (kept step, seed, ...), and so buffers; tied weights stand there
            once.
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
        """Give one network's checkpoints: step -> what its ``state_dict`` held.

        Raises:
            ValueError: no such network.
        """
        self._refuse(seed)
        named = {id(value): name for name, value in _own(self.module).items()}
        state = self.module.state_dict(keep_vars=True)
        once = {name: named[id(value)] for name, value in state.items() if id(value) in named}
        return {
            step: {name: self.weights[first][index, seed] for name, first in once.items()}
            for index, step in enumerate(self.steps)
        }

    @torch.no_grad()
    def network(self, seed: int = 0, step: int | None = None) -> nn.Module:
        """Copy one network as it was at a kept step; at the last when no step is given.

        Raises:
            ValueError: no such network, or a step that was not kept.
        """
        self._refuse(seed)
        if step is not None and step not in self.steps:
            raise ValueError(f"step {step} was not kept: there are {self.steps[:3]} to {self.steps[-1]}")
        index = -1 if step is None else self.steps.index(step)
        made = copy.deepcopy(self.module)
        for name, value in _own(made).items():
            value.copy_(self.weights[name][index, seed])
        return made

    def _refuse(self, seed: int) -> None:
        if not 0 <= seed < self.seeds:
            raise ValueError(f"there is no network {seed}: they are 0 to {self.seeds - 1}")


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
        keep_every: keep the loss, the weights and the buffers at every so many steps, and at the last.

    Returns:
        Losses and checkpoints.

    Raises:
        ValueError: no network, one with dropout (whose chance no generator draws), nothing that would be kept, or a
            loss that is one number.
    """
    _refuse(networks, steps, keep_every)
    stacked, buffers = stack_module_state(list(networks))
    module = copy.deepcopy(networks[0])
    whole = _WithLoss(module, loss)
    updates = optimizer(list(stacked.values()))

    def mean(weights: State, held: State, batch: Batch) -> Tensor:
        named = {f"module.{name}": value for name, value in {**weights, **held}.items()}
        each = functional_call(whole, named, (batch,))
        if not each.ndim:
            raise ValueError(
                "the loss is one number: expected one value per example or token, not their mean"
            )
        return each.mean()

    together = vmap(mean)
    kept: list[int] = []
    losses: list[Tensor] = []
    checkpoints: list[State] = []
    for step in range(steps + 1):
        keep = step % keep_every == 0 or step == steps
        if keep:  # first: a layer's statistics move as soon as it sees the batch
            kept.append(step)
            checkpoints.append({name: part.detach().clone() for name, part in (stacked | buffers).items()})
        value = together(stacked, buffers, batches(step))
        if keep:
            losses.append(value.detach())
        if step < steps:
            updates.zero_grad()
            value.sum().backward()
            updates.step()
    weights = {name: torch.stack([checkpoint[name] for checkpoint in checkpoints]) for name in checkpoints[0]}
    return Training(tuple(kept), torch.stack(losses), weights, module)


def _refuse(networks: Sequence[nn.Module], steps: int, keep_every: int) -> None:
    if not networks:
        raise ValueError("no networks: pass one for each seed")
    if keep_every < 1 or steps < 0:
        raise ValueError(
            f"{keep_every=}, {steps=}: expected to keep every step or so many, and no fewer than 0 steps"
        )
    for name, part in networks[0].named_modules():
        if isinstance(part, DROPOUT) and part.p and part.training:
            raise ValueError(f"{name} is a dropout, whose chance no generator draws: set its p to 0")


def _own(module: nn.Module) -> State:
    """Give a module's weights and buffers by name; tied ones have the first name only."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


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
