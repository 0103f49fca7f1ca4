"""The layer horizon against streams put together by hand, where the answer is known, and refused."""

from typing import Any

import numpy as np
import pytest
import torch

import assay
from assay.activations.data_set import partners_of
from assay.activations.depth.horizon_prediction import SHARES, growth_of, predicted_horizon, smallest_horizon
from assay.activations.depth.horizon_wiring import Window
from assay.activations.depth.settings import numbers_of
from assay.activations.layer_horizon import LayerHorizon
from assay.errors import BadInput
from assay.models.intervention import capture
from assay.models.model import Model, wrap
from assay.report.charts.layer_horizon import findings
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.metrics_slow import slow_metrics
from reference.rewiring_slow import slow_rewired

NATS = 1e-4  # float32: logits of size 10, summed in another order
INPUTS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1)).tolist()
SECOND_NORM = {"gpt2": "ln_2", "llama": "post_attention_layernorm"}
BLOCK_WISE = {"value": "zero", "keep_first": False, "compounding": False, "where": "blocks"}
SUBLAYERS = {"value": "resample", "reach": "sublayer", "forget": "mlp", "where": "output"}


def look(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    return assay.layer_horizon(model, inputs, **{"baseline_inputs": 0, "resamples": 50, **changed})


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("llama", {}),
        ("llama", BLOCK_WISE),
        ("gpt2", {**SUBLAYERS, "read": 3, "max_rows": 2}),
        ("gpt2", {"value": "mean", "layer": 2, "keep_embedding": False, "horizons": (0, 1, 3), "seed": 3}),
        ("gpt_neox", {"value": "mean", "keep_first": False}),
    ],
)
def test_every_reach_is_that_of_streams_put_together(kind: str, changed: dict[str, Any]) -> None:
    model, ids = wrap(FAMILIES[kind].build()), torch.tensor(INPUTS)
    result = look(model, **changed)
    setting = result.measurement
    assert isinstance(setting, LayerHorizon)
    stream = streams(model, kind, ids)
    parts = [stream[0], *(b - a for a, b in zip(stream, stream[1:], strict=False))]
    first = 1 if setting.keep_first else 0
    if setting.value == "resample":
        partner = partners_of(len(ids), torch.Generator().manual_seed(setting.seed))
        instead = [part[partner] for part in parts]
    else:
        instead = [part[:, first:].mean((0, 1)) * (setting.value == "mean") for part in parts]
    window = Window(model.n_layers, kind in SECOND_NORM, setting.reach, setting.forget, setting.where, setting.layer,
                    setting.keep_embedding)  # fmt: skip
    settled = {"original": not setting.compounding, "keep_first": setting.keep_first}
    read = list(range(first, 7)) if setting.read is None else [1, 3, 5]
    clean = model.module(input_ids=ids).logits.detach()
    for k in result.dataset["horizon"].values.tolist():
        edited = slow_rewired(
            model.module,
            FAMILIES[kind].blocks,
            SECOND_NORM.get(kind),
            ids,
            window.reads(k),
            instead,
            **settled,
        )
        expected = torch.stack(
            [slow_metrics(*each, read=read) for each in zip(clean, edited, ids, strict=True)]
        )
        found = result.dataset["effect_by_input"].sel(horizon=k)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2 * NATS)
    assert float(result.dataset["unedited_effect"]) <= NATS
    assert (result.dataset["effect"].sel(metric="kl_from_clean")[0] > 20 * NATS).all()


def streams(model: Model, kind: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """The stream before each source, and at the end."""
    names = []
    for layer in range(model.n_layers):
        names += [f"resid_pre.{layer}"] + ([f"resid_mid.{layer}"] if kind in SECOND_NORM else [])
    names.append(f"resid_post.{model.n_layers - 1}")
    return list(capture(model, ids, names).values())


def test_who_reads_what() -> None:
    def forgotten(reader: int, k: int, **changed: Any) -> list[int]:
        given = {
            "reach": "block",
            "forget": "both",
            "where": "everywhere",
            "layer": None,
            "keep_embedding": True,
        }
        reads = Window(layers=4, halves=True, **{**given, **changed}).reads(k)  # type: ignore[arg-type]
        return [source for source in range(reader + 1) if not reads[reader, source]]

    assert forgotten(4, 1) == [1, 2] and forgotten(5, 1) == [
        1,
        2,
    ]  # attention and MLP of block 2: block 0 is far
    assert forgotten(8, 2) == [1, 2, 3, 4] and forgotten(8, 4) == []
    assert forgotten(8, 2, keep_embedding=False) == [0, 1, 2, 3, 4]
    assert forgotten(8, 4, keep_embedding=False) == [0] and forgotten(8, 5, keep_embedding=False) == []
    assert forgotten(5, 2, reach="sublayer") == [1, 2, 3] and forgotten(8, 8, reach="sublayer") == []
    assert forgotten(8, 2, forget="attention") == [1, 3] and forgotten(8, 2, forget="mlp") == [2, 4]
    assert forgotten(8, 2, where="blocks") == [] and forgotten(7, 2, where="blocks") == [1, 2]
    assert forgotten(8, 2, where="output") == [1, 2, 3, 4] and forgotten(7, 2, where="output") == []
    assert forgotten(6, 1, layer=3) == [1, 2, 3, 4] and forgotten(5, 1, layer=3) == [] == forgotten(
        8, 1, layer=3
    )


def test_the_baseline_forgets_as_many_of_any_distance() -> None:
    window = Window(5, True, "block", "attention", "everywhere", None, False)
    for k in range(7):
        drawn, reads = window.random(k, np.random.default_rng(k)), window.reads(k)
        for reader in range(11):
            assert (~drawn[reader, : reader + 1]).sum() == (~reads[reader, : reader + 1]).sum()
            assert drawn[reader, [s for s in range(reader + 1) if s and s % 2 == 0]].all()  # MLPs are kept
    model = wrap(FAMILIES["llama"].build())
    few, all_rows = (look(model, baseline_inputs=2, max_rows=rows).dataset for rows in (1, None))
    np.testing.assert_allclose(few["baseline_effect"], all_rows["baseline_effect"], rtol=0, atol=NATS)
    assert few["baseline_effect"].sel(metric="kl_from_clean", horizon=1) > 20 * NATS


def test_each_input_has_random_sources_of_its_own() -> None:
    """Of one input, given twice, only the wirings differ."""
    dataset = look(wrap(FAMILIES["llama"].build()), [INPUTS[0]] * 2, baseline_inputs=2).dataset
    assert (dataset["effect_by_input"].std("input") < NATS).all()
    assert float(dataset["baseline_effect_stderr"].sel(metric="kl_from_clean", horizon=1)) > 20 * NATS


def test_a_position_that_is_kept_is_not_read() -> None:
    """It is clean by construction: beside others it would make every effect look smaller."""
    model = wrap(FAMILIES["gpt2"].build())
    kept, last = (look(model, [INPUTS[0][:3]], read=read).dataset["effect"] for read in (None, 1))
    losses = [effect.sel(metric="loss_difference") for effect in (kept, last)]  # of position 1 alone
    np.testing.assert_allclose(*losses, rtol=0, atol=NATS)
    assert float(kept.sel(metric="top1_agreement", horizon=1)) in (0.0, 0.5, 1.0)


def test_a_model_that_reads_one_block_back_has_that_horizon(make_tiny_llama: Any) -> None:
    """Blocks 0 and 1 write nothing: whatever is farther than two blocks back from the end can be forgotten."""
    model = make_tiny_llama(num_hidden_layers=4)
    with torch.no_grad():
        for layer in model.module.model.layers[:2]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    inputs = torch.randint(3, 300, (20, 8), generator=torch.Generator().manual_seed(0)).tolist()
    result = look(model, inputs, value="zero", keep_first=False, tolerances=(1e-3,), baseline_inputs=2)
    dataset = result.dataset
    assert dataset["horizon"].values.tolist() == [0, 1, 2, 3, 4]
    assert float(dataset["smallest_horizon"][0]) == 2
    assert float(dataset["smallest_horizon_low"][0]) == float(dataset["smallest_horizon_high"][0]) == 2
    codes = {check.code: check.verdict for check in result.checks}
    assert (codes["H301"], codes["H303"], codes["H304"]) == ("pass", "pass", "pass")
    for horizons, smallest, verdict in (
        ((1,), 2, "warn"),  # none that was tried is enough
        ((3,), 3, "warn"),  # nothing below was tried
        ((0, 1, 3), 3, "warn"),
        ((1, 2), 2, "pass"),
    ):
        some = look(
            model, inputs[:3], value="zero", keep_first=False, tolerances=(1e-3, 1e-2), horizons=horizons
        )
        assert some.dataset["smallest_horizon"].values.tolist() == [smallest, smallest]
        assert {check.code: check.verdict for check in some.checks}["H303"] == verdict
        at_most = "at most the last 3 blocks of 4"
        assert (at_most in findings(some.dataset)[0].text) == (smallest == 3)


def test_a_model_that_reads_nothing_its_blocks_wrote_has_horizon_zero(make_tiny_llama: Any) -> None:
    """Reach 0 is tried, and does not tell whether distance matters."""
    model = make_tiny_llama(num_hidden_layers=3)
    with torch.no_grad():
        for layer in model.module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    result = look(model, INPUTS, value="zero", tolerances=(1e-3,), baseline_inputs=2)
    assert float(result.dataset["smallest_horizon"][0]) == 0
    codes = {check.code: check.verdict for check in result.checks}
    assert (codes["H302"], codes["H303"]) == ("pass", "pass")
    alone = look(wrap(FAMILIES["llama"].build()), horizons=(0,), baseline_inputs=2)
    assert {check.code: check.figure for check in alone.checks}["H302"] == 0


@pytest.mark.parametrize(("idle", "expected"), [((0, 1), "pass"), ((2, 3), "warn")])
def test_distance_matters_where_it_is_the_near_that_is_read(
    make_tiny_llama: Any, idle: tuple[int, ...], expected: str
) -> None:
    """Where the last blocks write nothing, to forget the far is to forget all there is."""
    model = make_tiny_llama(num_hidden_layers=4)
    with torch.no_grad():
        for number in idle:
            layer = model.module.model.layers[number]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    result = look(model, value="zero", baseline_inputs=2)
    assert {check.code: check.verdict for check in result.checks}["H302"] == expected


def test_the_smallest_horizon_is_where_the_rest_stays_within() -> None:
    kl = np.array([[3.0, 0.5, 1.5, 0.4, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1], [9.0, 9.0, 9.0, 9.0, 9.0]])
    assert smallest_horizon(kl, [1, 2, 3, 5, 8], 1.0).tolist() == [5, 1, 9]


def test_norm_growth_and_its_horizon_are_those_of_a_stream_that_grows_evenly() -> None:
    norm = 3.0 * 1.07 ** np.arange(31.0)
    norm[:2] = 1.0  # the embedding is not part of the trend
    assert growth_of(norm) == pytest.approx(1.07)
    harm = 10.0 * np.array(SHARES) ** 2  # KL of a share s
    found = predicted_horizon(np.array([1.07, 0.99]), np.stack([harm, harm]), 0.1)
    assert found[0] == pytest.approx(np.log(10) / np.log(1.07)) and found[1] == np.inf


def test_random_directions_harm_less_the_smaller_they_are() -> None:
    dataset = look(wrap(FAMILIES["gpt2"].build())).dataset
    assert (np.diff(dataset["disturbed"]) < 0).all()
    assert dataset["norm"].shape == (2, 4) and dataset["norm"].sel(place="position 0", layer=0) > 0


def test_one_input_has_no_interval_and_settings_make_the_measurement_again(tiny_llama: Model) -> None:
    result = look(tiny_llama, INPUTS[:1], tolerances=(0.5, 0.2))
    assert "smallest_horizon_low" not in result.dataset and np.isnan(result.dataset["effect_low"]).all()
    assert from_settings("layer_horizon", settings(result.measurement)) == result.measurement
    assert {check.code: check.verdict for check in result.checks}["A001"] == "pass"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "the list is empty"),
        ({"max_inputs": 0}, "data set is empty"),
        ({"inputs": [[3], [4]]}, "needs a next token"),
        ({"horizons": (4,)}, r"horizons=\(4,\): give each once, from 0 to 3"),
        ({"horizons": (1, 1)}, "give each once"),
        ({"tolerances": ()}, "tolerances"),
        ({"tolerances": (0.0,)}, "positive"),
        ({"layer": 3}, "give a layer from 0 to 2"),
        ({"layer": 1, "where": "output"}, "leave where"),
        ({"value": "resample", "inputs": INPUTS[:1]}, "there is one input only"),
        ({"read": 0}, "read=0"),
        ({"read": 6}, "read=6: an input of 7 tokens has 5 positions with a next token, from position 1 on"),
        ({"inputs": [[3, 4]]}, "an input of 2 tokens has no position with a next token, from position 1 on"),
        ({"seed": -1}, "seed=-1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        look(wrap(FAMILIES["llama"].build()), **{"inputs": INPUTS, **changed})


def test_one_number_is_several() -> None:
    assert numbers_of(0.3) == (0.3,) and numbers_of(range(2)) == (0, 1) and numbers_of(()) == ()


def test_sublayers_are_refused_where_a_block_has_none() -> None:
    for changed in ({"reach": "sublayer"}, {"forget": "mlp"}):
        with pytest.raises(BadInput, match="attention and MLP side by side"):
            look(wrap(FAMILIES["gpt_neox"].build()), **changed)
