"""Refined learning coefficients against closed forms, and against the coefficient of each part by itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.learning_coefficient import learning_coefficient
from assay.landscape.losses import squared_error
from assay.landscape.parts import Parts
from assay.landscape.refined_learning_coefficients import (
    RefinedLearningCoefficients,
    refined_learning_coefficients,
)
from assay.runs.measurement import from_settings, settings
from assay.runs.result import Result
from assay.zoo import deep_linear

N_BETA, GAMMA = 300.0, 2.0


class TwoLines(nn.Module):
    """Two linear maps whose outputs add up: quadratic in the weights of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1, bias=False), nn.Linear(5, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.first(inputs[:, :3]) + self.second(inputs[:, 3:])


def material() -> tuple[TwoLines, tuple[Tensor, Tensor]]:
    """The two maps at the least squares, and noisy data."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 8, generator=generator) * torch.logspace(0, -1.0, 8)
    targets = torch.randn(200, 1, generator=generator)
    best = torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()
    module = TwoLines()
    module.first.weight.data, module.second.weight.data = best[:3].T.clone(), best[3:].T.clone()
    return module, (inputs, targets)


def exact(inputs: Tensor, part: slice) -> float:
    r"""With a the eigenvalues of n beta H in the part's weights: :math:`\frac12 \sum a / (a + \gamma)`."""
    of = inputs[:, part].double()
    stiff = torch.linalg.eigvalsh(N_BETA * 2 * of.T @ of / len(of))
    return float((stiff / (stiff + GAMMA)).sum() / 2)


@pytest.fixture(scope="module")
def found() -> Result:
    module, data = material()
    return refined_learning_coefficients(
        module, squared_error, data, ["first.weight", "second.weight"],
        n_beta=N_BETA, localization=GAMMA, chains=6, draws=2000, burn_in=500,
    )  # fmt: skip


def test_parts_of_a_quadratic_are_what_their_curvature_says(found: Result) -> None:
    inputs, dataset = material()[1][0], found.dataset
    for name, part in (("first.weight", slice(0, 3)), ("second.weight", slice(3, 8))):
        one = dataset.sel(part=name)
        assert abs(float(one["llc"]) - exact(inputs, part)) < 4 * float(one["llc_stderr"])
        assert float(one["llc_stderr"]) < 0.05 * float(one["llc"])
    assert dataset["parameters"].values.tolist() == [3, 5]
    assert bool(dataset["at_minimum"].all())
    assert {check.verdict for check in found.checks} == {"pass"}


def test_layers_of_a_linear_network_are_what_their_curvature_says() -> None:
    """The network of the docs page, whose exact values stand there."""
    generator, widths = torch.Generator().manual_seed(0), (12, 16, 10, 8)
    target = deep_linear.teacher(widths, 4, generator=generator)
    first, second, third = weights = deep_linear.at_minimal_rank(target, widths)
    data = deep_linear.examples(target, 500, generator=generator)
    result = refined_learning_coefficients(
        deep_linear.as_module(weights), "squared_error", data, draws=2000, baseline=False
    )
    covariance, after = data[0].T @ data[0] / len(data[0]), third @ second
    before = second @ first
    curvatures = [
        (after.T @ after, covariance),
        (third.T @ third, first @ covariance @ first.T),
        (torch.eye(8), before @ covariance @ before.T),
    ]
    exact: list[float] = []
    for name, (left, right) in zip(("0.*", "1.*", "2.*"), curvatures, strict=True):
        each = torch.outer(torch.linalg.eigvalsh(left.double()), torch.linalg.eigvalsh(right.double()))
        stiff = 2 * float(result.dataset["n_beta"]) * each.clamp_min(0)
        exact.append(float((stiff / (stiff + 1)).sum() / 2))
        one = result.dataset.sel(part=name)
        assert abs(float(one["llc"]) - exact[-1]) < 4 * float(one["llc_stderr"])
        assert float(one["llc_stderr"]) < 0.05 * float(one["llc"])
    assert exact == pytest.approx([23.9, 8.0, 15.9], abs=0.05)


def test_another_sampler_finds_the_same() -> None:
    module, data = material()
    dataset = refined_learning_coefficients(
        module, squared_error, data, ["second.weight"], sampler="baoab", sampler_settings={"friction": 3.0},
        n_beta=N_BETA, localization=GAMMA, draws=3000, burn_in=500, baseline=False, source="two lines",
    ).dataset  # fmt: skip
    one = dataset.sel(part="second.weight")
    assert abs(float(one["llc"]) - exact(data[0], slice(3, 8))) < 4 * float(one["llc_stderr"])
    assert float(one["llc_stderr"]) < 0.1 * float(one["llc"])
    assert dataset.attrs["model"] == "two lines"


def test_random_parts_of_the_same_size_stand_beside(found: Result) -> None:
    dataset = found.dataset
    assert bool((dataset["baseline_llc"] > 0).all())
    assert bool((dataset["baseline_llc"] <= dataset["parameters"] / 2).all())
    assert bool((dataset["baseline_llc_low"] < dataset["baseline_llc"]).all())


def test_a_part_is_what_the_coefficient_of_its_mask_is(found: Result) -> None:
    module, data = material()
    alone = learning_coefficient(
        module,
        squared_error,
        data,
        n_beta=N_BETA,
        localization=GAMMA,
        mask="second.weight",
        draws=8000,
        burn_in=2000,
    ).dataset
    part = found.dataset.sel(part="second.weight")
    together = float(np.hypot(part["llc_stderr"], alone["llc_stderr"]))
    assert abs(float(part["llc"] - alone["llc"])) < 4 * together


@pytest.mark.parametrize("together", [1, 2])
def test_one_after_the_other_is_the_same(together: int) -> None:
    module, data = material()

    def llc(**settings: Any) -> np.ndarray:
        kept = refined_learning_coefficients(
            module, squared_error, data, chains=2, draws=20, burn_in=50, batch_size=16, seed=3, **settings
        )
        return kept.dataset["llc_per_chain"].values

    np.testing.assert_allclose(llc(parts_at_once=together), llc(), rtol=1e-3)


def test_large_modules_go_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = material()
    monkeypatch.setattr(Parts, "together", False)
    made = refined_learning_coefficients(
        module, squared_error, data, {"own": "second.weight"},
        n_beta=N_BETA, localization=GAMMA, draws=4000, burn_in=1000, sampler_settings={"momentum": 0.5},
    )  # fmt: skip
    one = made.dataset.sel(part="own")
    assert abs(float(one["llc"]) - exact(data[0], slice(3, 8))) < 4 * float(one["llc_stderr"])
    assert "baseline_llc" not in made.dataset


def test_away_from_a_minimum_there_is_no_number() -> None:
    module, data = material()
    module.first.weight.data += 0.5
    made = refined_learning_coefficients(module, squared_error, data, draws=200, burn_in=100, baseline=False)
    assert not bool(made.dataset["at_minimum"].sel(part="first.*"))
    assert np.isnan(made.dataset["llc"].sel(part="first.*"))
    (judged,) = [check for check in made.checks if check.code == "L401"]
    assert judged.verdict != "pass"
    assert "first.*" in judged.message


def test_chains_that_fly_apart_are_named() -> None:
    module, data = material()
    made = refined_learning_coefficients(
        module, squared_error, data, ["first.weight"], step_size=10.0, draws=400, burn_in=100, baseline=False
    )
    (judged,) = [check for check in made.checks if check.code == "L402"]
    assert judged.verdict == "fail"


def test_settings_are_kept(found: Result) -> None:
    assert from_settings(RefinedLearningCoefficients.name, settings(found.measurement)) == found.measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parts": []}, "pass a list of names"),
        ({"parts": ["third.weight"]}, "is no parameter's name"),
        ({"parts": ["first.*", "first.*"]}, "twice"),
        ({"parts": {"mine": {"first.weight": torch.ones(2, dtype=torch.bool)}}}, "expected a tensor of bool"),
        (
            {"parts": {"mine": {"frist.weight": torch.ones(1, 3, dtype=torch.bool)}}},
            "names .'frist.weight'., which",
        ),
        ({"chains": 1}, "at least 2"),
        ({"parts_at_once": 0}, "at least 1"),
        ({"n_beta": 0.0}, "above 0"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    module, data = material()
    with pytest.raises(BadInput, match=message):
        refined_learning_coefficients(module, squared_error, data, **changed)
