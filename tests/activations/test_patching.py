"""Patching against one full forward a cell, by its invariants, on what a model has learned, and refused."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import assay
from assay.activations.indifferent import indifferent_copy
from assay.activations.patching import SITES, Patching, canonical_site
from assay.activations.prompt_pairs import Gauge
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.patching_slow import METRICS, SlowPatching

NATS = 2e-5  # float32: logits of size 10, summed in another order
CLEAN = ((5, 17, 23, 42, 8, 61, 9), (4, 17, 30, 42, 12, 61, 9), (9, 3, 23, 55, 8, 2, 9))
CORRUPTED = ((5, 17, 50, 42, 8, 61, 9), (4, 17, 31, 40, 12, 61, 9), (9, 3, 24, 55, 8, 2, 9))
ANSWERS, FOILS = (7, 19, 88), (12, 12, 90)
LAYERS, WHERE = range(3), range(7)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


def slow(kind: Any, model: Model, pair: int = 0, **changed: Any) -> SlowPatching:
    return SlowPatching(
        kind, model.module, CLEAN[pair], CORRUPTED[pair], ANSWERS[pair], FOILS[pair], **changed
    )


def patch(model: Model, pairs: int = 1, **changed: Any) -> assay.Result:
    given = {"answer": ANSWERS[:pairs], "foil": FOILS[:pairs], "baseline_pairs": 0, **changed}
    return assay.patch(model, CLEAN[:pairs], CORRUPTED[:pairs], **given)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_act", "mlp_out", "z"])
def test_every_cell_is_that_of_a_full_forward(kind: str, model: Model, site: str, direction: Any) -> None:
    dataset = patch(model, site=site, direction=direction).dataset
    twin = slow(kind, model, site=site, direction=direction)
    base, source = (twin.run(ids) for ids in twin.base_and_source)
    expected = twin.grid(3, WHERE)
    assert dataset["metric"].values.tolist() == list(METRICS)
    np.testing.assert_allclose(dataset["metric_patched"], expected, rtol=0, atol=NATS)
    np.testing.assert_allclose(dataset["effect"], expected - base[:, None, None], rtol=0, atol=2 * NATS)
    np.testing.assert_allclose(dataset["total_effect"], source - base, rtol=0, atol=2 * NATS)
    assert float(np.abs(dataset["effect"]).max()) > 100 * NATS  # something is compared


@pytest.mark.parametrize("site", ["q", "k", "v", "z"])
def test_heads_one_by_one(site: str) -> None:
    model = wrap(FAMILIES["llama"].build())
    heads = (1, 0) if site in "kv" else (3, 1)
    dataset = patch(model, site=site, by_head=True, heads=heads, positions=(-2, 2)).dataset
    assert dataset["effect"].dims == ("metric", "layer", "position", "head")
    assert dataset["position"].values.tolist() == [2, 5]
    twin = slow("llama", model, site=site)
    for layer in LAYERS:
        for position in (2, 5):
            for head in heads:
                found = dataset["metric_patched"].sel(layer=layer, position=position, head=head)
                np.testing.assert_allclose(found, twin.cell(layer, position, head), rtol=0, atol=NATS)


def test_several_pairs_have_intervals_over_pairs(kind: str, model: Model) -> None:
    dataset = patch(model, pairs=3, site="mlp_out", direction="noise").dataset
    twins = [slow(kind, model, pair, site="mlp_out", direction="noise") for pair in range(3)]
    base = torch.stack([twin.run(twin.base_and_source[0]) for twin in twins])
    total = (torch.stack([twin.run(twin.base_and_source[1]) for twin in twins]) - base).numpy()
    effect = (torch.stack([twin.cell(1, 4) for twin in twins]) - base).numpy()
    cell, reach = dataset.sel(layer=1, position=4), stats.t.ppf(0.975, 2)
    stderr = effect.std(0, ddof=1) / np.sqrt(3)
    ratio = effect.mean(0) / total.mean(0)
    ratio_stderr = (effect - ratio * total).std(0, ddof=1) / np.sqrt(3) / np.abs(total.mean(0))
    for name, expected in {
        "effect": effect.mean(0),
        "effect_stderr": stderr,
        "effect_low": effect.mean(0) - reach * stderr,
        "effect_high": effect.mean(0) + reach * stderr,
    }.items():
        np.testing.assert_allclose(cell[name], expected, rtol=0, atol=10 * NATS)
    scale = float(np.abs(total.mean(0)).min())
    np.testing.assert_allclose(cell["normalised_effect"], ratio, rtol=1e-3, atol=4 * NATS / scale)
    np.testing.assert_allclose(
        cell["normalised_effect_high"], ratio + reach * ratio_stderr, rtol=1e-3, atol=40 * NATS / scale
    )


def test_the_baseline_patches_from_copies_of_the_seed(kind: str, model: Model) -> None:
    dataset = patch(model, pairs=3, baseline_pairs=2, seed=5, positions=(3,)).dataset
    expected, apart, replaced = [], [], []
    for pair in range(2):
        twin = slow(kind, model, pair)
        base = twin.run(twin.base_and_source[0])
        copied = copies(model, pair, seed=5 + pair)
        expected.append(twin.cell(1, 3, source=copied) - base)
        apart.append(twin.run(torch.tensor([copied])) - base)
        replaced.append(int((torch.tensor([copied]) != twin.base_and_source[0]).sum()))
    found = dataset["baseline_effect"].sel(layer=1, position=3)
    np.testing.assert_allclose(found, torch.stack(expected).mean(0), rtol=0, atol=2 * NATS)
    assert float(dataset["baseline_replaced"]) == np.mean(replaced) > 0
    total = dataset["baseline_total_effect"]
    np.testing.assert_allclose(total, torch.stack(apart).mean(0), rtol=0, atol=2 * NATS)
    other = patch(model, pairs=3, baseline_pairs=2, seed=6, positions=(3,)).dataset
    assert not np.allclose(other["baseline_total_effect"], total, atol=NATS)
    assert "baseline_effect" not in patch(model, positions=(3,)).dataset


def copies(model: Model, pair: int, seed: int) -> list[int]:
    """The copy that the baseline is to take of a corrupted prompt."""
    final = torch.log_softmax(assay.capture(model, CLEAN[pair], "logits")["logits"][0, -1], -1)
    gauge = Gauge(METRICS, ANSWERS[pair], FOILS[pair], final)
    ids = torch.tensor([CORRUPTED[pair]]), torch.tensor([CLEAN[pair]])
    return indifferent_copy(model, *ids, gauge, seed * 1_000_003)[0].tolist()


def test_before_the_prompts_differ_nothing_changes_and_the_last_state_is_the_other_run(model: Model) -> None:
    result = patch(model, pairs=2, site="resid_post", baseline_pairs=1)
    assert (result.dataset["effect"].sel(position=[0, 1]) == 0).all()
    last = result.dataset.sel(layer=2, position=6)
    np.testing.assert_allclose(last["metric_patched"], last["metric_source"], rtol=0, atol=NATS)
    defined = last.sel(metric=["log_probability", "kl_from_clean"])
    np.testing.assert_allclose(defined["normalised_effect"], 1, rtol=0, atol=1e-3)
    assert {check.code for check in result.checks if check.code[0] == "P"} == {"P101", "P102", "P103", "P104"}
    assert [check.verdict for check in result.checks if check.code in ("P103", "P104")] == ["pass", "pass"]


def test_rows_at_once_do_not_change_the_numbers(model: Model) -> None:
    settings_: dict[str, Any] = {"site": "z", "by_head": True, "positions": (2, 6)}
    one, many = (patch(model, max_rows=rows, **settings_).dataset for rows in (1, None))
    np.testing.assert_allclose(one["metric_patched"], many["metric_patched"], rtol=0, atol=NATS)


def test_metrics_can_be_chosen_and_follow_from_what_is_given(model: Model) -> None:
    chosen = patch(model, metrics=("kl_from_clean", "logit_difference")).dataset
    assert chosen["metric"].values.tolist() == ["kl_from_clean", "logit_difference"]
    everything = patch(model).dataset.sel(metric=chosen["metric"])
    np.testing.assert_array_equal(chosen["metric_patched"], everything["metric_patched"])
    assert patch(model, foil=None).dataset["metric"].values.tolist() == [
        "log_probability", "probability", "kl_from_clean",
    ]  # fmt: skip
    assert patch(model, answer=None, foil=None).dataset["metric"].values.tolist() == ["kl_from_clean"]


def test_equal_prompts_are_told(model: Model) -> None:
    result = assay.patch(model, CLEAN[0], CLEAN[0], answer=7)
    assert (result.dataset["effect"] == 0).all()
    assert np.isnan(result.dataset["normalised_effect"]).all()
    verdicts = {check.code: check.verdict for check in result.checks}
    assert (verdicts["A001"], verdicts["P101"], verdicts["P102"]) == ("pass", "fail", "warn")


def test_blocks_that_keep_no_cache_are_patched_by_full_forwards(model: Model, kind: str) -> None:
    module = FAMILIES[kind].build()
    own = module.forward
    module.forward = lambda input_ids, **_: own(input_ids=input_ids)
    result = patch(wrap(module), site="z", by_head=True)
    expected = patch(model, site="z", by_head=True).dataset
    np.testing.assert_allclose(
        result.dataset["metric_patched"], expected["metric_patched"], rtol=0, atol=NATS
    )
    assert [check.verdict for check in result.checks if check.code == "P104"] == ["warn"]


def test_what_a_model_has_learned_is_found(make_tiny_llama: Callable[..., Model]) -> None:
    """Trained to answer by the token at position 1: at first that position carries all of it, at last the end does."""
    model = make_tiny_llama(num_hidden_layers=2)
    facts = {60: 301, 61: 302, 62: 303, 63: 304}
    prompts = torch.tensor([[40, key, 50, 51, answer] for key, answer in facts.items()])
    optimizer = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model.module(prompts[:, :-1]).logits[:, -1], prompts[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean = [[40, key, 50, 51] for key in facts]
    result = assay.patch(
        model, clean, [*clean[1:], clean[0]], answer=list(facts.values()),
        foil=[*list(facts.values())[1:], 301], site="resid_post", metrics=("logit_difference",), baseline_pairs=4,
    )  # fmt: skip
    share = result.dataset["normalised_effect"].sel(metric="logit_difference")
    assert float(share.sel(layer=1, position=3)) == pytest.approx(1, abs=1e-4)
    assert float(share.sel(layer=1, position=1)) == pytest.approx(0, abs=1e-4)
    assert float(share.sel(layer=0, position=1) + share.sel(layer=0, position=3)) > 0.5
    assert float(result.dataset["effect_low"].sel(layer=1, position=3)[0]) > 0
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")


def test_text_is_paired_and_answered_in_text(tiny_llama: Model) -> None:
    result = assay.patch(
        tiny_llama,
        "Mary said that",
        "John said that",
        answer=" Mary",
        foil=" John",
        baseline_pairs=0,
        positions=(0,),
    )
    assert result.dataset.attrs["answer"] == " Mary"
    assert result.dataset["clean_token"].values[0, 0] != result.dataset["corrupted_token"].values[0, 0]


def test_settings_make_the_same_measurement_again(model: Model) -> None:
    measurement = patch(
        model, pairs=2, site="hook_z", by_head=True, heads=(2,), seed=3, max_rows=5
    ).measurement
    assert isinstance(measurement, Patching)
    assert (measurement.site, measurement.heads, measurement.max_rows) == ("z", (2,), 5)
    assert from_settings("patching", settings(measurement)) == measurement


@pytest.mark.parametrize(
    "name", ["hook_resid_mid", "attn.hook_v", "hook_v", "resid_mid", "mlp.hook_post", "nothing"]
)
def test_a_site_goes_by_either_name(name: str) -> None:
    assert canonical_site(name) in (*SITES, "nothing")
    assert (canonical_site(name) == "nothing") == (name == "nothing")


def test_numbers_of_arrays_and_one_metric_are_settings(tmp_path: Path) -> None:
    """A run folder holds plain integers; a bare word is no list of letters."""
    model = wrap(FAMILIES["llama"].build())
    given: dict[str, Any] = {
        "site": "z",
        "by_head": True,
        "answer": 7,
        "metrics": "probability",
        "out": tmp_path,
    }
    where = {"positions": list(np.array([5, 6])), "heads": list(np.array([1]))}
    unchecked: Any = inspect.unwrap(assay.patch)  # tests hold types that users pass by
    dataset = unchecked(model, CLEAN[0], CORRUPTED[0], **given, **where, baseline_pairs=0).dataset
    assert dict(dataset.sizes) == {"metric": 1, "layer": 3, "position": 2, "head": 1, "pair": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corrupted": CORRUPTED[0][:-1]}, r"the prompts have \[6, 7\] tokens"),
        ({"corrupted": CORRUPTED[:2]}, "1 clean and 2 corrupted"),
        ({"clean": []}, "the list is empty"),
        ({"answer": None, "metrics": ("probability",)}, "probability needs answer="),
        ({"foil": None, "metrics": ("logit_difference",)}, "logit_difference needs foil="),
        ({"answer": [1, 2]}, "2 values of answer for 1 pairs"),
        ({"metrics": ("kl_from_clean", "kl_from_clean")}, "each once"),
        ({"site": "resid"}, "cannot be patched"),
        ({"site": "pattern"}, "cannot be patched"),
        ({"site": "z.1"}, "is of one layer; give site='z'"),
        ({"site": "blocks.1.attn.hook_z"}, "is of one layer; give site='z'"),
        ({"site": "z", "by_head": True, "heads": (0, 4)}, "has 4, numbered 0 to 3"),
        ({"site": "mlp_out", "by_head": True}, "has no heads"),
        ({"site": "z", "heads": (1,)}, "only with by_head=True"),
        ({"positions": (7,)}, "the prompts have 7, from 0 to 6"),
        ({"positions": ()}, "the prompts have 7, from 0 to 6"),
        ({"baseline_pairs": -1}, "baseline_pairs=-1"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    model = wrap(FAMILIES["llama"].build())
    given: dict[str, Any] = {"clean": CLEAN[0], "corrupted": CORRUPTED[0], "answer": 7, "foil": 9, **changed}
    with pytest.raises(BadInput, match=message):
        assay.patch(model, **given)


def test_an_answer_of_several_tokens_is_refused(tiny_llama: Model) -> None:
    with pytest.raises(BadInput, match="give a single token"):
        assay.patch(tiny_llama, "The Eiffel", "The Eiffel", answer=" zebrafish quantum")


def test_a_site_that_a_family_does_not_compute_is_refused() -> None:
    parallel = next(family for family in FAMILIES.values() if family.parallel)
    with pytest.raises(BadInput, match="computes no such tensor"):
        patch(wrap(parallel.build()), site="resid_mid")
