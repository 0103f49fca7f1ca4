"""The accuracy suite's networks, each with what a perfect sampler would find: fixed seeds, nothing tuned to them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from assay.landscape.losses import Loss, squared_error
from assay.zoo import deep_linear
from assay.zoo.densities import NormalCrossing, Separable
from assay.zoo.gibbs import gibbs

SIZES = ((1e2, 1e3, 26), (1e3, 1e4, 26), (1e4, 1e5, 12), (3.4e4, 1e5, 6))
"""Deep linear networks: parameters from, to, and how many of them."""
SEED = 2026


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        family: of networks.
        name: within its family.
        parameters: of the network.
        make: gives module, loss, data, the truth at this temperature and its standard error.
    """

    family: str
    name: str
    parameters: int
    make: Callable[[], tuple[nn.Module, Loss, tuple[Tensor, ...], float, float]]


def cases() -> list[Case]:
    """Give all of them; sizes are mixed, so that part of a suite tells of all of it."""
    linear = [_linear("deep linear", *net) for net in _networks()]
    reduced = [
        _linear("reduced rank", widths, rank, 1000, seed)
        for seed, (widths, rank) in enumerate(
            [
                ((6, 4, 6), 2),
                ((10, 3, 8), 1),
                ((5, 12, 5), 3),
                ((20, 6, 4), 4),
                ((8, 8, 8), 0),
                ((30, 10, 30), 5),
            ]
        )
    ]
    crossings = [[2, 2], [2, 4], [2, 2, 2], [4, 6], [1, 2], [2, 4, 6]]
    densities = [_density("normal crossing", NormalCrossing(powers), powers) for powers in crossings]
    densities += [_density("quadratic", Separable([2] * count), [2] * count) for count in (1, 4, 20, 100)]
    return [*linear, *reduced, *densities, *(_tanh(hidden) for hidden in (1, 2, 3))]


def _networks() -> list[tuple[tuple[int, ...], int, int, int]]:
    """Draw widths, rank, number of examples and seed of every deep linear network."""
    rng = np.random.default_rng(SEED)
    found: list[tuple[tuple[int, ...], int, int, int]] = []
    for low, high, count in SIZES:
        wanted = len(found) + count
        while len(found) < wanted:
            layers = int(rng.integers(2, 7))
            widths = tuple(
                round(math.exp(rng.uniform(math.log(4), math.log(200)))) for _ in range(layers + 1)
            )
            parameters = sum(left * right for left, right in zip(widths, widths[1:], strict=False))
            if low <= parameters <= high:
                rank, n = int(rng.integers(0, min(widths) + 1)), int(rng.choice([1000, 2000, 4000]))
                found.append((widths, rank, n, len(found)))
    ends = list(np.cumsum([0, *(count for _, _, count in SIZES)]))
    classes = [found[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]
    share = {id(net): (place + 0.5) / len(each) for each in classes for place, net in enumerate(each)}
    return sorted(found, key=lambda net: share[id(net)])


def _linear(family: str, widths: tuple[int, ...], rank: int, n: int, seed: int) -> Case:
    def make() -> tuple[nn.Module, Loss, tuple[Tensor, ...], float, float]:
        generator = torch.Generator().manual_seed(seed)
        target = deep_linear.teacher(widths, rank, generator=generator)
        anchor = deep_linear.at_minimal_rank(target, widths)
        data = deep_linear.examples(target, n, generator=generator)
        small = sum(layer.numel() for layer in anchor) < 5000
        drawn = gibbs(
            anchor,
            n_beta=n / math.log(n),
            covariance=data[0].T @ data[0] / n,
            chains=16 if small else 6,
            sweeps=200 if small else 40,
            burn_in=100 if small else 40,
            generator=generator,
        )
        each = drawn.mean(1)
        return (
            deep_linear.as_module(anchor),
            squared_error,
            data,
            float(each.mean()),
            float(each.std() / len(each) ** 0.5),
        )

    parameters = sum(left * right for left, right in zip(widths, widths[1:], strict=False))
    return Case(family, f"{'-'.join(map(str, widths))} rank {rank} n {n}", parameters, make)


def _potential(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return module(batch[0])


def _density(family: str, module: nn.Module, powers: list[int], n: int = 1000) -> Case:
    def make() -> tuple[nn.Module, Loss, tuple[Tensor, ...], float, float]:
        beta = n / math.log(n)
        if family == "quadratic":  # h of the loss against gamma = 1 in each direction
            truth, stderr = len(powers) * beta / (2 * beta + 1), 0.0
        else:
            exponents = torch.tensor(powers, dtype=torch.float64)
            truth, stderr = _by_prior(lambda w: (w.abs() ** exponents).prod(1), len(powers), beta)
        return module, _potential, (torch.zeros(n, 1),), truth, stderr

    name = " ".join(map(str, powers)) if family == "normal crossing" else f"{len(powers)} directions"
    return Case(family, name, len(powers), make)


def _tanh(hidden: int, n: int = 1000) -> Case:
    def make() -> tuple[nn.Module, Loss, tuple[Tensor, ...], float, float]:
        inputs = torch.randn(n, 1, generator=torch.Generator().manual_seed(hidden))
        module = nn.Sequential(nn.Linear(1, hidden, bias=False), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        nn.init.zeros_(module[0].weight)
        nn.init.zeros_(module[2].weight)

        def loss(weights: Tensor) -> Tensor:
            first, second = weights.split(hidden, 1)
            outputs = torch.einsum("wh,wnh->wn", second, (first[:, None] * inputs[None].double()).tanh())
            return outputs.square().mean(1)

        truth, stderr = _by_prior(loss, 2 * hidden, n / math.log(n), draws=100_000, at_once=1000)
        return module, squared_error, (inputs, torch.zeros(n, 1)), truth, stderr

    return Case("tanh", f"{hidden} hidden", 2 * hidden, make)


def _by_prior(
    loss: Callable[[Tensor], Tensor], d: int, n_beta: float, *, draws: int = 4_000_000, at_once: int = 100_000
) -> tuple[float, float]:
    """Give E[n beta L] by weighting draws of the localizing Gaussian, whose precision is 1; and its standard error."""
    generator = torch.Generator().manual_seed(0)
    excess = torch.cat(
        [
            n_beta * loss(torch.randn(at_once, d, generator=generator, dtype=torch.float64))
            for _ in range(draws // at_once)
        ]
    )
    weight = (-excess).exp()
    share = weight / weight.sum()
    truth = float((share * excess).sum())
    return truth, float((share**2 * (excess - truth) ** 2).sum().sqrt())
