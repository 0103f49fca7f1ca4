import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from assay.errors import BadInput
from assay.estimates.convergence import convergence
from assay.landscape import estimators
from assay.landscape import target as target_module
from assay.landscape.defaults import stepping
from assay.landscape.learning_coefficient import LearningCoefficient, learning_coefficient
from assay.landscape.learning_coefficient_checks import judge
from assay.landscape.losses import squared_error
from assay.landscape.samplers.adjusted import AdjustedSGLD
from assay.landscape.samplers.persistent import PersistentSGLD
from assay.landscape.samplers.sgld import SGLD
from assay.landscape.target import target
from assay.runs.measurement import from_settings, settings
from assay.runs.result import Result
from assay.zoo import deep_linear
from assay.zoo.densities import Separable
from assay.zoo.gibbs import gibbs
from reference.landscape_slow import slow_walk


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def potential(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0])


def network(widths: tuple[int, ...], rank: int, n: int):
    target_map = deep_linear.teacher(widths, rank, generator=generator(1))
    anchor = deep_linear.at_minimal_rank(target_map, widths)
    return anchor, deep_linear.as_module(anchor), deep_linear.examples(target_map, n, generator=generator(2))


def verdicts(result: Result) -> dict[str, str]:
    return {check.code: check.verdict for check in result.checks}


@pytest.fixture(scope="module")
def measured() -> Result:
    _, module, data = network((3, 4, 3), 2, 60)
    return learning_coefficient(module, squared_error, data, step_size=1e-3, chains=6, draws=300, burn_in=200)


@pytest.mark.parametrize(
    ("widths", "rank", "batch"), [((3, 4, 3), 2, None), ((3, 3, 3, 2), 1, 20), ((4, 2, 3), 2, 20)]
)
def test_less_its_bias_the_estimate_is_that_of_the_exact_sampler(
    widths, rank: int, batch: int | None
) -> None:
    anchor, module, data = network(widths, rank, 100)
    n_beta = 100 / math.log(100)
    spread = data[0].T @ data[0] / 100
    exact = gibbs(anchor, n_beta=n_beta, covariance=spread, chains=32, sweeps=300, generator=generator())
    result = learning_coefficient(
        module, squared_error, data, step_size=5e-4, chains=16, draws=3000, burn_in=1500, batch_size=batch
    )
    found = result.dataset
    corrected = float(found["llc"])
    assert corrected == pytest.approx(float(found["llc_raw"] - found["llc_bias"]))
    stderr = math.hypot(float(found["llc_stderr"]), convergence(exact.numpy()).mcse)
    # three standard errors of both, and what the law of first order leaves out: as a share, the bias squared
    second_order = float(found["llc_bias"]) ** 2 / float(exact.mean())
    assert corrected == pytest.approx(float(exact.mean()), abs=3 * stderr + second_order)
    assert stderr < 0.05 * float(exact.mean())
    assert float(found["n_beta"]) == pytest.approx(n_beta)


def test_where_nothing_is_degenerate_it_is_half_the_parameters() -> None:
    """A quadratic, whose exact law under SGLD is known; localized it is the sum of (1/2) h / (h + gamma)."""
    n_beta, gamma, step = 50.0, 20.0, 5e-3
    result = learning_coefficient(
        Separable([2] * 10),
        potential,
        torch.zeros(4, 1),
        step_size=step,
        n_beta=n_beta,
        localization=gamma,
        chains=16,
        draws=1500,
        burn_in=100,
        momentum=0.0,
    )
    curvature = 2 * n_beta + gamma
    expected = 10 * n_beta / (curvature * (1 - step * curvature / 4))
    found = result.dataset
    assert float(found["llc_raw"]) == pytest.approx(expected, abs=4 * float(found["llc_stderr"]))
    # the law is exact here, and gamma, which holds a sixth of each direction, has its share of the bias of U
    exact = 10 * n_beta / curvature
    assert float(found["llc"]) == pytest.approx(exact, abs=4 * float(found["llc_stderr"]))
    assert float(found["llc_bias"]) == pytest.approx(expected - exact, rel=0.1)
    # the variance of the loss is another estimate of the same, whose bias is of first order only
    assert float(found["llc_variance"]) == pytest.approx(exact, rel=0.25)


def test_the_estimate_is_that_of_the_slow_walk() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    result = learning_coefficient(
        module,
        squared_error,
        data,
        step_size=1e-3,
        n_beta=12.0,
        chains=3,
        draws=30,
        burn_in=7,
        batch_size=9,
        seed=4,
    )
    expected: list[float] = []
    for chain in range(3):
        seed = int(np.random.SeedSequence([4, chain]).generate_state(1)[0])
        losses, _ = slow_walk(
            module, squared_error, data,
            seed=seed, step_size=1e-3, n_beta=12.0, localization=1.0, batch_size=9, steps=37,
        )  # fmt: skip
        expected.append(12 * float(losses[7:].double().mean()))
    assert float(result.dataset["llc_raw"]) == pytest.approx(np.mean(expected), rel=1e-4)
    assert float(result.dataset["llc"]) == pytest.approx(float(result.dataset["llc_per_chain"].mean()))


def test_chains_walked_in_groups_and_a_run_resumed_give_the_same(measured: Result, tmp_path) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    same = {"step_size": 1e-3, "chains": 6, "draws": 300, "burn_in": 200}
    grouped = learning_coefficient(module, squared_error, data, **same, chains_at_once=4, out=tmp_path)
    assert [unit["name"] for unit in grouped.manifest["units"]] == ["chains-000", "chains-004"]
    # batched products round differently in groups of another size
    np.testing.assert_allclose(grouped.dataset["llc_per_chain"], measured.dataset["llc_per_chain"], rtol=1e-3)
    again = learning_coefficient(module, squared_error, data, **same, chains_at_once=4, out=tmp_path)
    assert again.manifest["id"] == grouped.manifest["id"]
    xr.testing.assert_identical(again.dataset, grouped.dataset)


def test_settings_survive_json(measured: Result) -> None:
    measurement = measured.measurement
    assert from_settings("learning_coefficient", settings(measurement)) == measurement
    assert measurement.data_hash() == measured.manifest["data_hash"]


def test_memory_grows_with_the_chains_walked_together(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    made, measurement = target(module, squared_error, data), measured.measurement
    assert isinstance(measurement, LearningCoefficient)
    fewer = dataclasses.replace(measurement, chains_at_once=1)
    assert 0 < fewer.memory(made) < measurement.memory(made)


def test_other_seeds_and_masks_give_other_numbers(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    same = {"step_size": 1e-3, "chains": 6, "draws": 300, "burn_in": 200}
    other = learning_coefficient(module, squared_error, data, **same, seed=1).dataset
    assert float(other["llc"]) != float(measured.dataset["llc"])
    mask = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    part = learning_coefficient(
        module, squared_error, data, step_size=1e-3, draws=2000, burn_in=300, mask=mask
    ).dataset
    assert part.attrs["parameters"] == 12
    # one layer alone is a Gaussian of 2 x 3 stiff directions (the other layer has rank 2), less 2 % by gamma
    assert float(part["llc"] - part["llc_bias"]) == pytest.approx(3, abs=4 * float(part["llc_stderr"]) + 0.06)


def test_chains_that_agree_by_luck_do_not_make_the_interval_narrow(measured: Result) -> None:
    found = measured.dataset
    assert float(found["llc_stderr"]) >= float(found["llc_mcse"]) * (1 - 1e-12)
    _, module, data = network((3, 4, 3), 2, 60)
    made = target(module, squared_error, data)
    (unit,) = measured.measurement.plan(made)
    pieces = measured.measurement.measure(made, unit, measured.measurement.prepare(made))
    pieces["trace_loss"] -= (
        pieces["trace_loss"][:, 200:].mean(1, keepdim=True) - torch.linspace(1, 1.001, 6)[:, None]
    )
    alike = measured.measurement.combine(made, {unit.name: pieces})
    assert float(alike["llc_stderr"]) == pytest.approx(float(alike["llc_mcse"]))
    assert float(alike["llc_high"] - alike["llc"]) == pytest.approx(
        2.571 * float(alike["llc_mcse"]), rel=1e-3
    )  # Student's quantile at 5 degrees of freedom


def test_an_untrained_network_fails_as_no_minimum(measured: Result) -> None:
    assert verdicts(measured)["L202"] == "pass"
    data = network((3, 4, 3), 2, 60)[2]
    untrained = deep_linear.as_module(deep_linear.random_weights((3, 4, 3), generator=generator(9)))
    result = learning_coefficient(untrained, squared_error, data, step_size=1e-3, draws=50, burn_in=50)
    assert verdicts(result)["L202"] == "fail"
    # and no number, of whatever estimator, but the raw mean
    numbers = {
        name: float(result.dataset[name].mean()) for name in result.dataset if str(name).startswith("llc")
    }
    assert {str(name) for name, value in numbers.items() if not math.isnan(value)} <= {"llc_raw", "llc_bias"}
    assert "No estimate" in result.chart().to_dict()["title"]["subtitle"]


def test_a_chain_that_diverged_is_named_and_left_out(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    made, measurement = target(module, squared_error, data), measured.measurement
    (unit,) = measurement.plan(made)
    pieces = measurement.measure(made, unit, measurement.prepare(made))
    pieces["trace_loss"][2, 250:] = torch.nan
    dataset = measurement.combine(made, {unit.name: pieces})
    left = measured.dataset["llc_per_chain"].to_numpy()[[0, 1, 3, 4, 5]]
    assert float(dataset["llc"]) == pytest.approx(left.mean())
    first = judge(dataset)[0]
    assert (first.code, first.verdict) == ("L201", "fail")
    assert "Chains 2 ended" in first.message


def test_when_all_diverge_there_is_no_number() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    result = learning_coefficient(
        module, squared_error, data, step_size=10.0, draws=60, burn_in=0, momentum=0.0
    )
    assert math.isnan(float(result.dataset["llc"]))
    assert verdicts(result)["L201"] == "fail"
    assert result.chart().to_dict()


def test_chains_whose_steps_are_all_refused_fail_and_do_not_pass_for_a_narrow_interval() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    result = learning_coefficient(module, squared_error, data, step_size=10.0, draws=60, burn_in=0)
    assert result.dataset.attrs["exact"]
    assert float(result.dataset["llc"]) == pytest.approx(0, abs=1e-9)  # no chain ever left the anchor
    assert float(result.dataset["acceptance"].max()) < 0.01
    assert verdicts(result)["L209"] == "fail"


@pytest.mark.parametrize(
    ("code", "changes", "verdict"),
    [
        ("L203", {"r_hat": 1.2}, "warn"),
        ("L203", {"r_hat": 1.5, "llc": 10.0, "llc_low": 9.0, "llc_high": 11.0}, "fail"),
        ("L203", {"r_hat": 1.5, "llc": 10.0, "llc_low": 9.9, "llc_high": 10.1}, "warn"),
        ("L204", {"llc": 10.0, "llc_bias": 2.0}, "warn"),
        ("L204", {"llc": 10.0, "llc_bias": 4.0}, "fail"),
        ("L204", {"llc": 10.0, "llc_bias": 0.1}, "pass"),
        ("L204", {"llc": 10.0, "llc_bias": -2.0}, "warn"),
        ("L205", {"llc": 10.0, "drift": 0.5, "drift_stderr": 0.01}, "warn"),
        ("L205", {"llc": 10.0, "drift": -3.0, "drift_stderr": 0.1}, "fail"),
        ("L205", {"llc": 10.0, "drift": 3.0, "drift_stderr": 2.0}, "pass"),
        ("L205", {"llc": 10.0, "drift": 3.0, "drift_stderr": 0.57}, "pass"),  # 5.3 of six chains
        ("L206", {"ess": 40.0}, "warn"),
        ("L206", {"ess": 400.0}, "pass"),
        ("L202", {"llc": np.nan, "llc_raw": -3.0}, "fail"),
        ("L202", {"llc_raw": 3.0, "anchor_downhill": 4.0}, "fail"),
        ("L202", {"llc_raw": 30.0, "anchor_downhill": 0.7}, "warn"),
        ("L202", {"llc_raw": 30.0, "anchor_downhill": 0.4}, "pass"),
        ("L207", {"unexplored": 0.3}, "pass"),
        ("L207", {"unexplored": 0.7}, "warn"),
        ("L208", {"llc": 10.0, "llc_low": 9.6, "llc_high": 10.4}, "pass"),
        ("L208", {"llc": 10.0, "llc_low": 9.2, "llc_high": 10.8}, "warn"),
        ("L208", {"llc": 10.0, "llc_low": 8.8, "llc_high": 11.2}, "fail"),
        ("L209", {"acceptance": 0.9}, "pass"),
        ("L209", {"acceptance": 0.3}, "warn"),
        ("L209", {"acceptance": np.nan}, "pass"),
        ("L210", {"llc": 10.0, "sensitivity": 0.5, "sensitivity_low": 0.1}, "pass"),
        ("L210", {"llc": 10.0, "sensitivity": 0.5, "sensitivity_low": 0.4}, "warn"),
        ("L210", {"llc": 10.0, "sensitivity": 0.9, "sensitivity_low": 0.6, "degree": 2.1}, "fail"),
        ("L210", {"llc": 10.0, "sensitivity": 0.9, "sensitivity_low": 0.6, "degree": 3.9}, "warn"),
        (
            "L213",
            {"llc": 10.0, "llc_low": 9.9, "llc_high": 10.1, "llc_variance": 9.6, "llc_variance_low": 9.5},
            "pass",
        ),
        (
            "L213",
            {"llc": 10.0, "llc_low": 9.9, "llc_high": 10.1, "llc_variance": 9.0, "llc_variance_low": 8.5},
            "warn",
        ),
        (
            "L213",
            {"llc": 10.0, "llc_low": 9.9, "llc_high": 10.1, "llc_variance": 9.0, "llc_variance_low": 7.9},
            "pass",
        ),
    ],
)
def test_each_check_reads_its_figure(measured: Result, code: str, changes, verdict: str) -> None:
    (check,) = [each for each in judge(measured.dataset.assign(changes)) if each.code == code]
    assert check.verdict == verdict
    assert bool(check.remedy) == (verdict != "pass")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> Result:
    """Nothing chosen but what is asked for beside the estimate."""
    _, module, data = network((5, 7, 4), 2, 300)
    return learning_coefficient(
        module,
        squared_error,
        data,
        relative_error=0.04,
        second_temperature=3.0,
        fluctuation_draws=12,
        out=tmp_path_factory.mktemp("runs"),
    )


def test_with_nothing_chosen_it_is_what_the_exact_sampler_finds(chosen: Result) -> None:
    anchor, _, data = network((5, 7, 4), 2, 300)
    exact = gibbs(
        anchor, n_beta=300 / math.log(300), covariance=data[0].T @ data[0] / 300, generator=generator()
    )
    found = chosen.dataset
    stderr = math.hypot(float(found["llc_stderr"]), convergence(exact.numpy()).mcse)
    assert float(found["llc"]) == pytest.approx(float(exact.mean()), abs=3 * stderr)
    assert float(found["llc_high"] - found["llc"]) <= 0.04 * float(found["llc"])
    assert found.attrs["stopped"] == "interval"
    assert found.attrs["momentum"] == 0.9
    assert {check.code: check.verdict for check in chosen.checks if check.verdict != "pass"} == {}


def test_the_other_estimators_agree(chosen: Result) -> None:
    found = chosen.dataset
    llc = float(found["llc"])
    for name in ("llc_variance", "llc_slope"):
        assert float(found[name]) == pytest.approx(llc, abs=4 * float(found[f"{name}_stderr"]) + 0.05 * llc)
    n, n_beta = 300, float(found["n_beta"])
    assert float(found["wbic"]) == pytest.approx(n / n_beta * llc, rel=1e-4)  # the loss at the anchor is 0
    assert float(found["singular_fluctuation"]) > 0


def test_a_calibrated_run_again_and_in_pieces_is_the_same(chosen: Result, tmp_path) -> None:
    _, module, data = network((5, 7, 4), 2, 300)
    same = {"relative_error": 0.04, "second_temperature": 3.0, "fluctuation_draws": 12}
    again = learning_coefficient(module, squared_error, data, **same)
    xr.testing.assert_identical(again.dataset, chosen.dataset)
    given = {"budget": 1500, "chains": 5, "chains_at_once": 3}
    whole = learning_coefficient(module, squared_error, data, **given, out=tmp_path)
    assert whole.dataset.sizes["chain"] == 5
    assert len(set(whole.dataset["step_size"].values[:3])) == 1


def test_the_data_of_a_linear_network_are_summed_up_only_where_they_are_walked_on(
    monkeypatch,
) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    done: list[int] = []
    qr = torch.linalg.qr

    def counted(rows: torch.Tensor, **how: Any) -> Any:
        done.append(len(rows))
        return qr(rows, **how)

    monkeypatch.setattr(torch.linalg, "qr", counted)
    learning_coefficient(module, squared_error, data, draws=8, burn_in=100)
    assert done == [60] * 2  # to walk, and to follow the curvature


def regression(part: nn.Module) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(200, 6, generator=generator(1))
    module = nn.Sequential(part, nn.Linear(6, 1, bias=False))
    nn.init.zeros_(module[1].weight)
    return module, (x, torch.zeros(200, 1))


def test_dropout_that_is_asked_for_is_sampled_with_and_leaves_nothing_behind() -> None:
    """Dropout of a half doubles the squares of the inputs on average: other curvatures, and still d/2."""
    module, data = regression(nn.Dropout(0.5))
    same = {"draws": 600, "burn_in": 200, "step_size": 2e-3, "localization": 1e-3, "seed": 3}
    state = torch.get_rng_state()
    found = learning_coefficient(module, squared_error, data, training=True, **same)
    again = learning_coefficient(module, squared_error, data, training=True, **same)
    xr.testing.assert_identical(found.dataset, again.dataset)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.measurement.training == ("", "0", "1")
    assert found.dataset.attrs["momentum"] == 0
    assert float(found.dataset["llc"]) == pytest.approx(3, abs=4 * float(found.dataset["llc_stderr"]))
    plain = learning_coefficient(module, squared_error, data, **same, momentum=0.0)
    # inverse curvature: dropout doubles the second moments of the inputs
    ratio = float(plain.dataset["distance"][:, 300:].mean() / found.dataset["distance"][:, 300:].mean())
    assert ratio == pytest.approx(2**0.5, rel=0.1)
    in_eval = learning_coefficient(module.eval(), squared_error, data, training=True, **same)
    assert in_eval.measurement.training == ()


def test_batch_norms_that_stay_in_training_mode_keep_what_they_knew() -> None:
    module, data = regression(nn.BatchNorm1d(6, affine=False))
    data = (data[0] / 10, data[1])
    before = {name: part.clone() for name, part in module.named_buffers()}
    same = {"draws": 600, "burn_in": 200, "step_size": 2e-3, "localization": 1e-3, "momentum": 0.0}
    own, plain = (
        learning_coefficient(module, squared_error, data, training=training, **same).dataset
        for training in (True, False)
    )
    assert all(torch.equal(part, before[name]) for name, part in module.named_buffers())
    assert module.training
    assert float(own["llc"]) == pytest.approx(3, abs=4 * float(own["llc_stderr"]))
    # in eval mode it does not know that the inputs are a tenth as large
    assert float(plain["distance"][:, 300:].mean() / own["distance"][:, 300:].mean()) > 4


def test_a_burn_in_that_is_set_comes_on_top_of_a_budget_that_is_not(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    made, measurement = target(module, squared_error, data), measured.measurement
    assert isinstance(measurement, LearningCoefficient)
    free = dataclasses.replace(measurement, burn_in=None)
    assert measurement.steps(made) == free.steps(made) + 200


def test_a_second_temperature_neither_narrows_the_interval_nor_spends_the_budget() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    found = learning_coefficient(
        module, squared_error, data, relative_error=0.2, second_temperature=3.0, chains_at_once=1, chains=2
    ).dataset
    assert found.attrs["stopped"] == "interval"
    assert found.attrs["draws"] < 5000


def test_a_chain_that_diverged_at_the_second_temperature_is_left_out_of_both() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    made = target(module, squared_error, data)
    measurement = LearningCoefficient(
        data=made.data_hash(),
        loss="squared_error",
        second_temperature=2.0,
        step_size=1e-3,
        draws=40,
        burn_in=40,
    )
    (unit,) = measurement.plan(made)
    pieces = dict(measurement.measure(made, unit, measurement.prepare(made)))
    pieces["second_loss"] = pieces["second_loss"].clone()
    pieces["second_loss"][3, 50:] = math.nan
    found = measurement.combine(made, {unit.name: pieces})
    assert found["diverged"].values.tolist() == [number == 3 for number in range(8)]
    assert np.isfinite(found["llc_slope"])


@pytest.mark.parametrize("batch", [None, 20])
def test_where_not_all_data_are_looked_at_the_estimate_is_over_all_of_them_all_the_same(
    monkeypatch, batch: int | None
) -> None:
    _, module, (inputs, answers) = network((3, 4, 3), 2, 60)
    data = (inputs, answers + torch.randn(60, 3, generator=generator(5)))
    module = fitted(module, data)
    same = {"step_size": 1e-3, "draws": 400, "burn_in": 100, "n_beta": 12.0, "batch_size": batch}
    whole = learning_coefficient(module, squared_error, data, **same).dataset
    monkeypatch.setattr(target_module, "WORK", 5.5 * 24)  # five examples
    few = learning_coefficient(module, squared_error, data, **same).dataset
    looked = float(few["anchor_loss"]) == pytest.approx(float(whole["anchor_loss"]))
    assert looked == (batch is None)
    tolerance = 1e-3 if batch is None else 4 * float(whole["llc_stderr"])
    assert float(few["llc_raw"]) == pytest.approx(float(whole["llc_raw"]), abs=tolerance)
    # five examples have a minimum of their own, which is not held against the anchor
    assert float(few["anchor_downhill"]) < 0.1
    assert np.isfinite(few["llc"])


def fitted(module: nn.Module, data: tuple[torch.Tensor, ...]) -> nn.Module:
    """Bring a network to a minimum on noisy data."""
    descent = torch.optim.LBFGS(module.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        found = squared_error(module, data).mean()
        found.backward()
        return found

    descent.step(loss)
    return module


def test_the_budget_is_kept_and_named(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    found = learning_coefficient(
        module, squared_error, data, budget=1400, relative_error=0.001, bias_tolerance=0.02
    ).dataset
    assert found.attrs["burn_in"] + found.attrs["draws"] == 1400
    assert found.attrs["stopped"] == "budget"
    assert float(found["llc_bias"] / found["llc"]) < 0.05


@pytest.mark.parametrize("sampler", ["psgld", "sghmc", "sgnht", "baoab", "mala", "hmc"])
def test_every_sampler_calibrates_itself(sampler: str) -> None:
    result = learning_coefficient(
        Separable([2] * 12), potential, torch.zeros(50, 1), sampler=sampler, burn_in=250, draws=250
    )
    found = result.dataset
    n_beta = 50 / math.log(50)
    expected = 12 * n_beta / (2 * n_beta + 1)
    assert float(found["llc"]) == pytest.approx(expected, abs=4 * float(found["llc_stderr"]))
    assert found.attrs["sampler"] == sampler


def test_what_a_sampler_is_told_reaches_it_however_it_is_said() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    few = {"step_size": 1e-3, "draws": 30, "burn_in": 20, "chains": 2}

    def loss(**given: Any) -> np.ndarray:
        return learning_coefficient(module, squared_error, data, **few, **given).dataset["loss"].to_numpy()

    told = loss(sampler="baoab", sampler_settings={"friction": 7})
    np.testing.assert_array_equal(told, loss(sampler="baoab", sampler_settings=["friction=7.0"]))
    assert not np.array_equal(told, loss(sampler="baoab"))
    kept = loss(momentum=0.5)
    np.testing.assert_array_equal(kept, loss(sampler_settings=["adjusted=true", "momentum=0.5"]))
    assert not np.array_equal(kept, loss(sampler_settings={"adjusted": False, "momentum": 0.5}))


def test_many_parameters_and_batches_are_walked_without_accepting_or_rejecting() -> None:
    assert isinstance(stepping("sgld", {}, 32, None), AdjustedSGLD)
    assert stepping("sgld", {}, 33, None) == PersistentSGLD(0.9)
    assert stepping("sgld", {}, 2, 10) == stepping("sgld", {"momentum": 0.0}, 2, None) == SGLD()
    assert stepping("sgld", {"adjusted": True, "momentum": 0.0}, 99, None) == AdjustedSGLD(0.0)


def test_with_batches_there_is_no_momentum_and_no_variance() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    found = learning_coefficient(module, squared_error, data, batch_size=20, draws=100, burn_in=100).dataset
    assert found.attrs["momentum"] == 0
    assert found.attrs["batch_size"] == 20
    assert "llc_variance" not in found


@pytest.mark.parametrize("downhill", [0.0, 50.0])
def test_away_from_a_minimum_there_is_no_number_of_whatever_estimator(downhill: float) -> None:
    """Neither where chains found lower loss than the anchor's nor where a look downhill did."""
    data = network((3, 4, 3), 2, 60)[2]
    untrained = deep_linear.as_module(deep_linear.random_weights((3, 4, 3), generator=generator(9)))
    made = target(untrained, squared_error, data)
    measurement = LearningCoefficient(
        data=made.data_hash(),
        loss="squared_error",
        budget=600,
        second_temperature=2.0,
        fluctuation_draws=2,
    )
    (unit,) = measurement.plan(made)
    pieces = dict(measurement.measure(made, unit, measurement.prepare(made)))
    pieces["downhill"] = torch.tensor(downhill)
    if downhill:
        pieces["loss"] -= 10  # a number, were it not for the way down
    found = measurement.combine(made, {unit.name: pieces})
    assert np.isfinite(found["llc_raw"])
    estimates = ("llc", "wbic", "singular_fluctuation")
    told = [str(name) for name in found if str(name).startswith(estimates)]
    assert {"llc_per_chain", "llc_variance", "llc_slope", "wbic_low", "singular_fluctuation"} <= set(told)
    assert all(bool(found[name].isnull().all()) for name in told if name not in ("llc_raw", "llc_bias"))
    result = learning_coefficient(untrained, squared_error, data, budget=600)
    assert verdicts(result)["L202"] == "fail"
    assert result.chart().to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_error": 0.0}, "relative_error"),
        ({"bias_tolerance": 1.0}, "bias_tolerance"),
        ({"budget": 50}, "budget"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": 0.5, "sampler": "hmc"}, "no setting 'momentum'; it has leapfrog, jitter"),
        ({"momentum": 0.5, "sampler_settings": {"momentum": 0.5}}, "given twice"),
        ({"sampler_settings": {"friction": 5.0}}, "no setting 'friction'; it has momentum, adjusted"),
        ({"sampler_settings": ["friction"], "sampler": "baoab"}, "such as friction=5.0"),
        ({"sampler_settings": {"friction": -1.0}, "sampler": "baoab"}, "friction=-1.0"),
        ({"sampler_settings": {"leapfrog": 2.5}, "sampler": "hmc"}, "a whole number"),
        ({"sampler_settings": {"friction": math.nan}, "sampler": "sghmc"}, "expected a number"),
        ({"sampler_settings": {"adjusted": 1}}, "true or false"),
        ({"sampler_settings": {"adjusted": True}, "batch_size": 10}, "accepts or rejects"),
        ({"sampler": "psgld", "burn_in": 199}, "burn-in is 199 steps, and sampler 'psgld' adapts for 200"),
        ({"sampler": "psgld", "budget": 300}, "burn-in is 150 steps"),
        ({"step_size": "auto", "burn_in": 49}, "burn-in is 49 steps, and the step size"),
        ({"burn_in": 500, "budget": 507}, "burn_in=500 leaves no draws of budget=507"),
        ({"training": True, "sampler": "mala"}, "training=True with a sampler that accepts"),
        ({"training": True, "fluctuation_draws": 8}, "training=True with fluctuation_draws"),
        ({"second_temperature": 1.0}, "ratio above 1"),
        ({"fluctuation_draws": 1}, "fluctuation_draws"),
        ({"sampler": "mala", "batch_size": 8}, "all of the data"),
        ({"sampler": "nuts"}, "no such one"),
        ({"step_size": 0.0}, "step_size"),
        ({"n_beta": 0.0}, "n_beta"),
        ({"localization": -1.0}, "localization"),
        ({"chains": 1}, "at least 2"),
        ({"chains_at_once": -1}, "at least 1"),
        ({"draws": 7}, "at least 8"),
        ({"burn_in": -1}, "burn_in"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "an example or more"),
        ({"batch_size": 61}, "smaller batch"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, message: str) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    with pytest.raises(BadInput, match=message):
        learning_coefficient(module, squared_error, data, **{"step_size": 1e-3, **changes})


def test_other_data_than_the_settings_name_are_refused(measured: Result) -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    with pytest.raises(BadInput, match="other data"):
        measured.measurement.plan(target(module, squared_error, (data[0] + 1, data[1])))


def soft(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """A quadratic whose curvatures, times n beta = 50, lie from 0.5 to 500 around the localization; the last is 0."""
    (weights,) = module.parameters()
    curvatures = torch.cat([torch.logspace(-2, 1, len(weights) - 1), torch.zeros(1)])
    return (curvatures * weights**2).sum() / 2 + 0 * batch[0][:, 0]


@pytest.mark.parametrize(("localization", "verdict"), [(2.0, "fail"), (0.02, "pass")])
def test_what_the_localization_holds_down_is_measured_and_fails(localization: float, verdict: str) -> None:
    """Cov(n beta L, g) in closed form; a flat direction adds a half to what is held, and nothing to what is lacking."""
    curvatures = 50.0 * torch.cat([torch.logspace(-2, 1, 15), torch.zeros(1)]).double()
    free = curvatures / (curvatures + localization)
    result = learning_coefficient(
        Separable([2] * 16),
        soft,
        torch.zeros(100, 1),
        n_beta=50.0,
        localization=localization,
        sampler="hmc",
        sampler_settings={"leapfrog": 8},
        chains=16,
        burn_in=100,
        draws=600,
    )
    found = result.dataset
    for name, expected in (
        ("llc", free.sum() / 2),
        ("sensitivity", (free * (1 - free)).sum() / 2),
        ("llc_variance", (free**2).sum() / 2),
    ):
        assert float(found[f"{name}_stderr"]) < 0.1 * float(found["llc"])
        assert float(found[name]) == pytest.approx(float(expected), abs=4 * float(found[f"{name}_stderr"]))
    assert float(found["degree"]) == pytest.approx(2, rel=1e-4)
    held = (localization / (curvatures + localization)).sum() / 2
    if localization > 1:  # a flat direction is not explored otherwise
        assert float(found["held"]) == pytest.approx(float(held), rel=0.05)
        assert verdicts(result)["L213"] == "warn"
    assert verdicts(result)["L210"] == verdict


def test_with_batches_what_the_localization_holds_down_is_found_without_them() -> None:
    """A batch's loss and slope share its chance: only their covariance with the place is of use."""
    loss = torch.randn(4, 50, generator=generator()).numpy()
    draws = estimators.Draws(loss, np.zeros_like(loss), 3.0, 0.0)
    held = torch.rand(4, 50, generator=generator(1)).numpy()
    found = estimators.pull(draws, held, loss, whole=False)
    expected = [3 * np.cov(one, other)[0, 1] for one, other in zip(loss, held, strict=True)]
    assert found["sensitivity"] == pytest.approx(np.mean(expected))
    assert found["held"] == pytest.approx(held.mean())
    assert estimators.pull(draws, held[:1], loss, whole=False) == {}


def test_steps_of_another_kind_are_not_judged_by_a_langevin_step_and_the_heat_of_batches_is_told() -> None:
    _, module, data = network((3, 4, 3), 2, 60)
    few = {"step_size": 1e-3, "draws": 30, "burn_in": 20, "chains": 2, "sampler": "sgnht"}
    result = learning_coefficient(module, squared_error, data, batch_size=16, **few)
    assert bool(result.dataset["acceptance"].isnull().all())
    assert verdicts(result)["L214"] == "warn"
    assert verdicts(learning_coefficient(module, squared_error, data, **few))["L214"] == "pass"
