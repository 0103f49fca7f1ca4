"""Neuron importance against hooks written by hand and a full forward per ablation, and where nothing is to be found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import nn

import assay
from assay.activations.checks.neurons import neuron_checks
from assay.activations.neuron_importance import NeuronImportance
from assay.errors import BadInput
from assay.estimates.correlation import spearman
from assay.models.model import Model, wrap
from assay.models.twin import untrained_twin
from assay.runs.measurement import from_settings, settings
from assay.runs.perform import perform
from assay.runs.result import Result
from families import FAMILIES
from reference.neurons_slow import filled, naive_attribution, naive_effect, slopes

TEXT, POSITION = (5, 17, 23, 42, 8, 61, 9), 4
PROMPT, ANSWER = TEXT[: POSITION + 1], (12, 30, 7)
SETTINGS: dict[str, Any] = {
    "position": POSITION, "top_k": 4, "exact": 12, "ablation": "mean", "seed": 3, "max_rows": 5,
}  # fmt: skip
"""None of them the default; the baseline has a test of its own."""
FIRST_ORDER = 1e-5  # float32 gradients of size 1, summed in another order
NATS = 2e-5  # float32: logits of size 10, summed in another order


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


@pytest.fixture(scope="module")
def found(model: Model) -> Result:
    return importance(model)


@pytest.fixture(scope="module")
def slow(kind: str, model: Model) -> np.ndarray:
    return naive_attribution(kind, model.module, model.n_layers, PROMPT, ANSWER, "mean").numpy()


def importance(model: Model, **changed: Any) -> Result:
    return assay.neuron_importance(model, TEXT, ANSWER, **{**SETTINGS, **changed})


def of_group(dataset: xr.Dataset, group: str) -> xr.Dataset:
    return dataset.isel(exact=np.flatnonzero(dataset["exact_group"].values == group))


def cells(dataset: xr.Dataset) -> list[tuple[int, int, int]]:
    return list(
        zip(
            *(dataset[f"exact_{part}"].values.tolist() for part in ("layer", "position", "neuron")),
            strict=True,
        )
    )


def close(left: Any, right: Any, tolerance: float) -> None:
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def test_importance_is_the_mean_size_of_the_slow_attributions(found: Result, slow: np.ndarray) -> None:
    assert found.dataset["importance"].dims == ("layer", "position")
    close(found.dataset["importance"], np.abs(slow).mean(-1), FIRST_ORDER)
    close(found.dataset["importance_max"], np.abs(slow).max(-1), FIRST_ORDER)
    assert np.abs(slow).max() > 1e3 * FIRST_ORDER  # so that the comparison could fail


def test_the_largest_of_each_cell_are_named_with_their_signs(found: Result, slow: np.ndarray) -> None:
    named = found.dataset["top_attribution"].values
    close(named, np.take_along_axis(slow, found.dataset["top_neuron"].values, -1), FIRST_ORDER)
    close(np.abs(named), -np.sort(-np.abs(slow), -1)[..., : SETTINGS["top_k"]], FIRST_ORDER)
    assert (named < 0).any()
    assert (named > 0).any()


def test_exact_effects_are_those_of_full_forwards(kind: str, model: Model, found: Result) -> None:
    activations, _ = slopes(kind, model.module, model.n_layers, PROMPT, ANSWER)
    expected = [
        naive_effect(kind, model.module, PROMPT, ANSWER, cell, filled(activations[cell[0]], "mean")(cell[2]))
        for cell in cells(found.dataset)
    ]
    close(found.dataset["exact_effect"], expected, NATS)
    assert np.abs(expected).max() > 1e3 * NATS


def test_the_top_group_holds_the_largest_attributions_and_the_random_group_others(
    found: Result, slow: np.ndarray
) -> None:
    top, random = of_group(found.dataset, "top"), of_group(found.dataset, "random")
    assert top.sizes["exact"] == random.sizes["exact"] == SETTINGS["exact"]
    close(np.abs(top["exact_attribution"]), -np.sort(-np.abs(slow), None)[: SETTINGS["exact"]], FIRST_ORDER)
    assert len(set(cells(top)) | set(cells(random))) == 2 * SETTINGS["exact"]
    close(found.dataset["exact_attribution"], [slow[cell] for cell in cells(found.dataset)], FIRST_ORDER)
    assert {layer for layer, _, _ in cells(random)} == set(range(slow.shape[0]))


def test_zero_ablation_too(kind: str, model: Model) -> None:
    dataset = importance(model, ablation="zero").dataset
    slow = naive_attribution(kind, model.module, model.n_layers, PROMPT, ANSWER, "zero").numpy()
    close(dataset["importance"], np.abs(slow).mean(-1), FIRST_ORDER)
    for cell, effect in list(zip(cells(dataset), dataset["exact_effect"].values, strict=True))[:3]:
        close(effect, naive_effect(kind, model.module, PROMPT, ANSWER, cell, 0.0), NATS)


def test_agreement_is_the_rank_correlation_of_all_that_was_ablated(found: Result) -> None:
    dataset = found.dataset
    pairs = dataset["exact_attribution"].values, dataset["exact_effect"].values
    close(dataset["rank_correlation"], stats.spearmanr(*pairs).statistic, 1e-12)
    expected = spearman(*pairs, interval="bootstrap", rng=np.random.default_rng(SETTINGS["seed"]))
    assert (dataset["rank_correlation_low"], dataset["rank_correlation_high"]) == (
        expected.low,
        expected.high,
    )


def test_the_baseline_is_an_untrained_twin_asked_for_the_same_answer(kind: str, model: Model) -> None:
    dataset = importance(model, baseline=True, seed=8).dataset
    twin = untrained_twin(model, seed=8)
    slow = naive_attribution(kind, twin.module, model.n_layers, PROMPT, ANSWER, "mean").numpy()
    close(dataset["baseline_importance"], np.abs(slow).mean(-1), FIRST_ORDER)
    without = importance(model, baseline=False)
    assert "baseline_importance" not in without.dataset
    assert "N104" not in {check.code for check in without.checks}


def test_the_seed_draws_the_random_neurons_and_nothing_else(model: Model, found: Result) -> None:
    other = importance(model, seed=4).dataset
    assert cells(of_group(other, "top")) == cells(of_group(found.dataset, "top"))
    assert cells(of_group(other, "random")) != cells(of_group(found.dataset, "random"))
    np.testing.assert_array_equal(other["importance"], found.dataset["importance"])


def test_rows_at_once_do_not_change_the_numbers(model: Model, found: Result) -> None:
    close(importance(model, max_rows=64).dataset["exact_effect"], found.dataset["exact_effect"], NATS)


def test_without_an_answer_the_model_s_own_next_token_is_taken(model: Model) -> None:
    dataset = assay.neuron_importance(model, TEXT, exact=2, top_k=1, baseline=False).dataset
    with torch.no_grad():
        probability = model.module(torch.tensor([TEXT])).logits[0, -1].softmax(-1)
    assert dataset.attrs["answer_tokens"] == [int(probability.argmax())]
    close(dataset["p_clean"], float(probability.max()), 1e-6)  # float32
    assert dataset.sizes["position"] == len(TEXT)


def test_the_last_block_matters_at_the_last_position_only(model: Model) -> None:
    importance = (
        assay.neuron_importance(model, TEXT, exact=2, top_k=1, baseline=False).dataset["importance"].values
    )
    assert (importance[-1, :-1] == 0).all()
    assert (importance[-1, -1] > 0) and (importance[:-1] > 0).all()


def test_an_answer_may_be_given_as_text(tiny_llama: Model) -> None:
    dataset = assay.neuron_importance(tiny_llama, "Mr Dursley", " seen Harry", exact=2, top_k=1).dataset
    assert dataset.attrs["answer"] == " seen Harry"
    assert len(dataset.attrs["answer_tokens"]) == 2
    assert dataset.attrs["metric"] == "log_probability"
    assert "".join(dataset["token"].values) == "Mr Dursley"


def test_weights_take_no_part_and_are_as_they_were_after_a_failure(model: Model) -> None:
    own = {name: parameter.requires_grad for name, parameter in model.module.named_parameters()}
    frozen = next(iter(own))
    model.module.get_parameter(frozen).requires_grad_(False)
    try:
        seen: list[bool] = []

        def fail(_: nn.Module, args: Any, output: Any) -> None:
            seen.extend(p.requires_grad for p in model.module.parameters())
            raise ArithmeticError("in the middle of the pass")

        handle = model.parts.blocks[-1].module.register_forward_hook(fail)
        with pytest.raises(ArithmeticError):
            importance(model)
        handle.remove()
        importance(model)
        assert not any(seen)
        now = {name: parameter.requires_grad for name, parameter in model.module.named_parameters()}
        assert now == {**own, frozen: False}
        assert all(parameter.grad is None for parameter in model.module.parameters())
    finally:
        model.module.get_parameter(frozen).requires_grad_(True)


def test_an_untrained_network_is_told_from_itself_by_no_check(make_tiny_llama: Callable[..., Model]) -> None:
    """The blank: in a random network the twin has its importance in the same places, and the check says so."""
    result = assay.neuron_importance(make_tiny_llama(), TEXT, exact=4, top_k=2)
    check = next(check for check in result.checks if check.code == "N104")
    assert check.verdict == "warn"
    assert check.figure is not None
    assert check.figure > 0.7


def judged(dataset: xr.Dataset, **changed: Any) -> dict[str, str]:
    changed = {
        name: dataset[name].copy(data=np.broadcast_to(value, dataset[name].shape))
        for name, value in changed.items()
    }
    return {check.code: check.verdict for check in neuron_checks(dataset.assign(changed))}


def test_checks_say_what_is_wrong(found: Result) -> None:
    dataset = found.dataset
    shares = np.zeros(dataset["importance"].shape)
    shares[0, 0] = 1.0
    elsewhere = np.roll(shares, 1, axis=1)
    fine = {"p_clean": 0.9, "rank_correlation": 0.8, "importance": shares, "baseline_importance": elsewhere}
    assert judged(dataset, **fine) == dict.fromkeys(("N101", "N102", "N103", "N104"), "pass")
    assert judged(dataset, **fine | {"p_clean": 0.01})["N101"] == "warn"
    assert judged(dataset, **fine | {"importance_max": 0.0})["N102"] == "fail"
    assert judged(dataset, **fine | {"importance_max": np.nan})["N102"] == "fail"
    assert judged(dataset, **fine | {"rank_correlation": 0.3})["N103"] == "warn"
    assert judged(dataset, **fine | {"rank_correlation": np.nan})["N103"] == "warn"
    assert judged(dataset, **fine | {"baseline_importance": shares})["N104"] == "warn"


def test_a_model_whose_answer_depends_on_no_neuron_fails_its_check(
    make_tiny_llama: Callable[..., Model],
) -> None:
    model = make_tiny_llama()
    with torch.no_grad():
        for block in model.parts.blocks:
            assert block.mlp_down is not None
            block.mlp_down.weight.zero_()
    result = assay.neuron_importance(model, TEXT, exact=2, top_k=1, baseline=False)
    assert {check.code: check.verdict for check in result.checks}["N102"] == "fail"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 57}, "a layer's 56 neurons"),
        ({"exact": 1}, "at least 2"),
        ({"exact": 10**4}, "exact=10000"),
        ({"position": 7}, "positions 0 to 6"),
    ],
)
def test_bad_settings_are_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        importance(model, **changed)


def test_an_unknown_ablation_is_refused(found: Result) -> None:
    with pytest.raises(BadInput, match="'ablation' of neuron_importance is 'noise'"):
        from_settings("neuron_importance", settings(found.measurement) | {"ablation": "noise"})


def test_fused_experts_are_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match="mixture of experts"):
        assay.neuron_importance(wrap(FAMILIES["mixtral"].build()), TEXT)


def test_it_makes_the_round_trip_through_its_record(model: Model, found: Result, tmp_path: Any) -> None:
    again = from_settings("neuron_importance", settings(found.measurement))
    assert again == found.measurement
    kept = perform(again, model, out=tmp_path)
    xr.testing.assert_identical(Result.load(kept.path).dataset, kept.dataset)
    np.testing.assert_array_equal(kept.dataset["exact_effect"], found.dataset["exact_effect"])


def test_full_forwards_serve_a_family_that_cannot_continue_a_prefix(model: Model, found: Result) -> None:
    measurement = found.measurement
    assert isinstance(measurement, NeuronImportance)
    shared = measurement.prepare(model)
    slow = shared._replace(recording=replace(shared.recording, fallback="for this test"))
    units = {unit.name: unit for unit in measurement.plan(model)}
    effect = measurement.measure(model, units["top"], slow)["effect"]
    close(effect, of_group(found.dataset, "top")["exact_effect"], NATS)


def test_memory_is_more_with_a_twin(model: Model) -> None:
    with_twin = NeuronImportance(tokens=PROMPT)
    weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
    assert with_twin.memory(model) - replace(with_twin, baseline=False).memory(model) == weights
