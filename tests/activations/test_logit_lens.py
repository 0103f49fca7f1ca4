"""The logit lens against one row at a time in float64, by what it must equal, and where there is nothing to read."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import assay
from assay.activations.logit_lens import LogitLens, rotate
from assay.activations.logit_rows import read_rows
from assay.errors import BadInput
from assay.models.intervention import capture
from assay.models.model import Model, wrap
from assay.runs.perform import perform
from families import FAMILIES
from reference.lens_slow import SlowLens

PROBABILITY = 1e-6  # float32: the promise
NATS = 2e-5  # float32: logits of size 10 through a norm, a matmul and a logarithm
TOKENS = [5, 17, 23, 42, 8, 61, 9, 77, 30, 12, 95, 54, 3, 28, 66, 81, 44, 19]  # more than one unit holds


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


def agree(dataset: xr.Dataset, slow: SlowLens, stream: str) -> None:
    """Every row of the lens."""
    assert dataset.sizes["layer"] == len(slow.states(stream))
    for layer, states in enumerate(slow.states(stream)):
        for position, state in enumerate(states):
            cell, expected = dataset.isel(layer=layer, position=position), slow.cell(state, position)
            count = cell.sizes["rank"]
            assert cell["top_token"].values.tolist() == expected.pop("top_token")[:count]
            np.testing.assert_allclose(
                cell["top_probability"], expected.pop("top_probability")[:count], rtol=0, atol=PROBABILITY
            )
            for name, value in expected.items():
                assert float(cell[name]) == pytest.approx(value, abs=NATS), (name, layer, position)


@pytest.mark.parametrize(("stream", "top_k"), [("resid", 3), ("attn_out", 7), ("mlp_out", 101)])
def test_every_row_is_the_one_read_alone(kind: str, model: Model, stream: Any, top_k: int) -> None:
    dataset = assay.logit_lens(model, TOKENS, stream=stream, top_k=top_k).dataset
    assert dataset.sizes["rank"] == top_k
    assert dataset.attrs["stream"] == stream
    agree(dataset, SlowLens(kind, model.module, TOKENS), stream)


def test_the_last_layer_is_the_model(model: Model) -> None:
    dataset = assay.logit_lens(model, TOKENS).dataset
    with torch.no_grad():
        said = model.module(torch.tensor([TOKENS])).logits[0].log_softmax(-1)
    last = dataset.isel(layer=-1)
    assert last["top_token"].isel(rank=0).values.tolist() == said.argmax(-1).tolist()
    np.testing.assert_allclose(last["kl_to_final"], 0, atol=NATS)
    own = said[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]
    np.testing.assert_allclose(last["target_log_probability"][:-1], own, rtol=0, atol=NATS)
    np.testing.assert_allclose(dataset["model_log_probability"], own, rtol=0, atol=NATS)


def test_the_last_position_has_no_next_token(model: Model) -> None:
    dataset = assay.logit_lens(model, TOKENS).dataset
    last = dataset.isel(position=-1)
    assert (last["target_rank"] == -1).all()
    assert np.isnan(last["target_log_probability"]).all()
    assert (dataset["target_rank"].isel(position=slice(None, -1)) >= 0).all()
    assert dataset["next_token"].values.tolist() == [str(t) for t in TOKENS[1:]] + [""]


def test_layers_are_named_by_their_sites(model: Model) -> None:
    resid, written = (assay.logit_lens(model, TOKENS, stream=s).dataset for s in ("resid", "mlp_out"))
    assert resid["site"].values.tolist() == ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2"]
    assert resid["layer"].values.tolist() == [0, 1, 2, 3]
    assert written["site"].values.tolist() == ["mlp_out.0", "mlp_out.1", "mlp_out.2"]
    assert written["layer"].values.tolist() == [0, 1, 2]


def test_the_baseline_reads_the_same_rows_through_a_rotation_of_the_seed(model: Model) -> None:
    dataset = assay.logit_lens(model, TOKENS, baseline_rows=9, seed=3).dataset
    assert dataset.sizes["baseline_row"] == 9
    runs = LogitLens(tokens=tuple(TOKENS), baseline_rows=9, seed=3).prepare(model)
    turned = {
        tuple(place): state.double() for place, state in zip(runs.rotated.tolist(), runs.turned, strict=True)
    }
    lens = SlowLens("llama" if "Llama" in model.source else "gpt2", model.module, TOKENS)
    for row in range(9):
        one = dataset.isel(baseline_row=row)
        layer, position = int(one["baseline_layer"]), int(one["baseline_position"])
        expected = lens.cell(turned[layer, position], position)
        for name in ("entropy", "kl_to_final", "target_rank", "target_log_probability"):
            assert float(one[f"baseline_{name}"]) == pytest.approx(expected[name], abs=5 * NATS), name
        agrees = expected["top_token"][0] == int(lens.final(position).argmax())
        assert bool(one["baseline_agrees"]) is agrees
    other = assay.logit_lens(model, TOKENS, baseline_rows=9, seed=4).dataset
    assert not other["baseline_entropy"].equals(dataset["baseline_entropy"])
    assert other["entropy"].equals(dataset["entropy"])


@pytest.mark.parametrize("rows", [3, 40])  # fewer and more than there are dimensions
def test_a_rotation_keeps_inner_products_and_nothing_else(rows: int) -> None:
    states = torch.randn(rows, 16, generator=torch.Generator().manual_seed(5))
    turned = rotate(states, torch.Generator().manual_seed(6))
    torch.testing.assert_close(turned @ turned.T, states @ states.T, rtol=0, atol=1e-4)
    cosine = torch.cosine_similarity(turned, states)
    assert float(cosine.abs().max()) < 0.9
    # the mean over rotations is zero: no direction is preferred
    many = torch.stack([rotate(states, torch.Generator().manual_seed(seed)) for seed in range(400)])
    spread = states.norm(dim=1, keepdim=True) / 16**0.5  # of an entry of a vector turned at random
    assert bool((many.mean(0).abs() < 5 * spread / 400**0.5).all())


def test_more_baseline_rows_than_there_are_gives_all(model: Model) -> None:
    dataset = assay.logit_lens(model, TOKENS[:4], baseline_rows=1000).dataset
    places = set(
        zip(
            dataset["baseline_layer"].values.tolist(),
            dataset["baseline_position"].values.tolist(),
            strict=True,
        )
    )
    assert places == {(layer, position) for layer in range(4) for position in range(3)}


def test_a_rotation_finds_nothing_where_the_lens_finds_the_model(model: Model) -> None:
    result = assay.logit_lens(model, TOKENS, baseline_rows=1000)
    agreement = float(result.dataset["baseline_agrees"].mean())
    assert agreement < 0.1  # of 101 tokens one is right by chance
    kl = result.dataset["kl_to_final"]
    assert float(result.dataset["baseline_kl_to_final"].median()) > 2 * float(kl.isel(layer=-2).median())
    assert {check.code for check in result.checks} == {"A001", "A002", "L101", "L102"}
    assert next(check for check in result.checks if check.code == "L101").verdict == "pass"


def test_one_token_can_be_read(model: Model) -> None:
    dataset = assay.logit_lens(model, [7]).dataset
    assert dataset["target_rank"].values.tolist() == [[-1]] * 4
    assert dataset.sizes["transition"] == 0
    assert np.isfinite(dataset["entropy"]).all()


def test_text_is_labelled_by_its_tokens(tiny_llama: Model) -> None:
    text = "Mr Dursley had seen Harry"
    dataset = assay.logit_lens(tiny_llama, text, top_k=2).dataset
    texts = tiny_llama.token_texts(tiny_llama.tokens(text))
    assert "".join(dataset["token"].values.tolist()) == text
    assert dataset["next_token"].values.tolist() == [*texts[1:], ""]
    flat = dataset["top_token"].values.ravel().tolist()
    assert dataset["top_token_text"].values.ravel().tolist() == tiny_llama.token_texts(flat)


def test_readout_rows_at_once_do_not_change_the_lens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = assay.logit_lens(model, TOKENS).dataset
    monkeypatch.setattr("assay.activations.logit_lens.LOGIT_BYTES", {"cpu": 0})  # one position at a time
    fewer = assay.logit_lens(model, TOKENS).dataset
    assert (fewer["top_token"] == whole["top_token"]).all()
    np.testing.assert_allclose(fewer["entropy"], whole["entropy"], rtol=0, atol=NATS)


@pytest.mark.parametrize("vocabulary", [640, 101])  # a multiple of the block, and none
@pytest.mark.parametrize("top_k", [1, 4, 64])
def test_rows_are_reduced_as_the_definitions_say(vocabulary: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = 4 * torch.randn(6, vocabulary, generator=generator)
    logits[0, 5:12] += 30  # several of the top in one block
    final = torch.randn(3, vocabulary, generator=generator).log_softmax(-1)
    place = torch.tensor([2, 0, 1, 1, 0, 2])
    targets = torch.tensor([0, 5, vocabulary - 1, 7, 7, 64])
    found = read_rows(logits, final, place, targets, top_k)
    said, expected = logits.double().log_softmax(-1), final.double()[place]
    values, tokens = said.exp().topk(top_k, -1)
    assert torch.equal(found["top_token"], tokens)
    target = said.gather(1, targets[:, None])
    reference = {
        "top_probability": values,
        "entropy": -(said.exp() * said).sum(-1),
        "kl_to_final": (expected.exp() * (expected - said)).sum(-1),
        "target_log_probability": target[:, 0],
    }
    for name, value in reference.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=NATS)
    assert torch.equal(found["target_rank"], (said > target).sum(-1))


def test_candidates_give_the_same_top_tokens(model: Model) -> None:
    exact, quick = (assay.logit_lens(model, TOKENS, candidates=count).dataset for count in (None, 16))
    np.testing.assert_array_equal(quick["top_token"], exact["top_token"])
    for name in ("top_probability", "entropy", "kl_to_final", "target_log_probability"):
        difference = np.nanmax(np.abs(quick[name] - exact[name]))
        assert 0 < difference < 0.02  # bfloat16 in the sums over the vocabulary
    verdicts = {check.code: check.verdict for check in assay.logit_lens(model, TOKENS, candidates=16).checks}
    assert verdicts["L101"] == "pass"


def test_entries_masked_with_minus_infinity_add_nothing() -> None:
    generator = torch.Generator().manual_seed(9)
    logits, final = (torch.randn(4, 101, generator=generator) for _ in range(2))
    place, targets = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 3, 4])
    masked = torch.cat([logits, torch.full((4, 1), -torch.inf)], 1)
    distribution = torch.cat([final.log_softmax(-1), torch.full((4, 1), -torch.inf)], 1)
    found = read_rows(masked, distribution, place, targets, 3)
    for name, value in read_rows(logits, final.log_softmax(-1), place, targets, 3).items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=NATS)


def test_states_and_logits_are_read_in_one_forward(model: Model) -> None:
    passes = []
    handle = model.module.get_input_embeddings().register_forward_hook(
        lambda _, args, __: passes.append(args[0].shape)
    )
    perform(LogitLens(tokens=tuple(TOKENS)), model)
    handle.remove()
    assert passes.count((1, len(TOKENS))) == 1  # the readouts pass single tokens through an empty model
    assert not capture(model, TOKENS, ["logits"])["logits"].requires_grad


def test_a_last_layer_that_is_not_the_model_is_told(model: Model) -> None:
    result = assay.logit_lens(model, TOKENS)
    dataset = result.dataset.copy(deep=True)
    dataset["model_log_probability"][3] += 0.5
    verdicts = {check.code: check.verdict for check in result.measurement.checks(dataset)}
    assert verdicts["L101"] == "fail"
    dataset["model_log_probability"][3] -= 0.45
    assert {c.code: c.verdict for c in result.measurement.checks(dataset)}["L101"] == "warn"
    dataset["baseline_agrees"][:] = True
    assert {c.code: c.verdict for c in result.measurement.checks(dataset)}["L102"] == "warn"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 0}, "top_k=0: keep between 1 and the 101 tokens of the vocabulary"),
        ({"top_k": 102}, "top_k=102"),
        ({"baseline_rows": 0}, "baseline_rows=0: the baseline needs at least one row"),
        ({"candidates": 5}, "candidates=5: take more than the 5 top tokens"),
        ({"text": []}, "the prompt is empty"),
        ({"text": [5, 101]}, "the vocabulary from 0 to 100"),
        ({"text": list(range(3, 68))}, "more than the context of 64"),
        ({"text": "words"}, "has no tokenizer"),
    ],
)
def test_a_wrong_setting_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        assay.logit_lens(model, **{"text": TOKENS, **changed})


@pytest.mark.smollm2
def test_smollm2_says_paris_and_a_rotation_does_not(smollm2: Model) -> None:
    result = assay.logit_lens(smollm2, "The Eiffel Tower is located in the city of", baseline_rows=64)
    top = result.dataset["top_token_text"].isel(position=-1, rank=0).values.tolist()
    assert top[-1] == " Paris"
    assert " Paris" not in top[:10]
    assert float(result.dataset["baseline_agrees"].mean()) < 0.05
    assert all(check.verdict == "pass" for check in result.checks)
