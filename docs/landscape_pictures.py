"""The pictures of the learning coefficient: one network, a plane of settings, and trainings of the zoo."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd
import torch
from torch import Tensor

import assay
from assay.landscape.experiments import experiment
from assay.zoo import deep_linear, gibbs

N = 500
Picture = alt.TopLevelMixin


def learning_coefficient() -> Picture:
    """Eight chains on a linear network of widths 4, 5, 4, beside the exact sampler."""
    generator = torch.Generator().manual_seed(0)
    anchor, data = linear((4, 5, 4), 2, generator)
    exact = gibbs.gibbs(
        anchor,
        n_beta=N / math.log(N),
        covariance=data[0].T @ data[0] / N,
        chains=64,
        sweeps=2000,
        generator=generator,
    )
    result = assay.learning_coefficient(deep_linear.as_module(anchor), "squared_error", data)
    return result.chart(truth=float(exact.mean()))


def calibrate() -> Picture:
    """Ten step sizes at five temperatures, beside Aoyagi's value."""
    widths, rank = (6, 8, 5), 2
    anchor, data = linear(widths, rank, torch.Generator().manual_seed(0))
    truth = assay.known.deep_linear(widths, rank).learning_coefficient
    return assay.calibrate(deep_linear.as_module(anchor), "squared_error", data).chart(truth=truth)


def known_truths() -> Picture:
    """What the exact sampler finds on chains of one-unit layers, of multiplicity 1 to 3, beside the law."""
    lines: list[dict[str, float | str]] = []
    points: list[dict[str, float | str]] = []
    temperatures = [10.0**power for power in range(1, 9)]
    for layers in (1, 2, 3):
        truth, called = assay.known.deep_linear([1] * (layers + 1), 0), f"m = {layers}"
        anchor = deep_linear.at_minimal_rank(torch.zeros(1, 1), [1] * (layers + 1))
        for n_beta in temperatures:
            excess = gibbs.gibbs(
                anchor,
                n_beta=n_beta,
                chains=300,
                sweeps=60,
                burn_in=60,
                generator=torch.Generator().manual_seed(layers),
            )
            each = excess.mean(1)
            mean, half = float(each.mean()), 2 * float(each.std()) / len(each) ** 0.5
            of = {"n_beta": n_beta, "multiplicity": called}
            points.append({**of, "excess": mean, "low": mean - half, "high": mean + half})
            lines.append({**of, "excess": truth.at(n_beta)})
    x = alt.X(
        "n_beta:Q", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=6), title="n beta"
    )
    y = alt.Y("excess:Q", title="E[n beta K]", scale=alt.Scale(domain=[0, 0.55], clamp=True))
    color = alt.Color("multiplicity:N", title=None)
    found = alt.Chart(pd.DataFrame(points), width=420, height=240)
    law = alt.Chart(pd.DataFrame(lines)).mark_line(strokeDash=[5, 4]).encode(x=x, y=y, color=color)
    whiskers = found.mark_rule().encode(x=x, y="low:Q", y2="high:Q", color=color)
    return law + whiskers + found.mark_point(filled=True, size=40, opacity=1).encode(x=x, y=y, color=color)


def refined_learning_coefficients() -> Picture:
    """The layers of a linear network of widths 12, 16, 10, 8, beside as many weights at random."""
    anchor, data = linear((12, 16, 10, 8), 4, torch.Generator().manual_seed(0))
    module = deep_linear.as_module(anchor)
    layers = {f"layer {number}": f"{number}.*" for number in range(3)}
    halves = {"first rows of layer 0": {"0.weight": (torch.arange(16) < 8)[:, None].expand(16, 12)}}
    parts = {**layers, **halves}
    result = assay.refined_learning_coefficients(module, "squared_error", data, parts, draws=4000)
    return result.chart()


def trajectory() -> Picture:
    """A narrow deep linear network from saddle to saddle."""
    return followed("dln_narrow")


def trajectory_dln() -> Picture:
    """A wide one."""
    return followed("dln")


def trajectory_induction() -> Picture:
    """The induction transformer through its bump."""
    return followed("induction")


def trajectory_modular_addition() -> Picture:
    """Modular addition through grokking."""
    return followed("modular_addition")


def trajectory_layernorm() -> Picture:
    """Sixteen toy LayerNorm networks."""
    return followed("toy_layernorm", runs=16)


def trajectory_layernorm_own() -> Picture:
    """Their LLC around drops in loss, with the distance from own outputs as the loss that is sampled."""
    return followed("toy_layernorm", part="around", runs=16, window=2)


def trajectory_layernorm_training() -> Picture:
    """The same with the training loss."""
    return followed("toy_layernorm", part="around", runs=16, window=2, sampled=None)


def followed(
    name: str, *, part: Literal["curves", "around"] = "curves", runs: int = 1, **settings: Any
) -> Picture:
    """Train an experiment and draw its trajectory.

    Args:
        name: of the experiment.
        part: of the chart.
        runs: networks trained.
        settings: of the trajectory, in the place of the experiment's own.
    """
    made = experiment(name, runs=runs)
    given = {**made.settings, **settings}
    result = assay.trajectory(made.module, made.loss, made.data, made.checkpoints, **given)
    return result.chart(part=part)


def linear(
    widths: Sequence[int], rank: int, generator: torch.Generator
) -> tuple[deep_linear.Weights, tuple[Tensor, Tensor]]:
    """Draw a linear network at a minimum of minimal rank, and data without noise.

    Args:
        widths: of its layers.
        rank: of its map.
        generator: of both.

    Returns:
        Its weights; inputs and outputs.
    """
    target = deep_linear.teacher(widths, rank, generator=generator)
    return deep_linear.at_minimal_rank(target, widths), deep_linear.examples(target, N, generator=generator)
