import math
import sys
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from assay.errors import BadInput
from assay.estimates.convergence import convergence
from assay.landscape.experiments import EXPERIMENTS, Experiment, experiment
from assay.landscape.learning_coefficient import learning_coefficient
from assay.landscape.losses import squared_error
from assay.landscape.trajectory import Trajectory, trajectory
from assay.landscape.trajectory_checks import judge
from assay.landscape.transitions import transitions
from assay.runs.measurement import from_settings, settings
from assay.runs.result import Result
from assay.zoo import deep_linear
from assay.zoo.gibbs import gibbs

WIDTHS = (4, 3, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TARGET = deep_linear.teacher(WIDTHS, 2, generator=generator())
INPUTS = 2 * torch.eye(4)  # so that E[x x^T] = 1
DATA = (INPUTS, INPUTS @ TARGET.T)
TRAINED = deep_linear.train(
    deep_linear.random_weights(WIDTHS, generator=generator(1), scale=0.05),
    TARGET,
    rate=0.02,
    steps=500,
    keep_every=50,
)
MODULE = deep_linear.as_module(TRAINED.checkpoints[0])
STATES = {
    step: deep_linear.as_module(weights).state_dict()
    for step, weights in zip(TRAINED.steps, TRAINED.checkpoints, strict=True)
}
SETTINGS: dict[str, Any] = {
    "sampled": "squared_distance_to_anchor",
    "step_size": 1e-3,
    "n_beta": 100.0,
    "chains": 4,
    "draws": 60,
    "burn_in": 40,
    "window": 2,
}


def measured(checkpoints: Any = STATES, **changed: Any) -> Result:
    return trajectory(MODULE, squared_error, DATA, checkpoints, **{**SETTINGS, **changed})


@pytest.fixture(scope="module")
def plain() -> Result:
    return measured()


def test_the_exact_sampler_finds_the_same_at_each_checkpoint() -> None:
    few = {step: STATES[step] for step in (0, 200, 500)}
    result = measured(few, step_size=1e-3, chains=12, draws=1000, burn_in=600, window=1, localization=2.0)
    for step, found in zip(few, (result.dataset.sel(step=step) for step in few), strict=True):
        weights = TRAINED.checkpoints[TRAINED.steps.index(step)]
        exact = gibbs(weights, n_beta=100.0, localization=2.0, chains=32, sweeps=400, generator=generator())
        stderr = math.hypot(float(found["llc_stderr"]), convergence(exact.numpy()).mcse)
        # three standard errors of both, and the square of the bias as a share, which the law leaves out
        second = float(found["llc_bias"]) ** 2 / float(exact.mean())
        assert float(found["llc"]) == pytest.approx(float(exact.mean()), abs=3 * stderr + second)
        assert stderr < 0.06 * float(exact.mean())


def test_each_checkpoint_is_estimated_as_it_would_be_alone() -> None:
    """The same chains, one checkpoint at a time, by `learning_coefficient`."""
    few = {step: STATES[step] for step in (0, 350, 500)}
    common: dict[str, Any] = {"step_size": 2e-4, "n_beta": 100.0, "localization": 3.0, "chains": 3, "seed": 7}
    common |= {"draws": 50, "burn_in": 20, "batch_size": 2}
    sampled = "squared_distance_to_anchor"
    together = trajectory(MODULE, squared_error, DATA, few, sampled=sampled, window=1, **common).dataset
    for place, state in enumerate(few.values()):
        module = deep_linear.as_module(tuple(state.values()))
        alone = learning_coefficient(module, sampled, DATA, **common).dataset
        here = together.isel(step=place)
        own = squared_error(module, DATA).mean().item()
        assert float(here["loss"]) == pytest.approx(own, rel=1e-5, abs=1e-8)
        # raw means: what is taken off for the step size is told beside
        mine = here["llc_per_chain"].to_numpy() + float(here["llc_bias"])
        theirs = alone["llc_per_chain"].to_numpy() + float(alone["llc_bias"])
        assert mine.mean() == pytest.approx(theirs.mean(), rel=1e-3)


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_numbers_do_not_depend_on_how_many_are_walked_together(plain: Result, at_once: int) -> None:
    other = measured(checkpoints_at_once=at_once)
    for name in ("llc", "llc_stderr", "loss", "llc_bias"):
        np.testing.assert_allclose(other.dataset[name], plain.dataset[name], rtol=2e-3, atol=2e-4)


def test_common_random_numbers_make_equal_checkpoints_equal() -> None:
    same = {step: STATES[500] for step in (1, 2, 3, 4)}
    found = measured(same, checkpoints_at_once=2).dataset["llc"].to_numpy()
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    assert measured(same, seed=5).dataset["llc"].to_numpy()[0] != pytest.approx(found[0], rel=1e-3)


def test_a_batch_norm_is_taken_along_with_each_checkpoint() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    first = {name: value.clone() for name, value in module.state_dict().items()}
    second = {**first, "1.running_mean": first["1.running_mean"] + 3}
    result = trajectory(
        module,
        squared_error,
        DATA,
        {0: first, 1: first, 2: second, 3: second},
        **{**SETTINGS, "sampled": None},
    )
    loss = result.dataset["loss"].to_numpy()
    assert loss[0] == pytest.approx(loss[1])
    assert loss[2] > loss[0] + 10


def test_a_killed_run_goes_on_where_it_ended(tmp_path: Path, plain: Result) -> None:
    class Killed(Exception):
        pass

    def kill(progress: Any) -> None:
        if progress.done == 1:
            raise Killed

    with pytest.raises(Killed):
        measured(out=tmp_path, progress=kill)
    seen: list[int] = []
    result = measured(out=tmp_path, progress=lambda progress: seen.append(progress.done))
    assert seen[0] == 1
    xr.testing.assert_identical(result.dataset, plain.dataset)
    xr.testing.assert_identical(Result.load(result.path).dataset, plain.dataset)  # type: ignore[arg-type]


def test_several_runs_have_an_axis_and_one_has_none(plain: Result) -> None:
    assert plain.dataset["llc"].dims == ("step",)
    both = measured([STATES, dict(reversed(STATES.items()))]).dataset
    assert both["llc"].dims == ("run", "step")
    np.testing.assert_allclose(both["llc"][0], both["llc"][1])
    np.testing.assert_allclose(both["llc"][0], plain.dataset["llc"], rtol=2e-3, atol=2e-4)


def test_a_mask_and_another_sampler_and_known_values() -> None:
    mask = {"0.weight": torch.ones(3, 4, dtype=torch.bool)}
    few = {step: STATES[step] for step in (0, 250, 350, 500)}
    result = measured(few, mask=mask, sampler="mala", known=[1.0, 2.5], share=0.5, draws=20, burn_in=5)
    assert result.dataset.attrs["parameters"] == 12
    assert result.dataset["known"].to_numpy().tolist() == [1.0, 2.5]
    assert float(result.dataset["llc_bias"].max()) == 0
    with pytest.raises(BadInput, match="no such one"):
        measured(sampler="walk")


@pytest.mark.parametrize(
    ("sampler", "told"),
    [("sghmc", {"friction": 20.0}), ("baoab", {"friction": 5.0}), ("sgld", {"momentum": 0.5, "adjusted": 0})],
)
def test_with_other_samplers_each_checkpoint_is_what_it_is_alone(
    sampler: str, told: dict[str, float]
) -> None:
    """Also where the bias of a chain is below zero by chance, as that of samplers with momentum is."""
    told = {name: bool(value) if name == "adjusted" else value for name, value in told.items()}
    common: dict[str, Any] = {"step_size": 1e-4, "n_beta": 100.0, "chains": 3, "seed": 3, "localization": 3.0}
    common |= {"draws": 30, "burn_in": 20, "sampler": sampler, "sampler_settings": told}
    few = {step: STATES[step] for step in (0, 500)}
    sampled = "squared_distance_to_anchor"
    together = trajectory(MODULE, squared_error, DATA, few, sampled=sampled, window=1, **common).dataset
    for place, state in enumerate(few.values()):
        alone = learning_coefficient(deep_linear.as_module(tuple(state.values())), sampled, DATA, **common)
        here = together.isel(step=place)
        for name in ("llc_per_chain", "llc_raw", "llc_bias", "unexplored"):
            np.testing.assert_allclose(here[name], alone.dataset[name], rtol=2e-3, atol=1e-4)
        assert float(here["llc"]) == pytest.approx(float(here["llc_raw"] - here["llc_bias"]), rel=1e-6)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("at_once", [1, 6])
@pytest.mark.parametrize("large", [False, True])
def test_losses_are_over_all_of_the_data_also_where_looks_are_not(
    monkeypatch: pytest.MonkeyPatch, batch_size: int | None, at_once: int, large: bool
) -> None:
    few = {step: STATES[step] for step in (0, 250, 500)}
    common: dict[str, Any] = {"sampled": None, "batch_size": batch_size, "step_size": 1e-5, "draws": 8}
    common |= {"burn_in": 2, "window": 1, "checkpoints_at_once": at_once}
    if large:
        monkeypatch.setattr("assay.landscape.checkpoints.LARGE", 10)
    whole = measured(few, **common).dataset
    monkeypatch.setattr("assay.landscape.target.WORK", 60)  # two of the four examples
    found = measured(few, **common).dataset
    np.testing.assert_allclose(found["loss"], whole["loss"], rtol=1e-6)
    if batch_size is None:
        np.testing.assert_allclose(found["downhill"], whole["downhill"], rtol=1e-3, atol=1e-4)
    if batch_size is None or not large:  # else losses are paired with the anchor's on the same batch
        np.testing.assert_allclose(found["llc"], whole["llc"], rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(found["llc"], 0, atol=100 * 0.2)


def test_momentum_is_that_of_the_sampler() -> None:
    few = {step: STATES[step] for step in (0, 500)}
    quick: dict[str, Any] = {"window": 1, "draws": 20, "burn_in": 10}
    plain, pushed = measured(few, **quick), measured(few, momentum=0.5, **quick)
    told = measured(few, sampler_settings={"momentum": 0.5}, **quick)
    np.testing.assert_array_equal(pushed.dataset["llc"], told.dataset["llc"])
    assert not np.allclose(pushed.dataset["llc"], plain.dataset["llc"])
    with pytest.raises(BadInput, match="no setting 'momentum'"):
        measured(few, sampler="hmc", momentum=0.5, **quick)


def test_where_nothing_is_curved_steps_are_not_endless() -> None:
    def flat(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return 0 * module(batch[0]).sum(1)

    few = {step: STATES[step] for step in (0, 500)}
    quick: dict[str, Any] = {"window": 1, "draws": 20, "burn_in": 10, "localization": 0.0}
    found = trajectory(MODULE, flat, DATA, few, n_beta=100.0, **quick).dataset
    assert float(found["step_size"]) <= 0.2
    np.testing.assert_array_equal(found["llc"], 0)


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    def logarithm(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return module(batch[0]).log().square().sum(1)

    module, inputs = nn.Linear(1, 1, bias=False), torch.ones(3, 1)
    states = {step: {"weight": torch.full((1, 1), 1.0 - step)} for step in range(4)}
    for step_size in ("auto", 1e-3):
        with pytest.raises(BadInput, match=r"NaN or infinite at step 1 of run 0"):
            trajectory(module, logarithm, inputs, states, n_beta=2.0, window=1, step_size=step_size)


def test_settings_are_kept_as_they_were(plain: Result) -> None:
    assert from_settings("trajectory", settings(plain.measurement)) == plain.measurement
    assert isinstance(plain.measurement, Trajectory)


def curves(runs: int, *, together: bool, seed: int = 0) -> xr.Dataset:
    """Runs whose loss drops at places of their own, with LLC rises there or at others."""
    rng = np.random.default_rng(seed)
    loss, llc = np.zeros((2, runs, 200))
    for run in range(runs):
        places = np.sort(rng.choice(np.arange(15, 185, 12), 3, replace=False))
        risen = places if together else np.sort(rng.choice(np.arange(15, 185, 12), 3, replace=False))
        loss[run] = 9 - 3 * (np.arange(200)[:, None] >= places).sum(1)
        llc[run] = 5 + 2 * (np.arange(200)[:, None] >= risen).sum(1)
    noise = 0.05 * rng.normal(size=(2, runs, 200))
    return xr.Dataset({"loss": (("run", "step"), loss + noise[0]), "llc": (("run", "step"), llc + noise[1])})


def test_curves_that_change_together_are_aligned_and_others_are_not() -> None:
    found = transitions(curves(12, together=True), window=5, share=0.1, rng=np.random.default_rng(0))
    assert int(found["drops"]) == 36
    assert float(found["alignment"]) == 1.0
    assert float(found["baseline_alignment_high"]) < 0.6
    assert float(found["alignment_p"]) < 0.01
    assert float(found["correlation_low"]) > float(found["baseline_correlation_high"])
    after = found.sel(lag=2)
    assert float(after["llc_around_drop_low"]) > 1.5
    assert float(after["loss_around_drop"]) == pytest.approx(-3, abs=0.2)
    assert float(after["llc_around_drop_low"]) > float(after["baseline_llc_around_drop_high"])
    none = transitions(curves(12, together=False), window=5, share=0.1, rng=np.random.default_rng(0))
    assert float(none["alignment_p"]) > 0.05
    assert float(none["correlation_low"]) < float(none["baseline_correlation_high"])


def test_one_run_is_compared_with_itself_shifted() -> None:
    found = transitions(curves(1, together=True), window=5, share=0.1, rng=np.random.default_rng(0))
    assert float(found["alignment"]) == 1.0
    assert np.isnan(float(found["alignment_p"]))
    assert np.isfinite(found["baseline_llc_around_drop"].to_numpy()).all()
    assert float(found["correlation_low"]) > 0
    assert float(found["baseline_correlation_low"]) < 0 < float(found["baseline_correlation_high"])


def test_another_window_of_the_same_curves_needs_no_walk(plain: Result) -> None:
    again = transitions(plain.dataset, window=3, share=0.2, rng=np.random.default_rng(0))
    walked = measured(window=3, share=0.2).dataset
    assert again["loss_change"].dims == ("step",)
    for name in ("loss_change", "llc_change", "alignment", "baseline_correlation", "llc_around_drop"):
        np.testing.assert_array_equal(again[name], walked[name])


def test_gaps_in_the_llc_are_bridged_and_flat_curves_have_no_drops() -> None:
    dataset = curves(2, together=True)
    dataset["llc"][0, 50:53] = np.nan
    dataset["llc"][1] = np.nan
    dataset["loss"][1] = 4.0
    found = transitions(dataset, window=5, share=0.1, rng=np.random.default_rng(0))
    assert int((found["llc_change"][0] > 0).sum()) == 3
    assert int((found["loss_change"][1] != 0).sum()) == 0


def test_chains_at_rest_pass_every_check() -> None:
    """On equal checkpoints, where nothing drops."""
    same = {step: STATES[500] for step in range(4)}
    chains: dict[str, Any] = {"localization": 100.0, "chains": 8, "burn_in": 300, "draws": 1500, "window": 1}
    result = measured(same, step_size=3e-4, checkpoints_at_once=4, **chains)
    assert {check.verdict for check in result.checks} == {"pass"}
    assert len({check.code for check in judge(result.dataset)}) == 8


def test_the_checks_tell_what_is_wrong(plain: Result) -> None:
    assert {check.code: check.verdict for check in plain.checks if check.code == "L301"} == {"L301": "pass"}
    trained = measured(sampled=None, step_size=1e-5)
    minima = next(check for check in trained.checks if check.code == "L301")
    assert minima.verdict in ("warn", "fail")
    assert bool(trained.dataset["at_minimum"][-1])
    assert not bool(trained.dataset["at_minimum"][2])
    lost = measured(step_size=10.0)
    assert bool(lost.dataset["at_minimum"].all())  # whatever became of the chains
    assert next(check for check in lost.checks if check.code == "L302").verdict == "fail"
    dataset = plain.dataset.copy()
    for name, value, code in (
        ("r_hat", 2.0, "L303"),
        ("llc_bias", 100.0, "L304"),
        ("drift", 50.0, "L306"),
        ("unexplored", 0.6, "L307"),
        ("llc_high", 100.0, "L308"),
        ("alignment_p", 0.5, "L305"),
        ("alignment_p", np.nan, "L305"),
    ):
        bad = dataset.assign({name: xr.full_like(dataset[name], value)})
        bad["drops"] = 3
        verdicts = {check.code: check.verdict for check in judge(bad)}
        expected = "warn" if code in ("L305", "L307", "L308") else "fail"
        assert verdicts[code] == expected, code


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"n_beta": -1.0}, "n_beta"),
        ({"localization": -1.0}, "localization"),
        ({"chains": 1}, "chains"),
        ({"draws": 4}, "draws"),
        ({"burn_in": -1}, "burn_in"),
        ({"batch_size": 5}, "batch_size=5 with 4 examples"),
        ({"sampler": "psgld"}, "burn-in is 40 steps, and sampler 'psgld' adapts for 200"),
        ({"sampler": "hmc", "batch_size": 2}, "accepts or rejects"),
        ({"sampler": "sghmc", "sampler_settings": {"jitter": 1.0}}, "no setting 'jitter'"),
        ({"checkpoints_at_once": 0}, "checkpoints_at_once"),
        ({"window": 6}, "window=6"),
        ({"share": 1.0}, "share"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        measured(**changed)


def test_known_values_are_numbers() -> None:
    numbers: Any = unwrap(sys.modules[Trajectory.__module__]._numbers)
    for known in (3.0, ["a"], None):
        with pytest.raises(BadInput, match="known="):
            numbers(known)


@pytest.mark.parametrize("name", ["dln_narrow"])
def test_an_experiment_is_what_trajectory_takes(name: str) -> None:
    made: Experiment = experiment(name, runs=2, seed=3)
    assert len(made.checkpoints) == 2
    few = [{step: run[step] for step in list(run)[:4]} for run in made.checkpoints]
    quick = {**made.settings, "draws": 10, "burn_in": 0, "window": 1}
    assert trajectory(made.module, made.loss, made.data, few, **quick).dataset.sizes["run"] == 2


def test_bad_experiments() -> None:
    assert set(EXPERIMENTS) == {
        "dln",
        "dln_narrow",
        "toy_layernorm",
        "toy_without_layernorm",
        "modular_addition",
        "induction",
    }
    with pytest.raises(BadInput, match="there is no such one"):
        experiment("mnist")
    with pytest.raises(BadInput, match="runs=0"):
        experiment("dln", runs=0)


def share_of_ranks(made: Experiment, found: xr.Dataset) -> tuple[float, list[float]]:
    """On the plateaus: the share of intervals that cover theory, and the distance of each rank's median from it."""
    target = torch.linalg.svdvals(torch.linalg.lstsq(*made.data).solution)
    values = torch.stack(
        [
            torch.linalg.svdvals(deep_linear.product(tuple(state.values())))
            for state in made.checkpoints[0].values()
        ]
    )[:, : len(found["known"]) - 1]
    learned = values > 0.5 * target[: values.shape[1]]
    settled = (((values / target[: values.shape[1]]) > 0.8) | (values < 0.01)).all(1).numpy()
    ranks, lines = learned.sum(1).numpy(), found["known"].to_numpy()
    theory = lines[ranks]
    covered = (found["llc_low"] <= theory) & (theory <= found["llc_high"])
    apart = [
        float(np.median(found["llc"].to_numpy()[settled & (ranks == rank)])) - lines[rank]
        for rank in range(len(lines))
        if (settled & (ranks == rank)).sum() >= 3
    ]
    return float(covered.to_numpy()[settled].mean()), apart


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dln", "dln_narrow"])
def test_from_saddle_to_saddle_the_estimate_sits_on_the_lines_of_theory(name: str) -> None:
    made = experiment(name)
    result = trajectory(made.module, made.loss, made.data, made.checkpoints, **made.settings)
    covered, apart = share_of_ranks(made, result.dataset)
    assert len(apart) >= 4
    # of the standard error of a plateau's level, whose checkpoints share their random numbers: at most 0.25
    assert max(np.abs(apart)) < 3 * 0.25
    assert covered > 0.5
    assert float(result.dataset["alignment"]) == 1.0


def test_the_step_size_is_chosen_for_the_stiffest_checkpoint() -> None:
    """Of ||(W - P) x||^2 with E[x x^T] = 1 the Hessian is 2, so the potential's is 2 n beta + gamma."""
    module = deep_linear.as_module((TARGET,))
    states = {step: {"0.weight": TARGET} for step in range(4)}
    few: dict[str, Any] = {"chains": 3, "draws": 200, "burn_in": 50, "window": 1, "localization": 4.0}
    result = trajectory(module, squared_error, DATA, states, n_beta=50.0, **few)
    assert float(result.dataset["step_size"]) == pytest.approx(0.2 / 104, rel=0.02)
    assert not [check for check in result.checks if check.code == "L304" and check.verdict != "pass"]
    auto = measured(step_size="auto")
    stiff = measured({step: STATES[500] for step in range(4)}, step_size="auto")
    # the last checkpoint has the largest singular values, and so the largest curvature
    assert float(auto.dataset["step_size"]) == pytest.approx(float(stiff.dataset["step_size"]), rel=0.05)
