"""Stages of inference against distributions written out, where the answer is known, and refused."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

import assay
from assay.activations.depth.output_moments import output_moments
from assay.activations.layer_stages import KURTOSIS
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.models.intervention import capture
from assay.models.model import Model, wrap
from assay.models.twin import untrained_twin
from assay.runs.measurement import from_settings, settings
from families import FAMILIES

INPUTS = torch.randint(3, 101, (3, 9), generator=torch.Generator().manual_seed(1)).tolist()


def look(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    given = {"read": 4, "baseline_inputs": 1, "resamples": 40, **changed}
    return assay.layer_stages(model, inputs, **given)


def curves(model: Model, ids: list[int], layer: int, read: list[int]) -> np.ndarray:
    """Entropy, KL from final and agreement, through the model's own final norm and unembedding."""
    base = model.module.base_model
    norm = base.ln_f if hasattr(base, "ln_f") else base.norm
    with torch.no_grad():
        final = model.module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        resid = capture(model, ids, f"resid_post.{layer}")[f"resid_post.{layer}"]
        lens = model.module.lm_head(norm(resid))[0].double().log_softmax(-1)
    entropy = -(lens.exp() * lens).sum(-1)
    kl = (final.exp() * (final - lens)).sum(-1)
    agree = (lens.argmax(-1) == final.argmax(-1)).double()
    return torch.stack([entropy, kl, agree])[:, read].mean(1).numpy()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_curves_are_those_of_whole_distributions(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    dataset = look(model, seed=2).dataset
    twin = untrained_twin(model, seed=2)
    for layer in range(3):
        for number, ids in enumerate(INPUTS):
            found = dataset["stage_by_input"].sel(input=number, layer=layer)
            np.testing.assert_allclose(found, curves(model, ids, layer, [0, 2, 5, 7]), rtol=0, atol=2e-5)
        expected = curves(twin, INPUTS[0], layer, [0, 2, 5, 7])
        np.testing.assert_allclose(dataset["baseline_stage"].sel(layer=layer), expected, rtol=0, atol=2e-5)
    expected = bootstrap(dataset["stage_by_input"].values, np.random.default_rng(2), resamples=40)
    np.testing.assert_allclose(dataset["stage_low"], expected[2], rtol=1e-9, atol=1e-12)
    everywhere = look(model, read=None, neurons=False, baseline_inputs=0).dataset
    np.testing.assert_allclose(
        everywhere["stage_by_input"].sel(layer=1, input=0),
        curves(model, INPUTS[0], 1, list(range(9))),
        atol=2e-5,
    )
    assert "baseline_stage" not in everywhere and "neuron_share" not in everywhere


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_moments_are_those_of_what_neurons_add_to_the_logits(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    kurtosis, skewness = output_moments(model)
    base = model.module.base_model
    block, norm = (base.h[1], base.ln_f) if kind == "gpt2" else (base.layers[1], base.norm)
    down = block.mlp.c_proj.weight if kind == "gpt2" else block.mlp.down_proj.weight.T
    read = down - down.mean(1, keepdim=True) if kind == "gpt2" else down  # a LayerNorm takes the mean out
    added = ((read * norm.weight) @ model.module.lm_head.weight.T).detach().double().numpy()
    np.testing.assert_allclose(kurtosis[1], stats.kurtosis(added, axis=1, fisher=False), rtol=1e-4)
    np.testing.assert_allclose(skewness[1], stats.skew(added, axis=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [32, 33])
def test_what_a_layer_norm_takes_out_changes_no_moment(width: int) -> None:
    """Neither the logits nor what neurons say change when output weights are moved along the vector of ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(n_embd=width, n_layer=2, n_head=1, vocab_size=101, bos_token_id=0, eos_token_id=0)
        module: Any = GPT2LMHeadModel(config).eval()
    model, gains = wrap(module), torch.linspace(0.2, 3.0, width)
    with torch.no_grad():
        module.transformer.ln_f.weight.copy_(gains)
    written, unembed = module.transformer.h[1].mlp.c_proj.weight, module.lm_head.weight
    expected = (((written - written.mean(1, keepdim=True)) * gains) @ unembed.T).detach().double().numpy()
    before = model.module(input_ids=torch.tensor(INPUTS)).logits.detach()
    own, shuffled = (output_moments(model, seed=seed) for seed in (None, 1))
    np.testing.assert_allclose(own[0][1], stats.kurtosis(expected, axis=1, fisher=False), rtol=1e-4)
    with torch.no_grad():
        module.transformer.h[1].mlp.c_proj.weight += 1.0
    torch.testing.assert_close(model.module(input_ids=torch.tensor(INPUTS)).logits, before, rtol=0, atol=1e-5)
    for seed, moments in ((None, own), (1, shuffled)):
        for found, expected_moment in zip(output_moments(model, seed=seed), moments, strict=True):
            np.testing.assert_allclose(found, expected_moment, rtol=1e-3, atol=1e-3)


def test_neurons_made_to_raise_or_lower_one_token_are_found(make_tiny_llama: Any) -> None:
    model = make_tiny_llama(hidden_size=64, tie_word_embeddings=False, vocab_size=401)
    with torch.no_grad():
        model.module.lm_head.weight.zero_()
        model.module.lm_head.weight[5, 0] = 1.0  # token 5 alone reads coordinate 0
        model.module.lm_head.weight[:, 1:] = torch.randn(401, 63, generator=torch.Generator().manual_seed(0))
        down = model.module.model.layers[1].mlp.down_proj.weight
        down[0, :10], down[0, 10:13] = 40.0, -40.0  # of 56 neurons
        model.module.model.layers[2].mlp.down_proj.weight[0] = 0.0
    result = look(model)
    dataset, share = result.dataset, result.dataset["neuron_share"]
    assert float(share.sel(kind="prediction", layer=1)) == pytest.approx(10 / 56)
    assert float(share.sel(kind="suppression", layer=1)) == pytest.approx(3 / 56)
    assert float(share.sel(layer=2).sum()) == 0
    assert (dataset["neuron_share_low"] <= share).all() and (share <= dataset["neuron_share_high"]).all()
    # in another order a large weight meets the coordinate that token 5 reads in one neuron of 64
    assert (dataset["baseline_neuron_share"] <= 1 / 56).all()
    assert verdict(result, "G303") == "pass"


def verdict(result: assay.Result, code: str) -> str:
    return {check.code: check.verdict for check in result.checks}[code]


def test_the_baseline_finds_neurons_wherever_the_unembedding_alone_has_heavy_tails(
    make_tiny_llama: Any,
) -> None:
    """Each coordinate is read by one token of its own: whatever a neuron writes, in any order, speaks of few."""
    model = make_tiny_llama(hidden_size=64, tie_word_embeddings=False, vocab_size=401)
    with torch.no_grad():
        model.module.lm_head.weight.copy_(torch.eye(401, 64))
    own, shuffled, other = (output_moments(model, seed=seed) for seed in (None, 1, 2))
    for moments in (shuffled, other):
        np.testing.assert_allclose(moments[0], own[0], rtol=1e-4)
        np.testing.assert_allclose(moments[1], own[1], rtol=1e-3, atol=1e-4)
    result = look(model, seed=1)
    share, baseline = result.dataset["neuron_share"], result.dataset["baseline_neuron_share"]
    assert (share == baseline).all() and float(share.sum("kind").min()) > 0.5
    assert verdict(result, "G303") == "warn"


def test_the_order_of_output_weights_is_drawn_by_the_seed(make_tiny_llama: Any) -> None:
    """The weights of the unembedding are heavy in half of the coordinates, so that the order matters."""
    model = make_tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.module.lm_head.weight[:, :16] **= 5
    drawn = [output_moments(model, seed=seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    own = output_moments(model)[0]
    assert drawn[0].shape == own.shape and not torch.allclose(drawn[0], own)
    for seed in (1, 2):
        share = look(model, seed=seed).dataset["baseline_neuron_share"].sum("kind")
        heavy = output_moments(model, seed=seed)[0] > KURTOSIS
        np.testing.assert_allclose(share, heavy.double().mean(1))


def test_an_untrained_model_has_its_twins_stages_and_no_neurons_that_tell(tiny_llama: Model) -> None:
    result = look(tiny_llama)
    assert float(result.dataset["neuron_share"].sum()) == 0
    assert (verdict(result, "G302"), verdict(result, "G303")) == ("warn", "warn")


@pytest.mark.smollm2
def test_a_trained_model_has_stages_of_its_own(smollm2: Model) -> None:
    inputs = [smollm2.tokens("The Eiffel Tower is located in the city of Paris, and the Colosseum in Rome.")]
    assert verdict(look(smollm2, inputs, neurons=False, read=2), "G302") == "pass"


def test_two_layers_are_too_few_for_a_course(make_tiny_llama: Any) -> None:
    """KL relative to the first layer is 1 and 0 in every such model."""
    codes = {check.code for check in look(make_tiny_llama(num_hidden_layers=2)).checks}
    assert "G302" not in codes and "G303" in codes


def test_checks_and_settings(tiny_llama: Model) -> None:
    result = look(tiny_llama)
    verdicts = {check.code: check.verdict for check in result.checks}
    assert (verdicts["G301"], verdicts["G304"], verdicts["A001"]) == ("pass", "warn", "pass")
    assert from_settings("layer_stages", settings(result.measurement)) == result.measurement


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("llama", {"inputs": []}, "the list is empty"),
        ("llama", {"read": 0}, "read=0"),
        ("llama", {"resamples": 1}, "resamples"),
        ("gemma2", {}, "pass neurons=False"),
        ("mixtral", {}, "pass neurons=False"),
    ],
)
def test_bad_input_is_refused(kind: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        look(wrap(FAMILIES[kind].build()), **{"inputs": INPUTS, **changed})


def test_the_curves_alone_need_no_neurons() -> None:
    dataset = look(wrap(FAMILIES["gemma2"].build()), neurons=False).dataset
    assert float(dataset["stage"].sel(curve="kl_to_final")[-1]) < 1e-4 and "kind" not in dataset.coords
