"""Whether an anchor is a minimum: gaps that are known, and minima that must pass."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import assay
from assay.landscape import minimum
from assay.landscape import target as target_module
from assay.landscape.minimum import downhill, each_loss, losses
from assay.landscape.target import Target, target
from assay.zoo import deep_linear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(module: nn.Sequential) -> nn.Linear:
    first = module[0]
    assert isinstance(first, nn.Linear)
    return first


def regression(
    gap: float,
    *,
    n: int = 4000,
    inputs: int = 20,
    scale: float = 1.0,
    softest: float = 1.0,
    bias: bool = False,
) -> tuple[nn.Sequential, tuple[torch.Tensor, torch.Tensor], float]:
    """A noisy linear regression whose anchor lies a gap above the least squares, in units of n beta L.

    Inputs have standard deviations from ``scale`` down to ``scale * softest``; the way off has equal shares of all.
    """
    spread = scale * torch.logspace(0, math.log10(softest), inputs)
    x = torch.randn(n, inputs, generator=generator(1)) * spread
    y = x @ torch.randn(inputs, 1, generator=generator(2)) + 0.3 * torch.randn(n, 1, generator=generator(3))
    best = torch.linalg.lstsq(x.double(), y.double()).solution[:, 0]
    off = (torch.randn(inputs, generator=generator(4)) / spread).double()
    n_beta = n / math.log(n)
    off *= math.sqrt(gap / n_beta / float((x.double() @ off).square().mean()))
    module = nn.Sequential(nn.Linear(inputs, 1, bias=False))
    with torch.no_grad():
        layer(module).weight.copy_(best + off)
    return module, (x, y), n_beta


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, 1.0),
        ({"scale": 0.3, "n": 40_000}, 1.0),  # the reviewer's: soft against the steps of a fixed ladder
        ({"scale": 100.0}, 1.0),
        ({"softest": 0.1}, 0.97),  # curvatures 100-fold apart, the softest held by the localization a little
        ({"softest": 0.03, "inputs": 50}, 0.8),
    ],
)
@pytest.mark.parametrize("gap", [0.0, 2.0, 15.0])
def test_the_gap_below_an_anchor_is_found(gap: float, settings: dict[str, Any], found: float) -> None:
    module, data, n_beta = regression(gap, **settings)
    made = target(module, "squared_error", data)
    gain = float(downhill(made, None, n_beta, 1.0))
    assert found * gap - 0.01 <= gain <= gap * 1.001 + 0.01


def test_a_gap_that_chains_do_not_reach_is_none_to_them() -> None:
    """Of the gap in a mode of curvature a the localized posterior gains 1 - (gamma / (a + gamma))^2."""
    module, data, n_beta = regression(3.0, inputs=1)
    curvature = 2 * n_beta * float(data[0].square().mean())
    gamma = 2 * curvature
    gain = float(downhill(target(module, "squared_error", data), None, n_beta, gamma))
    assert gain == pytest.approx(3 * (1 - (2 / 3) ** 2), rel=0.02)


def test_many_anchors_at_once_are_as_each_alone() -> None:
    module, data, n_beta = regression(15.0, softest=0.1)
    made = target(module, "squared_error", data)
    least = layer(regression(0.0, softest=0.1)[0]).weight.detach()
    anchors = torch.cat([made.anchor()[None], least, 3 * made.anchor()[None]])
    together = downhill(made, anchors, n_beta, 1.0)
    alone = torch.cat([downhill(made, anchor[None], n_beta, 1.0) for anchor in anchors])
    torch.testing.assert_close(together, alone, rtol=1e-2, atol=1e-2)
    assert float(together[1]) < 0.01
    assert torch.equal(made.anchor(), anchors[0])


def test_a_mask_confines_the_descent() -> None:
    module, data, n_beta = regression(15.0)
    mask = torch.zeros(20, dtype=torch.bool)
    mask[3] = True
    made = target(module, "squared_error", data, mask=mask)
    x, residual = data[0].double(), (data[0] @ layer(module).weight.detach().T - data[1]).double()
    slope, curvature = 2 * (x[:, 3:4] * residual).mean(), 2 * x[:, 3].square().mean()
    expected = float(n_beta * slope**2 / (2 * curvature))
    assert float(downhill(made, None, n_beta, 0.0)) == pytest.approx(expected, rel=1e-2)


def looked_at(monkeypatch: pytest.MonkeyPatch, made: Target, examples: int) -> None:
    monkeypatch.setattr(target_module, "WORK", made.d * examples)


@pytest.mark.parametrize(("gap", "verdict"), [(0.0, "pass"), (100.0, "fail")])
def test_examples_that_stand_for_all_have_a_minimum_of_their_own_that_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, gap: float, verdict: str
) -> None:
    module, data, n_beta = regression(gap)
    made = target(module, "squared_error", data)
    looked_at(monkeypatch, made, 200)
    assert made.seen == 200
    own = target(module, "squared_error", tuple(part[::20] for part in data))
    assert float(downhill(own, None, n_beta, 1.0)) > 2  # 20 directions, fitted to 200 examples
    gain = float(downhill(made, None, n_beta, 1.0))
    assert (0 <= gain < 0.1) if verdict == "pass" else (50 < gain < 110)


@pytest.mark.parametrize("size", ["small", "large", "without room"])
def test_a_minimum_passes_and_a_gap_does_not(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    if size == "without room":
        monkeypatch.setattr(minimum, "LEAN", 1)
    if size != "small":
        monkeypatch.setattr("assay.landscape.gradients.LARGE", 1)
        monkeypatch.setattr("assay.landscape.gradients.is_stack", lambda _: False)
        monkeypatch.setattr(minimum, "WORK", 0)
    few: dict[str, Any] = {"draws": 100, "burn_in": 100, "chains": 4, "step_size": 1e-3}
    for gap, verdict in ((0.0, "pass"), (0.7, "warn"), (3.0, "fail")):
        module, data, _ = regression(gap, n=300)
        result = assay.learning_coefficient(module, "squared_error", data, **few)
        assert float(result.dataset["anchor_downhill"]) == pytest.approx(gap, abs=0.02)
        assert {check.code: check.verdict for check in result.checks}["L202"] == verdict
        assert math.isnan(float(result.dataset["llc"])) == (verdict == "fail")


def test_a_deep_linear_network_that_learned_its_map_is_a_minimum() -> None:
    map_ = deep_linear.teacher((6, 9, 7, 5), 2, generator=generator(1))
    module = deep_linear.as_module(deep_linear.at_minimal_rank(map_, (6, 9, 7, 5)))
    made = target(module, "squared_error", deep_linear.examples(map_, 500, generator=generator(2)))
    assert abs(float(downhill(made, None, 80.0, 1.0))) < 1e-4


def test_dropout_has_a_minimum_of_its_own_in_each_draw() -> None:
    module, data, n_beta = regression(0.0)
    with_dropout = nn.Sequential(nn.Dropout(0.1), module[0])
    made = target(with_dropout, "squared_error", data)
    with torch.no_grad():  # the minimum over all draws: a ridge of p / (1 - p) times the diagonal
        second = data[0].double().T @ data[0].double() / made.n
        ridge = second + 0.1 / 0.9 * second.diagonal().diag()
        layer(module).weight.copy_(
            torch.linalg.solve(ridge, data[0].double().T @ data[1].double() / made.n).T
        )
    with_dropout.train()
    drawn = Target(made.module, made.loss, made.data, None, made.source, seeds=iter([0] * 1000))
    assert float(downhill(drawn, None, n_beta, 1.0)) < 0.5


def test_losses_are_the_mean_of_each() -> None:
    module, data, _ = regression(1.0, n=50)
    made = target(module, "squared_error", data)
    places = torch.stack([made.anchor(), 2 * made.anchor()])
    expected = torch.stack([((data[0] @ place - data[1][:, 0]) ** 2) for place in places])
    torch.testing.assert_close(each_loss(made, places), expected.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses(made, places), expected.double().mean(1), rtol=1e-4, atol=1e-5)
