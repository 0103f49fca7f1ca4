"""The accuracy suite's networks, each with what a perfect sampler would find: fixed seeds, nothing tuned to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from assay.landscape import known
from assay.landscape.losses import Loss, squared_error
from assay.zoo import deep_linear
from assay.zoo.densities import NormalCrossing, Separable
from assay.zoo.gibbs import gibbs

SIZES = ((1e2, 1e3, 26), (1e3, 1e4, 26), (1e4, 1e5, 12), (3.4e4, 1e5, 6))
"""Deep linear networks: parameters from, to, and how many of them."""
LARGE_SIZES = ((1e6, 1e7, 4), (1e7, 1e8, 4))
"""The same of those for a GPU."""
SEED = 2026
LARGE = "large deep linear"
"""Their family, which is asked for by name."""
MANY = 10**6
"""Examples for which the second moments of a large network's few inputs stand."""
CHAINS, SWEEPS, BURN_IN = 8, 200, 600
"""Of the exact sampler, for every linear network."""

Made = tuple[nn.Module, Loss, tuple[Tensor, ...]]
"""Module, loss and data, as `assay.learning_coefficient` takes them."""


@dataclass(frozen=True)
class Oracle:
    """What a perfect sampler finds at this temperature and localization.

    Attributes:
        truth: n beta times the expected excess loss.
        stderr: its standard error, 0 for a closed form.
        freedom: degrees of freedom of the standard error; None for very many.
    """

    truth: float
    stderr: float = 0.0
    freedom: int | None = None


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        family: of networks.
        name: within its family.
        parameters: of the network.
        make: gives module, loss and data.
        oracle: says what a perfect sampler finds.
        n_beta: what is asked for; n / ln n when None.
    """

    family: str
    name: str
    parameters: int
    make: Callable[[], Made]
    oracle: Callable[[], Oracle]
    n_beta: float | None = None


def cases() -> list[Case]:
    """Give all of them; sizes are mixed, so that part of a suite tells of all of it."""
    linear = [_linear("deep linear", *net) for net in _networks(SIZES, (4, 200), SEED)]
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
    large = [
        large_linear(widths, rank, seed)
        for widths, rank, _, seed in _networks(LARGE_SIZES, (300, 6000), SEED)
    ]
    return [*linear, *reduced, *densities, *(_tanh(hidden) for hidden in (1, 2, 3)), *large]


def _networks(
    sizes: Sequence[tuple[float, float, int]], between: tuple[int, int], seed: int
) -> list[tuple[tuple[int, ...], int, int, int]]:
    """Draw widths, rank, number of examples and seed of deep linear networks."""
    rng = np.random.default_rng(seed)
    narrowest, widest = math.log(between[0]), math.log(between[1])
    found: list[tuple[tuple[int, ...], int, int, int]] = []
    for low, high, count in sizes:
        wanted = len(found) + count
        while len(found) < wanted:
            layers = int(rng.integers(2, 7))
            widths = tuple(round(math.exp(rng.uniform(narrowest, widest))) for _ in range(layers + 1))
            parameters = sum(left * right for left, right in zip(widths, widths[1:], strict=False))
            if low <= parameters <= high:
                rank, n = int(rng.integers(0, min(widths) + 1)), int(rng.choice([1000, 2000, 4000]))
                found.append((widths, rank, n, len(found)))
    ends = list(np.cumsum([0, *(count for _, _, count in sizes)]))
    classes = [found[start:stop] for start, stop in zip(ends, ends[1:], strict=False)]
    share = {id(net): (place + 0.5) / len(each) for each in classes for place, net in enumerate(each)}
    return sorted(found, key=lambda net: share[id(net)])


def _linear(family: str, widths: tuple[int, ...], rank: int, n: int, seed: int) -> Case:
    def drawn() -> tuple[deep_linear.Weights, tuple[Tensor, Tensor], torch.Generator]:
        generator = torch.Generator().manual_seed(seed)
        target = deep_linear.teacher(widths, rank, generator=generator)
        anchor = deep_linear.at_minimal_rank(target, widths)
        return anchor, deep_linear.examples(target, n, generator=generator), generator

    def make() -> Made:
        anchor, data, _ = drawn()
        return deep_linear.as_module(anchor), squared_error, data

    def oracle() -> Oracle:
        anchor, data, generator = drawn()
        excess = gibbs(
            anchor,
            n_beta=n / math.log(n),
            covariance=data[0].T @ data[0] / n,
            chains=CHAINS,
            sweeps=SWEEPS,
            burn_in=BURN_IN,
            generator=generator,
        )
        each = excess.mean(1)
        return Oracle(float(each.mean()), float(each.std() / CHAINS**0.5), CHAINS - 1)

    parameters = sum(left * right for left, right in zip(widths, widths[1:], strict=False))
    return Case(family, f"{'-'.join(map(str, widths))} rank {rank} n {n}", parameters, make, oracle)


def large_linear(widths: tuple[int, ...], rank: int, seed: int) -> Case:
    """Make a network too large for the exact sampler, on few inputs whose second moments are those of all.

    Its truth is the closed form, from which the exact sampler was seen to lie at most 0.7 % off at this temperature,
    on five networks of 7,200 to 10,800 parameters.
    """
    n_beta = MANY / math.log(MANY)

    def make() -> Made:
        target = deep_linear.teacher(widths, rank, generator=torch.Generator().manual_seed(seed))
        inputs = torch.eye(widths[0]) * widths[0] ** 0.5
        module = deep_linear.as_module(deep_linear.at_minimal_rank(target, widths))
        return module, squared_error, (inputs, inputs @ target.T)

    def oracle() -> Oracle:
        return Oracle(known.deep_linear(widths, rank).at(n_beta))

    parameters = sum(left * right for left, right in zip(widths, widths[1:], strict=False))
    return Case(LARGE, f"{'-'.join(map(str, widths))} rank {rank}", parameters, make, oracle, n_beta)


def _potential(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return module(batch[0])


def _density(family: str, module: nn.Module, powers: list[int], n: int = 1000) -> Case:
    def make() -> Made:
        return module, _potential, (torch.zeros(n, 1),)

    def oracle() -> Oracle:
        beta = n / math.log(n)
        if family == "quadratic":  # h of the loss against gamma = 1 in each direction
            return Oracle(len(powers) * beta / (2 * beta + 1))
        exponents = torch.tensor(powers, dtype=torch.float64)
        return _by_prior(lambda w: (w.abs() ** exponents).prod(1), len(powers), beta)

    name = " ".join(map(str, powers)) if family == "normal crossing" else f"{len(powers)} directions"
    return Case(family, name, len(powers), make, oracle)


def _tanh(hidden: int, n: int = 1000) -> Case:
    inputs = torch.randn(n, 1, generator=torch.Generator().manual_seed(hidden))

    def make() -> Made:
        module = nn.Sequential(nn.Linear(1, hidden, bias=False), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        for layer in module.parameters():
            nn.init.zeros_(layer)
        return module, squared_error, (inputs, torch.zeros(n, 1))

    def loss(weights: Tensor) -> Tensor:
        first, second = weights.split(hidden, 1)
        outputs = torch.einsum("wh,wnh->wn", second, (first[:, None] * inputs[None].double()).tanh())
        return outputs.square().mean(1)

    def oracle() -> Oracle:
        return _by_prior(loss, 2 * hidden, n / math.log(n), draws=100_000, at_once=1000)

    return Case("tanh", f"{hidden} hidden", 2 * hidden, make, oracle)


def _by_prior(
    loss: Callable[[Tensor], Tensor], d: int, n_beta: float, *, draws: int = 4_000_000, at_once: int = 100_000
) -> Oracle:
    """Give E[n beta L] by weighting draws of the localizing Gaussian, whose precision is 1."""
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
    return Oracle(truth, float((share**2 * (excess - truth) ** 2).sum().sqrt()))
