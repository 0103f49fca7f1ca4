"""Ablation against one full forward an input and component, where the answer is known, and refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import assay
from assay.activations.ablation import METRICS, Ablation
from assay.activations.components.component import Component
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.models.model import Model, wrap
from assay.models.partial import SiteEdit
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.ablation_slow import SlowAblation

NATS = 2e-5  # float32: logits of size 10, summed in another order
INPUTS = torch.randint(3, 101, (6, 7), generator=torch.Generator().manual_seed(1)).tolist()
ONE_OF_EACH = ("head.1.3", "neuron.2.17", "mlp.0", "attention.1", "layer.1")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


def ablate(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    given = {"components": ONE_OF_EACH, "baseline_inputs": 0, "resamples": 50, **changed}
    return assay.ablate(model, inputs, **given)


@pytest.mark.parametrize("value", ["zero", "mean", "position_mean", "resample", "noise"])
def test_every_component_is_that_of_a_full_forward(kind: Any, model: Model, value: Any) -> None:
    dataset = ablate(model, value=value, noise=0.7, seed=3, baseline_inputs=2).dataset
    twin = SlowAblation(kind, model.module, INPUTS, value, noise=0.7, seed=3)
    assert sorted(dataset["component"].values) == sorted(ONE_OF_EACH)
    for component in ONE_OF_EACH:
        for number in (0, 5):
            found = dataset["effect_by_input"].sel(component=component, input=number)
            np.testing.assert_allclose(found, twin.effect(component, number), rtol=0, atol=5 * NATS)
        random = torch.stack([twin.effect(component, number, random=True) for number in (0, 1)])
        found = dataset["baseline_effect"].sel(component=component)
        np.testing.assert_allclose(found, random.mean(0), rtol=0, atol=5 * NATS)
    assert (
        np.abs(dataset["effect"].sel(metric="loss_difference")) > 20 * NATS
    ).all()  # something is compared
    loss = [twin.loss(number) for number in range(6)]
    assert float(dataset["clean_loss"]) == pytest.approx(np.mean(loss), abs=NATS)


def test_a_component_s_own_value_changes_nothing(model: Model) -> None:
    result = ablate(model)
    assert float(result.dataset["own_value_effect"]) <= NATS
    assert [check.verdict for check in result.checks if check.code == "B101"] == ["pass"]
    alike = ablate(model, [INPUTS[0]] * 3, value="resample").dataset  # the partner says the same
    assert np.abs(alike["effect"].sel(metric="loss_difference")).max() <= NATS
    assert (alike["effect"].sel(metric="top1_agreement") == 1).all()


def test_every_kind_is_put_back_as_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Component.edit

    def broken(self: Component, site: str, own: Tensor, value: Tensor) -> SiteEdit:
        return whole(self, site, own, value + 10 if self.kind == "neuron" else value)

    monkeypatch.setattr(Component, "edit", broken)
    for components, verdict in ((("mlp.0",), "pass"), (("mlp.0", "neuron.2.17"), "fail")):
        result = ablate(model, INPUTS[:2], components=components)
        assert [check.verdict for check in result.checks if check.code == "B101"] == [verdict]


def test_intervals_are_bootstrapped_and_p_values_adjusted_over_the_scan(model: Model) -> None:
    dataset = ablate(model, components=("heads", "mlp"), value="zero", resamples=80, seed=2).dataset
    samples = dataset["effect_by_input"].values
    assert samples.shape == (6, 4, 3 * 4 + 3)
    for part, expected in zip(
        ("", "_stderr", "_low", "_high"),
        bootstrap(samples, np.random.default_rng(2), resamples=80),
        strict=True,
    ):
        np.testing.assert_allclose(dataset[f"effect{part}"], expected, rtol=1e-12, atol=1e-15)
    for metric in ("loss_difference", "logit_difference"):
        own = dataset.sel(metric=metric)
        expected = stats.ttest_1samp(samples[:, METRICS.index(metric)], 0).pvalue
        np.testing.assert_allclose(own["p_value"], expected, rtol=1e-9)
        np.testing.assert_allclose(own["q_value"], stats.false_discovery_control(expected), rtol=1e-9)
    untested = dataset.sel(metric=["kl_from_clean", "top1_agreement"])
    assert np.isnan(untested["p_value"]).all() and np.isnan(untested["q_value"]).all()


def test_kl_is_taken_before_the_mean(model: Model) -> None:
    dataset = ablate(model).dataset
    assert (dataset["effect_by_input"].sel(metric="kl_from_clean") > 0).all()


def test_one_input_has_an_effect_and_no_interval(model: Model) -> None:
    result = ablate(model, INPUTS[:1], baseline_inputs=1)
    assert np.isfinite(result.dataset["effect"]).all()
    assert np.isnan(result.dataset["effect_low"]).all() and np.isnan(result.dataset["p_value"]).all()
    verdicts = {check.code: check.verdict for check in result.checks}
    assert (verdicts["A001"], verdicts["B103"]) == ("pass", "warn")
    assert "clean_loss" in result.dataset and "clean_loss_low" not in result.dataset


def test_rows_at_once_do_not_change_the_numbers(model: Model) -> None:
    few, many = (ablate(model, value="noise", baseline_inputs=3, max_rows=rows).dataset for rows in (2, None))
    for name in ("effect_by_input", "baseline_effect"):
        np.testing.assert_allclose(few[name], many[name], rtol=0, atol=5 * NATS)


def test_blocks_that_keep_no_cache_are_ablated_by_full_forwards(model: Model, kind: str) -> None:
    module = FAMILIES[kind].build()
    own = module.forward
    module.forward = lambda input_ids, **_: own(input_ids=input_ids)
    result = ablate(wrap(module))
    np.testing.assert_allclose(
        result.dataset["effect"], ablate(model).dataset["effect"], rtol=0, atol=5 * NATS
    )
    assert [check.verdict for check in result.checks if check.code == "B104"] == ["warn"]
    assert "0 of 3 blocks keep keys and values" in result.dataset.attrs["engine"]


def test_all_of_a_kind_are_named_by_layer(model: Model) -> None:
    scan = ablate(
        model, INPUTS[:2], components=("layers", "heads", "attention", "mlp", "head.0.0"), value="zero"
    )
    names = scan.dataset["component"].values.tolist()
    assert names[:7] == ["layer.0", "attention.0", "mlp.0", "head.0.0", "head.0.1", "head.0.2", "head.0.3"]
    assert len(names) == 3 * 7
    assert scan.dataset["layer"].values.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert scan.dataset["index"].values[:7].tolist() == [-1, -1, -1, 0, 1, 2, 3]


def test_a_head_that_writes_nothing_is_found_idle_and_one_that_does_is_not(
    make_tiny_llama: Callable[..., Model],
) -> None:
    model = make_tiny_llama(num_hidden_layers=2)
    with torch.no_grad():
        model.module.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0  # head 1 of 4
    inputs = torch.randint(3, 300, (24, 8), generator=torch.Generator().manual_seed(0)).tolist()
    result = assay.ablate(model, inputs, value="zero", components=("heads",), baseline_inputs=2, resamples=50)
    idle = result.dataset.sel(component="head.1.1")
    assert np.abs(idle["effect"].sel(metric="loss_difference")) <= NATS
    assert float(idle["effect"].sel(metric="kl_from_clean")) <= NATS
    others = result.dataset.drop_sel(component="head.1.1")["effect"].sel(metric="kl_from_clean")
    assert (others > 100 * NATS).all()
    assert [check.verdict for check in result.checks if check.code == "B103"] == ["pass"]


def test_one_word_is_no_list_of_letters(model: Model) -> None:
    scan = ablate(model, INPUTS[:2], components="heads", value="zero")
    assert list(scan.dataset["kind"].values) == ["head"] * 12


def test_texts_are_cut_to_a_length(tiny_llama: Model) -> None:
    text = "Mrs Dursley said that Mr Dursley had seen Harry near the old gate in the rain."
    tokens = tiny_llama.tokens(text)
    result = assay.ablate(
        tiny_llama,
        [text, text],
        length=4,
        max_inputs=5,
        components=("mlp.1",),
        baseline_inputs=0,
        resamples=10,
    )
    measurement = result.measurement
    assert isinstance(measurement, Ablation)
    cut = [tokens[start : start + 4] for start in range(0, len(tokens) - 3, 4)]
    assert measurement.inputs == tuple([*cut, *cut][:5])
    assert from_settings("ablation", settings(measurement)) == measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "the list is empty"),
        ({"inputs": [[3, 4, 5], [3, 4]]}, r"the inputs have \[2, 3\] tokens"),
        ({"inputs": [[3], [4]]}, "needs a next token"),
        ({"length": 9}, "the longest text has 7 tokens"),
        ({"length": 1}, "length=1"),
        ({"max_inputs": 0}, "max_inputs=0: the data set is empty"),
        ({"components": ()}, "no components were named"),
        ({"components": ("nerves",)}, "components='nerves': expected"),
        ({"components": ("head.1",)}, "components='head.1': expected"),
        ({"components": ("head.1.4",)}, "block 1 has 4, numbered 0 to 3"),
        ({"components": ("neuron.0.56",)}, "block 0 has 56, numbered 0 to 55"),
        ({"components": ("mlp.3",)}, "the model has layers 0 to 2"),
        ({"value": "resample", "inputs": INPUTS[:1]}, "there is one input only"),
        ({"value": "position_mean", "inputs": INPUTS[:1]}, "there is one input only"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"seed": -1}, "seed=-1"),
        ({"baseline_inputs": -1}, "baseline_inputs"),
        ({"resamples": 1}, "resamples"),
        ({"max_rows": 0}, "max_rows=0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ablate(wrap(FAMILIES["llama"].build()), **{"inputs": INPUTS, **changed})


def test_neurons_that_a_family_does_not_compute_are_refused() -> None:
    hidden = next(family for family in FAMILIES.values() if not family.has_neurons)
    with pytest.raises(BadInput, match="that could be replaced"):
        ablate(wrap(hidden.build()), components=("neuron.0.0",))
