"""Direct logit attribution against norms and projections written out, by what it adds up to, and refused."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import assay
from assay.activations.direct_logit_attribution import DirectLogitAttribution
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.direct_logit_attribution_slow import SlowAttribution

LOGITS = 2e-5  # float32: parts of size 10, summed in another order
PROMPTS = ((5, 17, 23, 42, 8, 61, 9), (4, 17, 30), (9, 3, 23, 55, 8))
ANSWERS, FOILS = (7, 19, 88), (12, 12, 90)
POST_NORM, HIDDEN = "gemma2", "mixtral"
LINEAR = [
    name
    for name, family in FAMILIES.items()
    if family.has_neurons and family.post_norms == (None, None) and family.soft_cap is None
    and family.norm is not None and not family.norm_after_add
]  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


def attribute(model: Model, prompts: Any = PROMPTS, **changed: Any) -> assay.Result:
    given = {"answer": ANSWERS[: len(prompts)], "foil": FOILS[: len(prompts)], **changed}
    return assay.direct_logit_attribution(model, prompts, **given)


@pytest.mark.parametrize("difference", [False, True])
def test_every_component_is_written_out(kind: Any, model: Model, difference: bool) -> None:
    foils = FOILS if difference else (None, None, None)
    dataset = attribute(model, foil=FOILS if difference else None).dataset
    twins = [SlowAttribution(kind, model.module, *row) for row in zip(PROMPTS, ANSWERS, foils, strict=True)]
    assert dataset.sizes["component"] == 1 + 3 * (2 + 4)
    for name in dataset["component"].values:
        cell = dataset.sel(component=name)
        shares = np.array([twin.attribution(twin.component(name)) for twin in twins])
        effects = np.array([twin.direct_effect(twin.component(name)) for twin in twins])
        np.testing.assert_allclose(cell["attribution"], shares.mean(), rtol=0, atol=LOGITS)
        np.testing.assert_allclose(cell["direct_effect"], effects.mean(), rtol=0, atol=LOGITS)
        stderr = (shares - effects).std(ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(cell["freezing_error"], (shares - effects).mean(), rtol=0, atol=2 * LOGITS)
        np.testing.assert_allclose(cell["freezing_error_stderr"], stderr, rtol=0, atol=2 * LOGITS)
    assert (
        float(np.abs(dataset["freezing_error"]).max()) > 100 * LOGITS
    )  # freezing is not free, and it is shown


@pytest.mark.parametrize("bias", [False, True])
def test_an_odd_width_adds_up(bias: bool) -> None:
    """A probe of the norm's weight needs the mean 0, which alternating signs of an odd number do not have."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=101, n_embd=33, n_head=3, n_layer=2, n_positions=32)
        module = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        norm = module.transformer.ln_f
        norm.weight += torch.randn(33, generator=generator)
        norm.bias += float(bias) * torch.randn(33, generator=generator)
    result = attribute(wrap(module), baseline_tokens=0)
    assert float(result.dataset["sum_error"]) < LOGITS


def test_the_strongest_neurons_are_written_out(kind: Any, model: Model) -> None:
    """Of the mean over prompts; with what removing them truly takes away."""
    dataset = attribute(model, PROMPTS[:2], top_neurons=3).dataset
    rows = list(zip(PROMPTS, ANSWERS, FOILS, strict=True))[:2]
    twins = [SlowAttribution(kind, model.module, *row) for row in rows]
    for layer in range(3):
        block = dataset.sel(block=layer)
        shares = [[twin.attribution(twin.neuron(layer, i)) for i in range(56)] for twin in twins]
        mean = np.mean(shares, 0)
        order = np.abs(mean).argsort()[::-1][:3]
        assert block["top_neuron"].values.tolist() == order.tolist()
        np.testing.assert_allclose(block["top_neuron_attribution"], mean[order], rtol=0, atol=LOGITS)
        effects = [[twin.direct_effect(twin.neuron(layer, i)) for i in order] for twin in twins]
        np.testing.assert_allclose(
            block["top_neuron_direct_effect"], np.mean(effects, 0), rtol=0, atol=LOGITS
        )
        stderr = abs(np.subtract(*effects)) / 2
        np.testing.assert_allclose(block["top_neuron_direct_effect_stderr"], stderr, rtol=0, atol=LOGITS)
    assert "top_neuron" not in attribute(model, PROMPTS[:1], top_neurons=0).dataset


@pytest.mark.parametrize("family", LINEAR)
def test_attributions_add_up_in_every_family(family: str) -> None:
    module = FAMILIES[family].build()
    result = attribute(wrap(module), PROMPTS[:2])
    dataset = result.dataset
    with torch.no_grad():
        logits = [module(torch.tensor([row])).logits[0, -1].double() for row in PROMPTS[:2]]
    expected = np.mean([float(x[a] - x[f]) for x, a, f in zip(logits, ANSWERS, FOILS, strict=False)])
    whole = dataset["attribution"].where(dataset["kind"] != "head", 0).sum()
    assert float(whole + dataset["constant"]) == pytest.approx(expected, abs=5 * LOGITS)
    assert float(dataset["target"]) == pytest.approx(expected, abs=LOGITS)
    assert [check.verdict for check in result.checks if check.code == "R101"] == ["pass"]


def test_without_a_norm_to_freeze_attribution_is_the_direct_effect() -> None:
    """A huge epsilon makes the norm linear: then freezing it costs nothing."""
    module = FAMILIES["llama"].build()
    with torch.no_grad():
        module.model.norm.variance_epsilon = 1e12
        module.model.norm.weight *= 1e6
    result = attribute(wrap(module))
    assert float(np.abs(result.dataset["attribution"]).max()) > 0.1
    assert float(np.abs(result.dataset["freezing_error"]).max()) < 1e-4
    assert [check.verdict for check in result.checks if check.code == "R102"] == ["pass"]


def test_the_answer_is_the_model_s_own_when_none_is_given(model: Model) -> None:
    dataset = attribute(model, PROMPTS[:1], answer=None, foil=None, heads=False, baseline_tokens=0).dataset
    with torch.no_grad():
        logits = model.module(torch.tensor([PROMPTS[0]])).logits[0, -1]
    assert dataset.attrs["answer"] == str(int(logits.argmax()))
    assert float(dataset["target"]) == pytest.approx(float(logits.max()), abs=LOGITS)
    assert "head" not in dataset["kind"].values
    assert "baseline_attribution" not in dataset
    assert np.isnan(dataset["attribution_stderr"]).all()
    assert "target_low" not in dataset


def test_the_baseline_is_the_attribution_to_random_tokens(kind: Any, model: Model) -> None:
    dataset = attribute(model, PROMPTS[:1], baseline_tokens=5, seed=3).dataset
    drawn = torch.randint(101, (5, 2), generator=torch.Generator().manual_seed(3 * 1_000_003)).tolist()
    twins = [SlowAttribution(kind, model.module, PROMPTS[0], answer, foil) for answer, foil in drawn]
    for name in ("embed", "mlp.1", "head.2.3"):
        expected = np.mean([abs(twin.attribution(twin.component(name))) for twin in twins])
        found = dataset["baseline_attribution"].sel(component=name)
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS)


def test_settings_make_the_same_measurement_again(model: Model) -> None:
    measurement = attribute(model, heads=False, top_neurons=2, baseline_tokens=3, seed=9).measurement
    assert isinstance(measurement, DirectLogitAttribution)
    assert from_settings("direct_logit_attribution", settings(measurement)) == measurement


@pytest.mark.parametrize(
    ("family", "changed", "message"),
    [
        ("llama", {"prompts": []}, "the list is empty"),
        ("llama", {"answer": [1]}, "1 values of answer"),
        ("llama", {"foil": [1, 2]}, "2 values of foil"),
        ("llama", {"top_neurons": -1}, "top_neurons"),
        ("llama", {"baseline_tokens": -1}, "baseline_tokens"),
        ("llama", {"seed": -1}, "seed"),
        (POST_NORM, {}, "normalises what a block writes"),
        (HIDDEN, {}, "does not compute mlp_act"),
        (POST_NORM, {"heads": False, "top_neurons": 0}, "a soft cap"),
        ("opt-post-norm", {}, "no final norm"),
    ],
)
def test_bad_input_is_refused(family: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        attribute(wrap(FAMILIES[family].build()), **{"prompts": PROMPTS, **changed})
