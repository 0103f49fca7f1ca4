"""Layer paths against the streams and gradients they are made of, where the answer is known, and refused."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import assay
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.models.model import Model, wrap
from assay.models.partial import record
from assay.models.paths import loss_gradient, path_gradients, shallow_streams
from assay.models.twin import untrained_twin
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.metrics_slow import slow_metrics

INPUTS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1)).tolist()


def look(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    return assay.layer_paths(model, inputs, **{"baseline_inputs": 1, "resamples": 40, **changed})


def shares(model: Model, ids: list[int]) -> np.ndarray:
    """Sizes of each length's gradient, projections on the whole, and what cancels; one input alone."""
    recording = record(model, [ids])
    parts = path_gradients(recording, loss_gradient(recording))[:, 0].flatten(1).double().numpy()
    whole, size = parts.sum(0), np.linalg.norm(parts, axis=1)
    cancelled = np.full(len(size), size.sum() / np.linalg.norm(whole))
    return np.stack([size / size.sum(), parts @ whole / (whole @ whole), cancelled])


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_both_sides_are_those_of_their_parts(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    dataset = look(model, keep_first=False, read=3, seed=2, tolerances=(0.5, 0.05)).dataset
    for number, ids in enumerate(INPUTS):
        recording = record(model, [ids])
        clean = model.module(input_ids=recording.ids).logits[0].detach()
        for depth, stream in enumerate(shallow_streams(recording, keep_first=False)):
            edited = recording.readout(stream[0])
            expected = slow_metrics(clean, edited, recording.ids[0], read=[0, 2, 5])
            found = dataset["effect_by_input"].sel(input=number, depth=depth)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    samples = np.stack([shares(model, ids) for ids in INPUTS])
    expected = bootstrap(samples[:, 0], np.random.default_rng(2), resamples=40)
    np.testing.assert_allclose(dataset["gradient_share"], expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(dataset["gradient_share_stderr"], expected[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        dataset["baseline_gradient_share"],
        shares(untrained_twin(model, seed=2), INPUTS[0])[0],
        rtol=0,
        atol=1e-5,
    )
    np.testing.assert_allclose(dataset["projected_share"], samples[:, 1].mean(0), rtol=0, atol=1e-5)
    cancelled = np.log(samples[:, 2, 0])
    assert float(dataset["cancellation"]) == pytest.approx(np.exp(cancelled.mean()), rel=1e-4)
    spread = stats.t.ppf(0.975, len(cancelled) - 1) * stats.sem(cancelled)
    assert float(dataset["cancellation_high"]) == pytest.approx(np.exp(cancelled.mean() + spread), rel=1e-4)
    assert float(dataset["cancellation_stderr"]) == pytest.approx(
        float(dataset["cancellation"]) * stats.sem(cancelled), rel=1e-4
    )
    np.testing.assert_allclose(dataset["path_share"], stats.binom.pmf(range(4), 3, 0.5))
    assert float(dataset["projected_share"].sum()) == pytest.approx(1, abs=1e-5)
    own = assay.layer_horizon(
        model, INPUTS, keep_first=False, read=3, tolerances=(0.5, 0.05), baseline_inputs=0, seed=2
    ).dataset
    assert (dataset["smallest_horizon"].values == own["smallest_horizon"].values).all()


def test_a_position_that_is_kept_is_not_read() -> None:
    """It is clean by construction: beside others it would make every effect look smaller."""
    model = wrap(FAMILIES["gpt2"].build())
    recording = record(model, INPUTS)
    clean, dataset = model.module(input_ids=recording.ids).logits.detach(), look(model, seed=1).dataset
    for depth, stream in enumerate(shallow_streams(recording)):
        pairs = zip(clean, map(recording.readout, stream), recording.ids, strict=True)
        expected = torch.stack([slow_metrics(*pair, read=[1, 2, 3, 4, 5, 6]) for pair in pairs])
        np.testing.assert_allclose(dataset["effect_by_input"].sel(depth=depth), expected, rtol=0, atol=1e-4)
    own = assay.layer_horizon(model, INPUTS, baseline_inputs=0).dataset
    assert (dataset["smallest_horizon"].values == own["smallest_horizon"].values).all()
    assert float(dataset["clean_loss"]) == pytest.approx(float(own["clean_loss"]))


def test_blocks_that_read_the_embedding_alone_are_one_block_deep(make_tiny_llama: Any) -> None:
    """Layers 1 and 2 write nothing: one block in a row is the model, and no path with them carries a gradient."""
    model = make_tiny_llama()
    with torch.no_grad():
        for layer in model.module.model.layers[1:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    result = look(model, INPUTS, tolerances=(1e-3,), keep_first=False)
    dataset = result.dataset
    assert (
        float(dataset["depth_enough"][0]) == 1
        and float(dataset["effect"].sel(metric="kl_from_clean")[0]) > 0.01
    )
    np.testing.assert_allclose(dataset["gradient_share"][2:], 0, atol=1e-6)
    assert float(dataset["smallest_horizon"][0]) == 3 and float(dataset["lower_bound"][0]) == 1
    verdicts = {check.code: check.verdict for check in result.checks}
    assert (verdicts["K301"], verdicts["K302"], verdicts["K304"], verdicts["A001"]) == (
        "pass",
        "pass",
        "warn",
        "pass",
    )


def test_blocks_whose_writing_is_not_needed_set_no_bound(make_tiny_llama: Any) -> None:
    model = make_tiny_llama()
    with torch.no_grad():
        for layer in model.module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    result = look(model, INPUTS, tolerances=(1e-3,), keep_first=False)
    for name in ("smallest_horizon", "lower_bound", "depth_enough"):
        assert result.dataset[name].values.tolist() == [0]
    assert {check.code: check.verdict for check in result.checks}["K302"] == "pass"


def test_a_circuit_carries_other_lengths_than_its_untrained_twin_and_random_weights_do_not(
    tiny_llama: Model,
) -> None:
    copier = assay.load("zoo:copier")  # of 12 tokens
    inputs = [[token % 11 + 1 for token in row] for row in INPUTS]
    for model, rows, expected in ((copier, inputs, "pass"), (tiny_llama, INPUTS, "warn")):
        assert {check.code: check.verdict for check in look(model, rows).checks}["K303"] == expected


def test_one_input_has_no_interval_and_settings_make_the_measurement_again(tiny_llama: Model) -> None:
    result = look(tiny_llama, INPUTS[:1])
    assert "lower_bound_low" not in result.dataset and np.isnan(result.dataset["gradient_share_low"]).all()
    assert from_settings("layer_paths", settings(result.measurement)) == result.measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "the list is empty"),
        ({"max_inputs": 0}, "data set is empty"),
        ({"inputs": [[3], [4]]}, "needs a next token"),
        ({"tolerances": (-1.0,)}, "positive"),
        ({"read": 6}, "read=6: an input of 7 tokens has 5 positions"),
        ({"keep_first": False, "read": 7}, "read=7: an input of 7 tokens has 6 positions"),
        ({"resamples": 1}, "resamples"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        look(wrap(FAMILIES["llama"].build()), **{"inputs": INPUTS, **changed})
