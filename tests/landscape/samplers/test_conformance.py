"""Every sampler, at settings that are not its defaults, against targets whose law is known exactly."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.chains import Chains, Walking, begin
from assay.landscape.losses import squared_error
from assay.landscape.samplers import SAMPLERS, sampler_of
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.target import Target, target
from assay.landscape.walks import bias_of_loss
from assay.zoo import deep_linear
from assay.zoo.gibbs import gibbs

CHAINS = 400
N_BETA, GAMMA = 40.0, 3.0
CURVATURE = torch.tensor([0.2, 1.0, 4.0])
STIFF = N_BETA * CURVATURE + GAMMA  # 11, 43, 163
STEP = 4e-3
DEEP_GAMMA = 30.0


class Bowl(nn.Module):
    """The loss 1/2 (w - x) H (w - x) of each example x."""

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian)
        self.weight = nn.Parameter(torch.zeros(len(hessian)))

    def forward(self, inputs: Tensor) -> Tensor:
        away = self.weight - inputs
        return ((away @ self.get_buffer("hessian")) * away).sum(1) / 2


def bowl(hessian: Tensor) -> Target:
    """Inputs of mean zero, such that the choice of the batch adds the same variance to every slope."""
    drawn = torch.randn(8, len(hessian), generator=torch.Generator().manual_seed(0))
    drawn = torch.linalg.qr(drawn - drawn.mean(0))[0] * 8**0.5
    return target(Bowl(hessian), lambda module, batch: module(batch[0]), drawn @ torch.linalg.inv(hessian))


def chains(step: float, batch_size: int | None = None, masks: Tensor | None = None) -> Chains:
    setting = torch.tensor([[step] * CHAINS, [N_BETA] * CHAINS, [GAMMA] * CHAINS])
    return Chains(tuple(range(CHAINS)), setting[0], setting[1], setting[2], masks, batch_size)


@dataclass
class Row:
    """A sampler's settings, and the variance of a Gaussian of curvature h under slopes of extra variance c."""

    name: str
    settings: dict[str, Any]
    variance: Callable[[Walking, float, Tensor, float], Tensor]
    every: int = 10

    @property
    def sampler(self) -> Sampler:
        return sampler_of(self.name, self.settings)


def exact(walking: Walking, step: float, h: Tensor, c: float) -> Tensor:
    return 1 / h


def langevin(walking: Walking, step: float, h: Tensor, c: float) -> Tensor:
    step_of = step * getattr(walking.state, "scale", torch.ones(1, 1))
    return ((1 + step_of * c / 4) / (h * (1 - step_of * h / 4))).mean(0)


def hamiltonian(walking: Walking, step: float, h: Tensor, c: float) -> Tensor:
    lost = 1 - math.exp(-15.0 * step**0.5)
    return (1 + step * (c - 5.0) / (2 * lost)) / (h * (1 - step * h / (2 * (2 - lost))))


def underdamped(walking: Walking, step: float, h: Tensor, c: float) -> Tensor:
    kept = math.exp(-6.0 * step**0.5)
    return (1 + step * c * (1 + kept) / (4 * (1 - kept) * (1 - step * h / 4))) / h


ROWS = [
    Row("sgld", {}, langevin),
    Row("psgld", {"adapt": 60, "damping": 0.7}, langevin),
    Row("sghmc", {"friction": 15.0, "noise": 5.0}, hamiltonian),
    Row("sgnht", {"diffusion": 5.0, "inertia": 0.3}, exact),
    Row("baoab", {"friction": 6.0}, underdamped),
    Row("mala", {}, exact),
    Row("hmc", {"leapfrog": 4, "jitter": 0.35}, exact, every=2),
]
stochastic = [row for row in ROWS if not row.sampler.exact]


@pytest.fixture(scope="module")
def deep() -> tuple[Target, float]:
    """A deep linear network, and the energy its exact sampler finds, to 0.5 %."""
    widths, n = (3, 4, 3), 50
    drawn = deep_linear.teacher(widths, 2, generator=torch.Generator().manual_seed(1))
    anchor = deep_linear.at_minimal_rank(drawn, widths)
    data = deep_linear.examples(drawn, n, generator=torch.Generator().manual_seed(2))
    exactly = gibbs(
        anchor,
        n_beta=N_BETA,
        localization=DEEP_GAMMA,
        covariance=data[0].T @ data[0] / n,
        chains=40,
        sweeps=100,
        burn_in=50,
        generator=torch.Generator().manual_seed(3),
    )
    return target(deep_linear.as_module(anchor), squared_error, data), float(exactly.mean())


def ids(row: Row) -> str:
    return row.name


def positions(walking: Walking, draws: int, every: int) -> Tensor:
    """Positions after burn-in, (draw, chain, d)."""
    walking.advance(15 * every)
    kept: list[Tensor] = []
    for _ in range(draws):
        walking.advance(every)
        kept.append(walking.position.clone())
    return torch.stack(kept)


def close(values: Tensor, expected: Tensor | float, *, slack: float = 0.0) -> None:
    """Hold the mean over chains, which are independent, to an expectation: 4.5 of its own standard errors."""
    found, stderr = values.mean(0), values.std(0) / len(values) ** 0.5
    assert bool((stderr < 0.05 * found.abs()).all()), "too noisy to say anything"
    assert bool(((found - expected).abs() <= 4.5 * stderr + slack).all()), (found, expected, stderr)


def test_the_table_is_complete_and_no_setting_is_a_default() -> None:
    assert [row.name for row in ROWS] == list(SAMPLERS)
    for row in ROWS:
        defaults = {field.name: field.default for field in fields(SAMPLERS[row.name])}
        assert set(row.settings) == set(defaults)
        assert all(defaults[name] != value for name, value in row.settings.items())


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_a_gaussian_has_the_variance_that_the_law_gives(row: Row) -> None:
    walking = begin(bowl(CURVATURE.diag()), chains(STEP), row.sampler)
    drawn = positions(walking, 30, row.every)
    close(drawn.square().mean(0), row.variance(walking, STEP, STIFF, 0.0))
    close(1 + drawn.mean(0) * STIFF.sqrt(), 1.0)


@pytest.mark.parametrize("row", stochastic, ids=ids)
def test_batches_heat_as_the_law_says(row: Row) -> None:
    walking = begin(bowl(CURVATURE.diag()), chains(STEP, batch_size=16), row.sampler)
    drawn = positions(walking, 30, row.every)
    noise = N_BETA**2 / 16  # slopes of single examples have unit variance
    close(drawn.square().mean(0), row.variance(walking, STEP, STIFF, noise))


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_a_mask_gives_the_conditional_law_and_what_it_holds_never_moves(row: Row) -> None:
    hessian = torch.tensor([[2.0, 0.9, 0.6], [0.9, 1.0, 0.4], [0.6, 0.4, 1.5]])
    mask = torch.tensor([[True, False, True]])
    step = STEP / 8
    walking = begin(bowl(hessian), chains(step, masks=mask), row.sampler)
    drawn = positions(walking, 20, 2 * row.every)
    assert bool((drawn[:, :, 1] == 0).all())
    free = drawn[:, :, ::2]
    law = torch.linalg.inv((N_BETA * hessian + GAMMA * torch.eye(3))[::2, ::2])
    covariance = (free[..., :, None] * free[..., None, :]).mean(0)
    slack = float(step * 60 / 2) * float(
        law.max()
    )  # the largest curvature is 107, of which no law takes half
    assert slack < 0.1 * float(law.max())
    found = covariance.mean(0)
    stderr = covariance.std(0) / CHAINS**0.5
    assert bool(((found - law).abs() <= 4.5 * stderr + slack).all()), (found, law, stderr)


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_less_its_bias_a_deep_linear_network_has_the_energy_of_the_exact_sampler(
    row: Row, deep: tuple[Target, float]
) -> None:
    made, exactly = deep
    held = dataclasses.replace(chains(1e-3), localization=torch.full((CHAINS,), DEEP_GAMMA))
    walking = begin(made, held, row.sampler)
    walking.advance(40 * row.every)
    walk = walking.advance(40 * row.every)
    bias = bias_of_loss(walk, held, row.sampler)
    close(N_BETA * walk.loss.mean(1) - bias.mean(1), exactly, slack=0.03)
    # at rest the virial is half the number of coordinates, plus the bias
    close(walk.virial.mean(1) - walk.bias.mean(1), 12.0)


@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_chains_alone_take_the_steps_they_take_together(row: Row) -> None:
    made, whole = bowl(CURVATURE.diag()), chains(STEP)
    together = begin(made, whole, row.sampler)
    alone = begin(
        made,
        Chains((7,), *(part[:1] for part in (whole.step_size, whole.n_beta, whole.localization))),
        row.sampler,
    )
    together.advance(80), alone.advance(80)
    torch.testing.assert_close(together.position[7], alone.position[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.sampler.exact], ids=ids)
def test_what_accepts_or_rejects_refuses_batches(row: Row) -> None:
    with pytest.raises(BadInput, match="all of the data"):
        begin(bowl(CURVATURE.diag()), chains(STEP, batch_size=4), row.sampler)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("slgd", {}, "samplers are sgld"),
        ("sgld", {"friction": 1.0}, "no setting friction"),
        ("psgld", {"adapt": 1}, "adapt"),
        ("psgld", {"damping": 0.0}, "damping"),
        ("sghmc", {"friction": 0.0}, "friction"),
        ("sghmc", {"noise": -1.0}, "noise"),
        ("baoab", {"friction": -1.0}, "friction"),
        ("sgnht", {"diffusion": 0.0}, "diffusion"),
        ("sgnht", {"inertia": 0.0}, "inertia"),
        ("hmc", {"leapfrog": 0}, "leapfrog"),
        ("hmc", {"jitter": 1.0}, "jitter"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        sampler_of(name, settings)
