import math

import numpy as np
import pytest
import torch
import xarray as xr

from assay.errors import BadInput
from assay.landscape.calibrate import _floats, calibrate, plateau  # pyright: ignore[reportPrivateUsage]
from assay.landscape.learning_coefficient import learning_coefficient
from assay.landscape.losses import squared_error
from assay.landscape.target import target
from assay.runs.measurement import from_settings, settings
from assay.runs.result import Result
from assay.zoo import deep_linear
from assay.zoo.gibbs import gibbs


def network(n: int = 150):
    generator = torch.Generator().manual_seed(3)
    map_ = deep_linear.teacher((4, 5, 3), 2, generator=generator)
    anchor = deep_linear.at_minimal_rank(map_, (4, 5, 3))
    return anchor, deep_linear.as_module(anchor), deep_linear.examples(map_, n, generator=generator)


@pytest.fixture(scope="module")
def plane() -> Result:
    _, module, data = network()
    return calibrate(module, squared_error, data, n_betas=(10.0, 30.0), draws=500, burn_in=300)


def test_on_the_plateau_is_what_the_exact_sampler_finds(plane: Result) -> None:
    anchor, _, data = network()
    found = plane.dataset
    assert {check.code: check.verdict for check in plane.checks}["L211"] == "pass"
    assert 4 <= int(found["plateau"].sum()) < found["plateau"].size
    for n_beta in (10.0, 30.0):
        generator = torch.Generator().manual_seed(0)
        exact = gibbs(anchor, n_beta=n_beta, covariance=data[0].T @ data[0] / 150, generator=generator).mean()
        column = found.sel(n_beta=n_beta)
        steady = column["llc"].where(column["plateau"], drop=True)
        assert float(steady.median()) == pytest.approx(float(exact), rel=0.06)
        assert float(column["llc_plateau"]) == float(steady.median())
        assert float(column["llc_plateau_low"]) < float(exact) < float(column["llc_plateau_high"])


def test_steps_far_too_large_are_off_it_and_bias_grows_with_the_step(plane: Result) -> None:
    found = plane.dataset
    # at the temperature at which the short run looked
    assert not bool(found["plateau"].isel(step_size=-1, n_beta=-1))
    share = (found["llc_bias"] / found["llc"]).isel(n_beta=0, step_size=slice(0, 6))
    assert bool((share.diff("step_size") > 0).all())
    assert float(found["step_size_found"]) == pytest.approx(float(found["step_size"][6]))


def test_a_setting_is_an_estimate_with_that_setting() -> None:
    _, module, data = network()
    given = {"chains": 3, "draws": 60, "burn_in": 20, "batch_size": 32, "localization": 2.0, "seed": 5}
    found = calibrate(module, squared_error, data, step_sizes=(1e-4, 1e-3), n_betas=(7.0,), **given)
    alone = learning_coefficient(module, squared_error, data, step_size=1e-3, n_beta=7.0, **given)
    setting = found.dataset.sel(step_size=1e-3, n_beta=7.0)
    for name in ("llc", "llc_raw", "llc_bias", "llc_high"):
        assert float(setting[name]) == pytest.approx(float(alone.dataset[name]), rel=1e-3)
    with_momentum = calibrate(
        module, squared_error, data, step_sizes=(1e-4, 1e-3), n_betas=(7.0,), **given, momentum=0.5
    )
    assert float(with_momentum.dataset["llc"][1, 0]) != float(setting["llc"])


def test_masks_settings_and_memory(plane: Result) -> None:
    _, module, data = network()
    measurement = plane.measurement
    assert from_settings("calibrate", settings(measurement)) == measurement
    assert measurement.memory(target(module, squared_error, data)) > 10**6
    mask = {"0.weight": torch.ones(5, 4, dtype=torch.bool)}
    part = calibrate(module, squared_error, data, step_sizes=(1e-3,), n_betas=(30.0,), mask=mask, draws=200)
    assert float(part.dataset["llc"][0, 0]) < float(plane.dataset["llc"].max())


def test_a_large_module_is_walked_one_setting_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    _, module, data = network()
    given = {"step_sizes": (1e-4, 1e-3), "n_betas": (7.0, 9.0, 11.0), "draws": 20, "burn_in": 5, "seed": 3}
    whole = calibrate(module, squared_error, data, **given)
    model = target(module, squared_error, data)
    for room, units in ((4 * model.d, 6), (16 * model.d, 2)):
        monkeypatch.setattr("assay.landscape.calibrate.ROOM", room)
        assert len(whole.measurement.plan(model)) == units
        assert whole.measurement.memory(model) < 10**6
        parted = calibrate(module, squared_error, data, **given)
        for name in ("llc", "llc_bias", "r_hat"):
            np.testing.assert_allclose(parted.dataset[name], whole.dataset[name], rtol=1e-3)


def test_what_keeps_a_setting_off_the_plateau(plane: Result) -> None:
    found = plane.dataset
    (row, column), *_ = np.argwhere(found["plateau"].to_numpy())

    def spoilt(name: str, value: float) -> bool:
        changed = found.copy(deep=True)
        changed[name].values[row, column] = value
        return bool(plateau(changed)[row, column])

    assert bool(plateau(found)[row, column])
    level = float(found["llc"][row, column])
    for name, value in (
        ("diverged", 1), ("llc_bias", 0.2 * level), ("r_hat", 1.2), ("drift", level),
        ("llc", 3 * level), ("llc", np.nan),
    ):  # fmt: skip
        assert not spoilt(name, value), name


def test_one_step_size_alone_is_no_plateau(plane: Result) -> None:
    found = plane.dataset
    on = found["plateau"]
    assert bool(
        (on <= (on.shift(step_size=1, fill_value=False) | on.shift(step_size=-1, fill_value=False))).all()
    )
    for row in np.flatnonzero(on[:, 0]):
        alone = found.copy(deep=True)
        alone["diverged"].values[np.arange(10) != row, 0] = 1
        assert not bool(plateau(alone)[:, 0].any())


def test_plateaus_that_differ_between_temperatures_are_told(plane: Result) -> None:
    """Which cannot be chance: a tenth and more, beyond three standard errors of the difference."""

    def judged(levels: list[float], stderr: float) -> str:
        changed = plane.dataset.assign(
            llc_plateau=("n_beta", levels), llc_plateau_stderr=("n_beta", [stderr, stderr])
        )
        return {check.code: check.verdict for check in plane.measurement.checks(changed)}["L212"]

    assert judged([10.0, 10.9], 0.1) == "pass"
    assert judged([10.0, 12.0], 0.1) == "warn"
    assert judged([12.0, 10.0], 0.1) == "warn"
    assert judged([10.0, 12.0], 0.5) == "pass"


def test_without_a_plateau_there_is_a_failing_check() -> None:
    _, module, data = network()
    result = calibrate(
        module, squared_error, data, step_sizes=(5.0, 10.0), n_betas=(30.0,), draws=50, burn_in=10
    )
    assert (result.checks[-1].code, result.checks[-1].verdict) == ("L211", "fail")
    assert result.chart().to_dict()
    assert math.isnan(float(result.dataset["step_size_found"]))


def test_away_from_a_minimum_there_is_a_failing_check(plane: Result) -> None:
    verdicts = {check.code: check.verdict for check in plane.checks}
    assert verdicts["L202"] == "pass"
    (judged, *_) = plane.measurement.checks(plane.dataset.assign(anchor_downhill=30.0))
    assert (judged.code, judged.verdict) == ("L202", "fail")


def test_a_run_resumed_gives_the_same(tmp_path) -> None:
    _, module, data = network()
    given = {"n_betas": (20.0,), "draws": 50, "burn_in": 100}
    one, two = (calibrate(module, squared_error, data, **given, out=tmp_path / name) for name in "ab")
    xr.testing.assert_identical(one.dataset, two.dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step_sizes": ()}, "step_sizes"),
        ({"step_sizes": (1e-3, 1e-4)}, "ascending"),
        ({"n_betas": (0.0, 1.0)}, "n_betas"),
        ({"chains": 1}, "at least 2"),
        ({"draws": 3}, "at least 8"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, message: str) -> None:
    _, module, data = network()
    with pytest.raises(BadInput, match=message):
        calibrate(module, squared_error, data, **changes)


@pytest.mark.parametrize(("name", "given"), [("n_betas", 5.0), ("step_sizes", "auto"), ("n_betas", [None])])
def test_an_axis_is_several_numbers(name: str, given: object) -> None:
    with pytest.raises(BadInput, match=rf"{name}=.*: give a tuple of numbers, ascending; leave it out"):
        _floats(name, given)
    assert _floats(name, [1, 2.5]) == (1.0, 2.5)
