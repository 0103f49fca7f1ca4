"""The pictures of docs/landscape/samplers.md: biases measured beside the laws that foretell them."""

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
import torch
from torch import Tensor, nn

from assay.landscape.chains import Chains, begin
from assay.landscape.losses import squared_error
from assay.landscape.samplers import SAMPLERS, sampler_of
from assay.landscape.target import Target, target
from assay.landscape.walks import Walk, bias_of_loss
from assay.report.theme import config

N_BETA, GAMMA, COPIES = 20.0, 10.0, 24
BATCHES = {"all of the data": None, "batches of 8": 8}
WAYS: dict[str, tuple[str, dict[str, float], int | None]] = {
    **{data: ("sgld", {}, batch) for data, batch in BATCHES.items()},
    "preconditioned": ("psgld", {"adapt": 500}, None),
}


def laws() -> alt.VConcatChart:
    """The energy of a Gaussian, by every sampler and at several step sizes, and what its law foretells."""
    made, steps, rows = regression(), torch.tensor([1e-3, 2e-3, 4e-3, 8e-3]), list[dict[str, object]]()
    settings = {"psgld": {"adapt": 300}, "sghmc": {"friction": 10.0}, "baoab": {"friction": 10.0}}
    for name, kind in SAMPLERS.items():
        for data, batch in BATCHES.items():
            if kind.exact and batch:
                continue
            walk, _ = walked(made, name, settings.get(name, {}), steps, batch)
            energy = N_BETA * (walk.loss - made.loss(made.module, made.data).mean().item())
            energy = energy + GAMMA / 2 * walk.distance**2
            rows += summary(name, data, steps, energy.mean(1) / 3, (3 + walk.bias.mean(1)) / 3)
    return drawn(pd.DataFrame(rows), "energy over d/2", ("measured", "by its law"), ["by its law"])


def where_the_law_holds() -> alt.VConcatChart:
    """The learning coefficient of three networks by Langevin dynamics, raw and less its first-order bias."""
    rows: list[dict[str, object]] = []
    steps = torch.tensor([3e-4, 6e-4, 1.2e-3, 2.4e-3])
    for kind in (nn.Identity, nn.Tanh, nn.ReLU):
        made = network(kind)
        exact, _ = walked(made, "hmc", {"leapfrog": 8}, torch.tensor([1.5e-3] * 4), None)
        truth = float(N_BETA * exact.loss.mean())
        for data, (name, settings, batch) in WAYS.items():
            walk, bias = walked(made, name, settings, steps, batch)
            raw, bias = N_BETA * walk.loss.mean(1), bias.mean(1)
            label = "linear" if kind is nn.Identity else kind.__name__
            rows += summary(label, data, steps, raw / truth, (raw - bias) / truth)
    return drawn(
        pd.DataFrame(rows), "estimate over the exact one", ("raw", "less its bias"), ["raw", "less its bias"]
    )


def regression() -> Target:
    """Six weights of curvatures from 20 to 500, and residuals that make slopes differ from batch to batch."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 7, generator=generator))[0] * 8
    inputs = basis[:, :6] * torch.logspace(-0.3, 0.5, 6)
    module = nn.Sequential(nn.Linear(6, 1, bias=False))
    nn.init.zeros_(next(module.parameters()))
    return target(module, squared_error, (inputs, 0.5 * basis[:, 6:]))


def network(activation: type[nn.Module]) -> Target:
    """Three layers, of six hidden units each, that have learned their data without error."""
    generator, bias = torch.Generator().manual_seed(0), activation is not nn.Identity
    module = nn.Sequential(
        nn.Linear(3, 6, bias=bias), activation(), nn.Linear(6, 6, bias=bias), activation(), nn.Linear(6, 3, bias=bias)
    )  # fmt: skip
    for weight in module.parameters():
        spread = weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.3
        weight.data = torch.randn(weight.shape, generator=generator) * spread
    inputs = torch.randn(48, 3, generator=generator)
    return target(module, squared_error, (inputs, module(inputs).detach()))


def walked(
    made: Target, name: str, settings: Mapping[str, float], steps: Tensor, batch: int | None
) -> tuple[Walk, Tensor]:
    """Walk chains of every step size together, 24 of each, without the first third; and the bias of n beta L."""
    length = 200 if name == "hmc" else 800  # a trajectory is worth more than a step
    count = COPIES * len(steps)
    ones = torch.ones(count)
    chains = Chains(
        tuple(range(count)),
        steps.repeat_interleave(COPIES),
        ones * N_BETA,
        ones * GAMMA,
        batch_size=batch,
    )
    sampler = sampler_of(name, settings)
    walking = begin(made, chains, sampler)
    walking.advance(length)
    walk = walking.advance(2 * length)
    return walk, bias_of_loss(walk, chains, sampler)


def summary(which: str, data: str, steps: Tensor, one: Tensor, other: Tensor) -> list[dict[str, object]]:
    """Give the mean of each step size's chains with two standard errors; what diverged is left out."""
    rows: list[dict[str, object]] = []
    for index, step in enumerate(steps.tolist()):
        for kind, values in (("first", one), ("second", other)):
            part = values[index * COPIES : (index + 1) * COPIES]
            mean, stderr = float(part.mean()), float(part.std()) / COPIES**0.5
            if mean < 3:
                rows.append(
                    {"which": which, "data": data, "step size": step, "kind": kind, "value": mean,
                     "low": mean - 2 * stderr, "high": mean + 2 * stderr}
                )  # fmt: skip
    return rows


def drawn(frame: pd.DataFrame, title: str, names: tuple[str, str], lines: Sequence[str]) -> alt.VConcatChart:
    """Draw one panel for each network or sampler and way of taking the data; lines where lines are asked for."""
    frame = frame.assign(kind=frame["kind"].replace({"first": names[0], "second": names[1]}), one=1.0)
    color = alt.Color("kind:N", title=None, sort=list(names))
    ticks = alt.Axis(format="~e", values=sorted(frame["step size"].unique().round(6)), labelAngle=-45)
    x = alt.X("step size:Q", scale=alt.Scale(type="log", nice=False, padding=8), axis=ticks)
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    rows: list[alt.FacetChart] = []
    for data, part in frame.groupby("data", sort=False):
        panel = alt.Chart(part, width=105, height=110)
        base = panel.encode(x=x, color=color)
        points = base.transform_filter(f"datum.kind != {lines[0]!r} || {len(lines)} == 2")
        layers = alt.layer(
            panel.mark_rule(strokeDash=[3, 3], opacity=0.5, color="gray").encode(
                y=alt.Y("one:Q", title=title)
            ),
            base.mark_line().encode(y=y).transform_filter(alt.FieldOneOfPredicate("kind", list(lines))),
            points.mark_rule().encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
            points.mark_point(filled=True, size=30).encode(y=y),
        )
        column = alt.Column("which:N", title=str(data), sort=list(part["which"].unique()))
        rows.append(layers.facet(column=column))
    return alt.vconcat(*rows).resolve_scale(y="independent").configure(**config("light"))
