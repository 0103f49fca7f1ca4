"""The causal trace against one full forward a cell, by its invariants, and where there is nothing to find."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

import assay
from assay.activations.causal_trace import CausalTrace
from assay.activations.restoration import METRICS, embedding_scale, window_of
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.models.partial import SiteEdit, partial_forward
from assay.runs.measurement import from_settings, settings
from assay.runs.perform import perform
from assay.runs.result import Result
from families import FAMILIES
from reference.rome_slow import SlowTrace, drawn_noise, spread

PROBABILITY = 1e-6  # float32: the promise
NATS = 2e-5  # float32: logits of size 10, summed in another order
TOLERANCES = dict(zip(METRICS, (PROBABILITY, NATS, NATS, NATS), strict=True))
ALL_KINDS = ("state", "mlp", "attn", "state_mlp_severed", "state_attn_severed")
PROMPT, SUBJECT = (5, 17, 23, 42, 8, 61, 9), (2, 3)
FOIL = 12
OTHERS = ((5, 17, 50, 64, 8, 61, 9), (5, 17, 71, 33, 8, 61, 9), (5, 17, 90, 91, 8, 61, 9))
SETTINGS: dict[str, Any] = {
    "kinds": ALL_KINDS, "window": 2, "noise": 1.5, "noise_samples": 3, "seed": 4, "sigma": 0.3,
    "foil": FOIL, "baseline_samples": 0,
}  # fmt: skip
"""None of them the default."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


@pytest.fixture(scope="module")
def noised(model: Model) -> Result:
    return trace(model)


@pytest.fixture(scope="module")
def slow(kind: str, model: Model) -> SlowTrace:
    noise = drawn_noise(3, len(SUBJECT), model.d_model, 1.5 * 0.3, seed=4)
    return SlowTrace(kind, model.module, PROMPT, SUBJECT, said(model), FOIL, noise, window=2)


def trace(model: Model, **changed: Any) -> Result:
    return assay.causal_trace(model, PROMPT, SUBJECT, **{"answer": said(model), **SETTINGS, **changed})


def said(model: Model) -> tuple[int, int]:
    """The two tokens a model says next, so that there is a probability to lose."""
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(2):
            ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-2], ids[-1]


def agree(dataset: xr.Dataset, slow: SlowTrace, kinds: Sequence[str] = ALL_KINDS) -> None:
    """Every metric of every cell, with its standard error over the samples."""
    clean, corrupted = slow.clean(), slow.corrupted()
    for index, metric in enumerate(METRICS):
        tolerance = TOLERANCES[metric]
        found = dataset.sel(metric=metric)
        assert float(found["metric_clean"]) == pytest.approx(float(clean[index]), abs=tolerance)
        assert float(found["metric_corrupted"]) == pytest.approx(
            float(corrupted[:, index].mean()), abs=tolerance
        )
        for kind in kinds:
            expected = slow.grid(kind)[..., index]  # layer, position, sample
            effect = (expected - corrupted[:, index]).numpy()
            restored, cell = found["metric_restored"].sel(kind=kind), found["metric_effect"].sel(kind=kind)
            np.testing.assert_allclose(restored, expected.mean(-1), rtol=0, atol=tolerance)
            np.testing.assert_allclose(cell, effect.mean(-1), rtol=0, atol=2 * tolerance)
            stderr = effect.std(-1, ddof=1) / np.sqrt(slow.samples)
            np.testing.assert_allclose(
                found["metric_effect_stderr"].sel(kind=kind), stderr, rtol=0, atol=2 * tolerance
            )


def test_noise_windows_severed_paths_and_long_answers_as_one_forward_a_cell(
    noised: Result, slow: SlowTrace
) -> None:
    agree(noised.dataset, slow)
    assert noised.dataset.attrs["engine"] == "partial forwards"
    assert float(np.abs(noised.dataset["indirect_effect"]).max()) > 100 * PROBABILITY  # something is compared


def test_replacement_as_one_forward_a_cell(kind: str, model: Model) -> None:
    replaced = CausalTrace(
        tokens=PROMPT, subject=SUBJECT, answer=said(model), replacements=OTHERS, foil=FOIL, window=3,
        kinds=ALL_KINDS, baseline_samples=0,
    )  # fmt: skip
    dataset = perform(replaced, model).dataset
    agree(dataset, SlowTrace(kind, model.module, PROMPT, SUBJECT, said(model), FOIL, None, OTHERS, window=3))
    assert dataset.attrs["corruption"] == "replacement"


def test_defaults_are_the_models_own_answer_and_the_spread_of_the_embeddings(kind: str, model: Model) -> None:
    dataset = assay.causal_trace(model, PROMPT, SUBJECT, kinds=("state",), noise_samples=2).dataset
    embedding = model.module.get_input_embeddings().weight.detach()
    sigma = spread(embedding, [range(len(embedding))])
    with torch.no_grad():
        answer = int(model.module(torch.tensor([PROMPT])).logits[0, -1].argmax())
    noise = drawn_noise(2, len(SUBJECT), model.d_model, 3 * sigma, seed=0)
    slow = SlowTrace(kind, model.module, PROMPT, SUBJECT, [answer], 0, noise)
    said = torch.stack([logits[0].softmax(-1) for logits, _ in slow.corrupted_runs]).mean(0)
    foil = int(said.index_fill(0, torch.tensor([answer]), -1).argmax())
    assert dataset.attrs["answer_tokens"] == [answer]
    assert dataset.attrs["foil"] == str(foil)
    slow = SlowTrace(kind, model.module, PROMPT, SUBJECT, [answer], foil, noise)
    agree(dataset, slow, ("state",))


def test_rows_at_once_do_not_change_the_numbers(model: Model, noised: Result) -> None:
    fewer = trace(model, max_rows=4).dataset
    for name in ("metric_restored", "metric_effect_stderr"):
        np.testing.assert_allclose(fewer[name], noised.dataset[name], rtol=0, atol=NATS)


@pytest.mark.parametrize("replaced", [False, True])
def test_cells_before_the_subject_are_the_corrupted_run_exactly(
    model: Model, noised: Result, *, replaced: bool
) -> None:
    dataset = noised.dataset
    if replaced:
        measurement = CausalTrace(
            tokens=PROMPT, subject=SUBJECT, answer=said(model), replacements=OTHERS, window=3
        )
        dataset = perform(measurement, model).dataset
    before = dataset.isel(position=slice(0, SUBJECT[0]))
    assert (before["p_restored"] == dataset["p_corrupted"]).all()
    assert (before["metric_restored"] == dataset["metric_corrupted"]).all()
    assert (before["metric_effect"] == 0).all()
    assert (before["metric_effect_stderr"] == 0).all()


def test_the_last_state_at_the_last_position_is_the_clean_run(model: Model) -> None:
    dataset = trace(model, answer=said(model)[:1]).dataset
    last = dataset.isel(layer=-1, position=-1).sel(kind=["state", "state_mlp_severed"])
    for name, tolerance in TOLERANCES.items():
        for found in last["metric_restored"].sel(metric=name):
            assert float(found) == pytest.approx(
                float(dataset["metric_clean"].sel(metric=name)), abs=tolerance
            )
    assert float(dataset["metric_clean"].sel(metric="kl_from_clean")) == pytest.approx(0, abs=NATS)


def test_a_subject_restored_at_the_embedding_is_the_clean_run(model: Model) -> None:
    measurement = CausalTrace(tokens=PROMPT, subject=SUBJECT, answer=said(model), window=1, noise_samples=3)
    runs = measurement.prepare(model)
    everything = SiteEdit("resid_pre.0", runs.clean.resid[0][:, SUBJECT], SUBJECT)
    read = range(len(PROMPT) - 1, len(PROMPT) + 1)
    found = partial_forward(runs.corrupted, [(everything,)], runs.measure, positions=read)[0]
    expected = runs.of_run(runs.clean).expand(3, -1)
    assert (runs.of_run(runs.corrupted) - expected).abs().min(0).values[1:].max() > 100 * NATS
    for index, tolerance in enumerate(TOLERANCES.values()):
        torch.testing.assert_close(found[:, index], expected[:, index], rtol=0, atol=tolerance)


def test_noise_that_disturbs_nothing_is_told(model: Model) -> None:
    result = trace(model, noise=1e-30, kinds=("state",))
    np.testing.assert_allclose(
        result.dataset["p_restored"], result.dataset["p_clean"], rtol=0, atol=PROBABILITY
    )
    assert [check.verdict for check in result.checks if check.code == "T102"] == ["fail"]


def test_a_window_of_every_block_is_restored_alike_at_every_layer(model: Model) -> None:
    dataset = trace(model, window=3, kinds=("mlp",)).dataset
    assert (dataset["p_restored"] == dataset["p_restored"].isel(layer=0)).all()
    assert dataset["window_start"].values.tolist() == [0, 0, 0]
    assert dataset["window_stop"].values.tolist() == [3, 3, 3]


def test_windows_keep_their_size_at_the_borders() -> None:
    assert [window_of(layer, 8, 4) for layer in range(8)] == [
        (0, 4), (0, 4), (0, 4), (1, 5), (2, 6), (3, 7), (4, 8), (4, 8),
    ]  # fmt: skip


def test_intervals_are_those_of_the_samples(noised: Result, slow: SlowTrace) -> None:
    dataset, corrupted = noised.dataset, slow.corrupted()[:, 0].numpy()
    lost = float(slow.clean()[0]) - corrupted
    reach = stats.t.ppf(0.975, 2) * lost.std(ddof=1) / np.sqrt(3)
    assert float(dataset["p_corrupted_stderr"]) == pytest.approx(
        corrupted.std(ddof=1) / np.sqrt(3), abs=PROBABILITY
    )
    assert float(dataset["total_effect"]) == pytest.approx(lost.mean(), abs=PROBABILITY)
    assert float(dataset["total_effect_low"]) == pytest.approx(lost.mean() - reach, abs=5 * PROBABILITY)
    assert float(dataset["total_effect_high"]) == pytest.approx(lost.mean() + reach, abs=5 * PROBABILITY)
    effect = (slow.cell("mlp", 1, 3)[:, 0]).numpy() - corrupted
    here = dataset.sel(kind="mlp", layer=1, position=3)
    reach = stats.t.ppf(0.975, 2) * effect.std(ddof=1) / np.sqrt(3)
    assert float(here["indirect_effect_low"]) == pytest.approx(effect.mean() - reach, abs=5 * PROBABILITY)
    assert float(here["indirect_effect_high"]) == pytest.approx(effect.mean() + reach, abs=5 * PROBABILITY)


def test_one_sample_has_an_effect_and_no_interval(model: Model) -> None:
    result = trace(model, noise_samples=1, kinds=("state",))
    assert np.isfinite(result.dataset["indirect_effect"]).all()
    assert np.isnan(result.dataset["indirect_effect_stderr"]).all()
    assert [check.verdict for check in result.checks if check.code == "A001"] == ["pass"]


def test_the_same_seed_is_the_same_trace_and_another_is_not(model: Model, noised: Result) -> None:
    assert trace(model).dataset.identical(noised.dataset)
    assert not np.allclose(
        trace(model, seed=5, kinds=("attn",)).dataset["p_corrupted"], noised.dataset["p_corrupted"], atol=1e-9
    )


def test_blocks_that_keep_no_cache_are_traced_by_full_forwards(
    model: Model, noised: Result, kind: str
) -> None:
    module = FAMILIES[kind].build()
    own = module.forward
    module.forward = lambda input_ids, **_: own(input_ids=input_ids)
    result = trace(wrap(module))
    np.testing.assert_allclose(
        result.dataset["p_restored"], noised.dataset["p_restored"], rtol=0, atol=PROBABILITY
    )
    assert result.dataset.attrs["engine"].startswith("full forwards: ")
    assert [check.verdict for check in result.checks if check.code == "T105"] == ["warn"]


@pytest.fixture(scope="module")
def learned(make_tiny_llama: Callable[..., Model]) -> Model:
    """A tiny LLaMA trained to continue three subjects with three answers, so that there is something to find."""
    model = make_tiny_llama(num_hidden_layers=2)
    prompts = torch.tensor([[40, a, b, 50, 51, answer] for a, b, answer in FACTS])
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.module(prompts[:, :-1]).logits[:, -1], prompts[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


FACTS = ((60, 70, 301), (61, 71, 302), (62, 72, 303))


def test_what_a_model_has_learned_is_found_and_its_untrained_twin_has_none_of_it(learned: Model) -> None:
    a, b, answer = FACTS[0]
    result = assay.causal_trace(learned, [40, a, b, 50, 51], [1, 2], [answer], baseline_samples=3, noise=6)
    dataset = result.dataset
    assert float(dataset["p_clean"]) > 0.9
    assert float(dataset["total_effect"]) > 0.3
    largest = float(np.abs(dataset["indirect_effect"]).max())
    assert largest > 0.2
    assert float(np.abs(dataset["baseline_indirect_effect"]).max()) < 0.05 * largest
    assert abs(float(dataset["baseline_total_effect"])) < 0.05 * largest
    assert {check.code: check.verdict for check in result.checks} == dict.fromkeys(
        ("A001", "A002", "T101", "T102", "T103", "T104", "T105"), "pass"
    )


def test_the_baseline_is_the_same_trace_of_another_model(model: Model) -> None:
    """The twin's effect is computed like the model's own: before the subject it is zero, elsewhere it is not."""
    dataset = trace(model, baseline_samples=2, kinds=("mlp", "attn")).dataset
    baseline = dataset["baseline_indirect_effect"]
    assert baseline.dims == ("kind", "layer", "position")
    assert (baseline.isel(position=slice(0, 2)) == 0).all()
    assert (baseline.isel(position=slice(2, None)) != 0).any()
    assert "baseline_indirect_effect" not in trace(model, kinds=("attn",)).dataset


def test_text_is_found_and_answered_in_text(tiny_llama: Model) -> None:
    prompt = "Mrs Dursley had seen Mr Dursley near the old"
    result = assay.causal_trace(tiny_llama, prompt, "Dursley", " gate", foil=" rain", noise_samples=2)
    dataset = result.dataset
    marked = [str(t) for t, s in zip(dataset["token"].values, dataset["is_subject"].values, strict=True) if s]
    assert "".join(marked).count("Dursley") == 2
    assert dataset.attrs["answer"] == " gate"
    assert (
        tuple(dataset.attrs["answer_tokens"])
        == tiny_llama.tokens(prompt + " gate")[len(tiny_llama.tokens(prompt)) :]
    )
    foils = tiny_llama.tokens(prompt + " rain")
    assert dataset.attrs["foil"] == tiny_llama.token_texts([foils[len(tiny_llama.tokens(prompt))]])[0]
    second = assay.causal_trace(tiny_llama, prompt, "Dursley", occurrence=-1, noise_samples=2).dataset
    assert int(second["is_subject"].sum()) == int(dataset["is_subject"].sum()) // 2
    assert bool(second["is_subject"].values[-1]) is False
    assert second["is_subject"].values.argmax() > dataset["is_subject"].values.argmax()


def test_a_replacement_in_text_changes_the_subject_alone(tiny_llama: Model) -> None:
    prompt = "The Eiffel Tower is located in"
    swapped = assay.causal_trace(
        tiny_llama, prompt, "Tower", replace_with=["Harry", "Paris"], baseline_samples=1
    )
    measurement = swapped.measurement
    assert isinstance(measurement, CausalTrace)
    assert len(measurement.replacements) == measurement.samples == 2
    inside = set(measurement.subject)
    for other in measurement.replacements:
        changed = {i for i, (x, y) in enumerate(zip(measurement.tokens, other, strict=True)) if x != y}
        assert changed
        assert changed <= inside
    alone = assay.causal_trace(tiny_llama, prompt, "Tower", replace_with="Harry", baseline_samples=0)
    assert alone.measurement.samples == 1


def test_sigma_is_the_spread_over_a_list_of_subjects(tiny_llama: Model) -> None:
    texts = ["Dursley", "Mary and John"]
    embedding = tiny_llama.module.get_input_embeddings().weight.detach()
    tokens = [tiny_llama.tokens(text) for text in texts]
    assert embedding_scale(tiny_llama, texts) == pytest.approx(spread(embedding, tokens), rel=1e-5)
    assert embedding_scale(tiny_llama) != embedding_scale(tiny_llama, texts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": ()}, "choose from state, mlp, attn"),
        ({"kinds": ("state", "state")}, "each kind once"),
        ({"window": 0}, "window=0: restore between 1 and the model's 3 blocks"),
        ({"window": 4}, "window=4"),
        ({"noise_samples": 0}, "noise_samples must be at least 1"),
        ({"baseline_samples": -1}, "baseline_samples at least 0"),
        ({"noise": 0.0}, "noise=0.0: the noise needs a positive scale"),
        ({"noise": float("nan")}, "noise"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"sigma": -0.1}, "sigma=-0.1"),
        ({"foil": 101}, "foil=101: the vocabulary has 101 tokens"),
        ({"foil": -1}, "foil=-1"),
        ({"answer": (31, 77), "foil": 31}, "foil=31 is the answer"),
        ({"max_rows": 2}, "max_rows=2 does not hold the 3 samples"),
        ({"answer": ()}, "empty"),
        ({"answer": (200,)}, "token ids run from 200"),
        ({"answer": "Paris"}, "no tokenizer"),
        ({"answer": tuple(range(3, 63))}, "more than the context of 64"),
        ({"replace_with": "other"}, "replace_with needs the prompt and the subject as text"),
    ],
)
def test_a_wrong_setting_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        trace(model, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject": (7,)}, "positions must lie in the prompt's 0 to 6"),
        ({"subject": ()}, "positions must lie in the prompt's 0 to 6"),
        ({"replacements": (PROMPT[:-1],)}, "as many tokens as the prompt"),
        ({"replacements": ((5, 17, 50, 64, 9, 61, 9),)}, "outside the subject"),
    ],
)
def test_a_wrong_measurement_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"tokens": PROMPT, "subject": SUBJECT, "window": 1, **changed}
    with pytest.raises(BadInput, match=message):
        perform(CausalTrace(**settings), model)


def test_an_unknown_kind_is_refused(model: Model) -> None:
    written = settings(CausalTrace(tokens=PROMPT, subject=SUBJECT, window=1)) | {"kinds": ["stat"]}
    with pytest.raises(BadInput, match="kinds"):
        perform(from_settings("causal_trace", written), model)


@pytest.mark.smollm2
def test_smollm2_recalls_at_the_subject_early_and_at_the_last_token_late(smollm2: Model) -> None:
    result = assay.causal_trace(
        smollm2, "The Eiffel Tower is located in the city of", "Eiffel Tower", " Paris",
        noise_samples=3, kinds=("state",), baseline_samples=0,
    )  # fmt: skip
    dataset = result.dataset
    effect = dataset["indirect_effect"].sel(kind="state")
    early = effect.isel(layer=slice(0, 10)).max("layer")
    assert bool(dataset["is_subject"][early.values.argmax()])
    assert float(early.max()) > 0.3
    assert effect.isel(layer=slice(25, None)).max("layer").values.argmax() == effect.sizes["position"] - 1
    assert float(dataset["total_effect_low"]) > 0
