"""Experiments ready to be run: networks of the zoo trained with checkpoints, and how to measure them.

Each is what `assay.trajectory` takes. They take seconds to train; where nothing else is said the loss that is sampled
compares with each checkpoint's own outputs, so that every checkpoint is a minimum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.checkpoints import State
from assay.landscape.known import deep_linear as known_deep_linear
from assay.landscape.losses import Batch, Loss, OutputLoss, squared_error
from assay.zoo import deep_linear, induction, modular_addition, toy_layernorm
from assay.zoo.training import Training

DISTANCE = "squared_distance_to_anchor"
GENTLE: dict[str, Any] = {
    "sampled": "kl_to_anchor",
    "step_size": 3e-4,
    "localization": 30.0,  # chains are at rest within 2 / (step size * localization) = 220 steps
    "chains": 4,
    "burn_in": 300,
    "draws": 300,
}
"""Settings of the larger networks."""

EXACT: dict[str, Any] = {"sampled": DISTANCE, "sampler": "hmc"}
"""Settings where theory is known: a sampler without step size bias, so that the two can be told apart."""


@dataclass(frozen=True)
class Experiment:
    """What `assay.trajectory` takes.

    Attributes:
        module: the architecture.
        loss: whose curve is drawn.
        data: what losses are taken over.
        checkpoints: step -> weights, for each run.
        settings: further arguments, by name.
    """

    module: nn.Module
    loss: Loss
    data: Batch
    checkpoints: list[dict[int, State]]
    settings: dict[str, Any]


def saddle_to_saddle(runs: int, generator: torch.Generator) -> Experiment:
    """A wide deep linear network from small weights: `assay.zoo.deep_linear.train_many`, onto diag(10, 20, ..., 50).

    The learning coefficient of this network is 12.5 at every map of 5 x 5: it is wide enough to reach all others from
    any. What is drawn is that of the network which has just the rank learned so far, and chains are held so
    close that they do not leave it. The data are few examples with the second moments of the 1,024 trained on.
    """
    target = torch.diag(10.0 * torch.arange(1, 6))
    inputs = torch.rand(1024, 5, generator=generator)
    trained = deep_linear.train_many(runs, (inputs, inputs @ target), generator=generator)
    few = deep_linear.few_examples(inputs)
    settings = {
        **EXACT,
        "step_size": 1.2e-7,
        "n_beta": 1500.0,  # ten times n / ln n, which is not yet large: the exact sampler gives 4 to 9% less there
        "localization": 1000.0,
        "chains": 8,
        "burn_in": 60,
        "draws": 120,
        "checkpoints_at_once": 2,
        "window": 2,
        "share": 0.02,  # the fourth drop is a fortieth of the first
        "known": [
            known_deep_linear((5, rank, rank, rank, 5), rank).learning_coefficient for rank in range(6)
        ],
    }
    return _of(trained, squared_error, (few, few @ target), settings)


def saddle_to_saddle_narrow(runs: int, generator: torch.Generator) -> Experiment:
    """A deep linear network of widths 10, 4, 4, 10 from small weights: its map gains one rank after the other.

    It is too narrow to reach maps of a higher rank regularly, so that its learning coefficient rises with each. The
    data have E[x x^T] = 1 exactly, so that the loss is the squared distance of the realised map from the target.
    """
    widths, n_beta = (10, 4, 4, 10), 1000.0
    left, right = (torch.linalg.qr(torch.randn(10, 10, generator=generator))[0][:, :4] for _ in range(2))
    target = (left * torch.tensor([2.0, 1.6, 1.3, 1.1])) @ right.T
    start = deep_linear.random_weights(widths, generator=generator, scale=0.05, seeds=runs)
    trained = deep_linear.train(start, target, rate=0.02, steps=3000, keep_every=30)
    inputs = 10**0.5 * torch.eye(10)
    checkpoints: list[dict[int, State]] = [
        {
            step: {f"{layer}.weight": weight[run] for layer, weight in enumerate(weights)}
            for step, weights in zip(trained.steps, trained.checkpoints, strict=True)
        }
        for run in range(runs)
    ]
    module = deep_linear.as_module(tuple(layer[0] for layer in trained.checkpoints[0]))
    settings = {
        **EXACT,
        "step_size": 6e-5,
        "n_beta": n_beta,
        "localization": 5.0,
        "chains": 16,
        "burn_in": 200,
        "draws": 600,
        "checkpoints_at_once": 16,
        "window": 4,
        "known": [known_deep_linear(widths, rank).at(n_beta) for rank in range(5)],
    }
    return Experiment(module, squared_error, (inputs, inputs @ target.T), checkpoints, settings)


def layernorm(runs: int, generator: torch.Generator) -> Experiment:
    """The toy LayerNorm network of `assay.zoo.toy_layernorm` at every fiftieth of 100,000 steps."""
    trained = toy_layernorm.train_many(runs, generator=generator)
    return _toy(trained, generator, {"step_size": 2e-4, "window": 10})


def without_layernorm(runs: int, generator: torch.Generator) -> Experiment:
    """The twin of `layernorm` without its LayerNorm, at a rate at which it does not diverge; it is soon done."""
    trained = toy_layernorm.train_many(
        runs, layer_norm=False, steps=2000, keep_every=40, rate=1e-5, generator=generator
    )
    # its step size is small: with fewer steps chains still disagree
    return _toy(trained, generator, {"burn_in": 400, "draws": 600})


def _toy(trained: Training, generator: torch.Generator, settings: dict[str, Any]) -> Experiment:
    common = {
        "sampled": DISTANCE,
        "localization": 200.0,
        "chains": 4,
        "burn_in": 80,
        "draws": 120,
        "batch_size": 64,
        "checkpoints_at_once": 32,
    }
    inputs = toy_layernorm.examples(256, generator=generator)
    # a loss of outputs is differentiated by hand
    return _of(trained, OutputLoss(_first_unit), (inputs, inputs[:, 0]), {**common, **settings})


def _first_unit(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of the first output, as `toy_layernorm.loss` has it."""
    return (outputs[:, 0] - targets).square()


def grokking(runs: int, generator: torch.Generator) -> Experiment:
    """Modular addition, p = 23: learned by heart first, understood later. The loss drawn is that of all pairs."""
    train, rest = modular_addition.examples(23, 0.5, generator=generator)
    trained = modular_addition.train_many(runs, train, generator=generator)
    whole = tuple(torch.cat(parts) for parts in zip(train, rest, strict=True))
    settings = {**GENTLE, "batch_size": 128, "window": 4}
    return _of(trained, modular_addition.loss, whole, settings)


def bump(runs: int, generator: torch.Generator) -> Experiment:
    """The induction transformer of `assay.zoo.induction` through its bump."""
    trained = induction.train_many(runs, steps=1500, keep_every=50, generator=generator)
    data = (induction.examples(256, generator=generator),)
    # long enough that split R-hat is below 1.05: chains are at rest within 70 steps
    longer = {"step_size": 1e-3, "draws": 1200}
    settings = {**GENTLE, **longer, "batch_size": 4, "window": 3}
    return _of(trained, induction.loss, data, settings)


def _of(trained: Training, loss: Loss, data: Batch, settings: dict[str, Any]) -> Experiment:
    checkpoints: list[dict[int, State]] = [dict(trained.states(run)) for run in range(trained.seeds)]
    return Experiment(trained.module, loss, data, checkpoints, settings)


EXPERIMENTS: dict[str, Callable[[int, torch.Generator], Experiment]] = {
    "dln": saddle_to_saddle,
    "dln_narrow": saddle_to_saddle_narrow,
    "toy_layernorm": layernorm,
    "toy_without_layernorm": without_layernorm,
    "modular_addition": grokking,
    "induction": bump,
}
"""Every experiment by its name."""


def experiment(name: str, *, runs: int = 1, seed: int = 0) -> Experiment:
    """Train the networks of an experiment.

    Args:
        name: a key of `EXPERIMENTS`.
        runs: networks trained, each from a seed of its own, in one batched call.
        seed: of data, weights and batches of training.

    Raises:
        BadInput: there is no such experiment, or no run.
    """
    if name not in EXPERIMENTS:
        raise BadInput(
            f"experiment {name!r}: there is no such one; experiments are {', '.join(EXPERIMENTS)}."
        )
    if runs < 1 or seed < 0:
        raise BadInput(f"runs={runs}, seed={seed}: train one network at least, from a seed of 0 or more.")
    return EXPERIMENTS[name](runs, torch.Generator().manual_seed(seed))
