"""Attribution patching: exact effects are those of patching, intervals are over pairs, and misses are told."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import assay
from assay.activations.attribution_patching import AttributionPatching
from assay.activations.checks.attribution import attribution_checks
from assay.activations.circuits.node_scores import attribute, contrast
from assay.activations.indifferent import indifferent_copy
from assay.activations.prompt_pairs import Gauge
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.report.charts.attribution_patching import findings
from assay.runs.measurement import from_settings, settings
from assay.zoo import copier as zoo
from families import FAMILIES

NATS = 2e-5  # float32: logits of size 10, summed in another order
CLEAN = ((5, 17, 23, 42, 8, 61, 9), (4, 17, 30, 42, 12, 61, 9), (9, 3, 23, 55, 8, 2, 9))
CORRUPTED = ((5, 17, 50, 42, 8, 61, 9), (4, 17, 31, 40, 12, 61, 9), (9, 3, 24, 55, 8, 2, 9))
ANSWERS, FOILS = (7, 19, 88), (12, 12, 90)


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["llama"].build())


def run(model: Model, pairs: int = 1, **changed: Any) -> assay.Result:
    given: dict[str, Any] = {
        "answer": ANSWERS[:pairs],
        "foil": FOILS[:pairs],
        "exact": 0,
        "baseline": False,
        **changed,
    }
    return assay.attribution_patch(model, CLEAN[:pairs], CORRUPTED[:pairs], **given)


def test_intervals_are_over_pairs(model: Model) -> None:
    dataset = run(model, pairs=3, sites=("z", "mlp_act"), direction="noise").dataset
    samples = []
    for pair in range(3):
        one = contrast(
            model, (CLEAN[pair], CORRUPTED[pair]), ("z", "mlp_act"), direction="noise",
            gauge=lambda final, pair=pair: Gauge(("logit_difference",), ANSWERS[pair], FOILS[pair], final),
        )  # fmt: skip
        samples.append(attribute(one, "atp").nodes)
    for name, dims in (("z", ("layer", "position", "head")), ("mlp_act", ("layer", "position", "neuron"))):
        values = torch.stack([sample[name] for sample in samples]).numpy()
        stderr = values.std(0, ddof=1) / np.sqrt(3)
        found = dataset[f"attribution_{name}"]
        assert found.dims == dims
        np.testing.assert_allclose(found, values.mean(0), rtol=0, atol=NATS)
        np.testing.assert_allclose(dataset[f"attribution_{name}_stderr"], stderr, rtol=0, atol=NATS)
        high = values.mean(0) + stats.t.ppf(0.975, 2) * stderr
        np.testing.assert_allclose(dataset[f"attribution_{name}_high"], high, rtol=0, atol=NATS)
    assert np.isnan(run(model).dataset["attribution_z_stderr"]).all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_exact_effects_are_those_of_patching(model: Model, direction: Any) -> None:
    sites = ("resid_post", "z", "k", "mlp_act")
    dataset = run(model, pairs=2, exact=60, sites=sites, direction=direction, seed=3, max_rows=7).dataset
    for site in sites:
        where = np.flatnonzero(dataset["node_site"].values == site)
        assert len(where) > 1
        by_head = site in ("z", "k")
        patched = assay.patch(
            model, CLEAN[:2], CORRUPTED[:2], answer=ANSWERS[:2], foil=FOILS[:2], site=site, by_head=by_head,
            direction=direction, metrics=("logit_difference",), baseline_pairs=0,
        ).dataset  # fmt: skip
        for node in where if site != "mlp_act" else ():
            one = dataset.isel(node=node)
            place = {"layer": int(one["node_layer"]), "position": int(one["node_position"])}
            place |= {"head": int(one["node_index"])} if by_head else {}
            cell = patched.sel(metric="logit_difference", **place)
            for part in ("", "_stderr", "_high"):
                assert float(one[f"node_effect{part}"]) == pytest.approx(
                    float(cell[f"effect{part}"]), abs=20 * NATS
                )
            own = dataset[f"attribution_{site}"][tuple(place.values())]
            assert float(one["node_attribution"]) == pytest.approx(float(own), abs=1e-12)


def test_a_neuron_is_patched_alone(model: Model) -> None:
    dataset = run(model, exact=6, sites=("mlp_act",)).dataset
    source = assay.capture(model, CLEAN[0], [f"mlp_act.{layer}" for layer in range(3)])
    for node in range(6):
        layer, position, neuron = (
            int(dataset[f"node_{name}"][node]) for name in ("layer", "position", "index")
        )
        site = f"mlp_act.{layer}"
        edits = {site: assay.at(source[site][0, position, neuron], positions=position, neurons=neuron)}
        logits = assay.intervene(model, CORRUPTED[0], edits)["logits"][0, -1]
        base = assay.capture(model, CORRUPTED[0], "logits")["logits"][0, -1]
        wanted = float((logits - base)[7] - (logits - base)[12])
        assert float(dataset["node_effect"][node]) == pytest.approx(wanted, abs=NATS)


def test_first_and_random_nodes_are_told_apart(model: Model) -> None:
    dataset = run(model, exact=41, sites=("z", "q"), seed=1).dataset
    groups = dataset["node_group"].values
    assert (groups == "first").sum() == 20
    size = np.abs(dataset["node_attribution"].values)
    rest = np.concatenate([np.abs(dataset[f"attribution_{name}"].values).ravel() for name in ("z", "q")])
    assert size[groups == "first"].min() == np.sort(rest)[-20]
    assert size[groups == "random"].max() <= size[groups == "first"].min()
    places = dataset[["node_site", "node_layer", "node_position", "node_index"]].to_dataframe()
    assert not places.reset_index().drop(columns=["node", "node_group"], errors="ignore").duplicated().any()
    other = run(model, exact=41, sites=("z", "q"), seed=2).dataset
    assert not np.array_equal(other["node_position"], dataset["node_position"])
    everything = run(model, exact=10_000, sites="z")  # one word is one site
    assert everything.dataset.sizes["node"] == 3 * 7 * 4
    (told,) = [check.message for check in everything.checks if check.code == "P202"]
    assert told.startswith("Of the nodes patched exactly, half of them those ranked first")


def test_saturated_attention_is_mended() -> None:
    """Patching a key turns the answer, and its slope is nothing."""
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=24.0)
    pairs = zoo.swapped(module.config, 4, generator=generator)
    given: dict[str, Any] = {
        "answer": pairs.answers,
        "foil": pairs.foils,
        "sites": ("k", "mlp_out"),
        "exact": 64,
    }
    plain, fixed = (
        assay.attribution_patch(wrap(module), pairs.clean, pairs.corrupted, method=method, **given).dataset
        for method in ("atp", "qk_fix")
    )
    effect = fixed["node_effect"].values
    assert (np.abs(effect) > 1).sum() == 2  # the keys of the two tokens that follow the swapped ones
    np.testing.assert_allclose(fixed["node_attribution"], effect, rtol=0, atol=1e-3)
    assert float(np.abs(plain["node_attribution"]).max()) < 0.01


def test_disagreement_is_told(model: Model) -> None:
    dataset = run(model, exact=40, sites=("z",)).dataset
    exact = np.abs(dataset["node_effect"].values)
    larger = exact > np.median(exact[:20])
    np.testing.assert_array_equal(dataset["node_missed"].values, larger & (np.arange(40) >= 20))
    assert float(dataset["missed_share"]) == dataset["node_missed"].values[20:].mean()
    assert float(dataset["missed_share_high"]) > float(dataset["missed_share"])
    ranks = stats.spearmanr(np.abs(dataset["node_attribution"].values), exact).statistic
    assert float(dataset["rank_correlation"]) == pytest.approx(ranks)
    bad = dataset.assign(rank_correlation=0.2, missed_share=0.5)
    assert [check.verdict for check in attribution_checks(bad) if check.code in ("P202", "P203")] == [
        "warn",
        "warn",
    ]


def test_why_there_were_no_partial_forwards_is_said(model: Model) -> None:
    module = FAMILIES["llama"].build()
    own = module.forward
    module.forward = lambda input_ids, **given: own(
        input_ids=input_ids, **{name: value for name, value in given.items() if name == "logits_to_keep"}
    )
    full = wrap(module)
    results = (
        run(full, exact=8, sites=("z",)),
        run(full, exact=8, method="eap"),
        assay.path_patch(full, CLEAN[0], CORRUPTED[0], senders=("mlp.0",), answer=7, baseline=False),
    )
    for result, code in zip(results, ("P205", "P306", "P403"), strict=True):
        assert result.dataset.attrs["engine"].startswith("full forwards: ")
        (check,) = (check for check in result.checks if check.code == code)
        assert check.verdict == "warn"
        assert result.dataset.attrs["engine"] in check.message
    partial = run(model, exact=8, sites=("z",)).dataset
    np.testing.assert_allclose(results[0].dataset["node_effect"], partial["node_effect"], rtol=0, atol=NATS)


@pytest.mark.parametrize("method", ["atp", "atp_star"])
def test_the_copier_s_verdicts(method: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=4.0)
    pairs = zoo.swapped(module.config, 4, generator=generator)
    result = assay.attribution_patch(
        wrap(module), pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, method=method
    )
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")
    assert {"P201", "P202", "P203", "P204", "P205"} <= set(verdicts)
    nothing = assay.attribution_patch(wrap(module), pairs.clean, pairs.clean, answer=pairs.answers)
    assert {check.code: check.verdict for check in nothing.checks}["P201"] == "fail"
    assert float(np.abs(nothing.dataset["attribution_z"]).max()) == 0


def test_the_baseline_attributes_to_a_copy_of_the_seed(model: Model) -> None:
    dataset = run(model, pairs=2, baseline=True, seed=5, sites=("z",)).dataset
    gauge = Gauge(("logit_difference",), 7, 12, torch.zeros(101))
    ids = torch.tensor([CORRUPTED[0]]), torch.tensor([CLEAN[0]])
    copied = indifferent_copy(model, *ids, gauge, 5 * 1_000_003)[0].tolist()
    other = assay.attribution_patch(
        model, [copied], [CORRUPTED[0]], answer=7, foil=12, sites=("z",), exact=0, baseline=False
    ).dataset
    np.testing.assert_allclose(dataset["baseline_attribution_z"], other["attribution_z"], rtol=0, atol=NATS)
    assert float(dataset["baseline_total_effect"]) == pytest.approx(float(other["total_effect"]), abs=NATS)
    assert int(dataset["baseline_replaced"]) == 1  # as many as the first pair differs in


def test_the_metric_follows_from_what_is_given(model: Model) -> None:
    assert run(model, sites=("z",)).dataset.attrs["metric"] == "logit_difference"
    assert run(model, sites=("z",), foil=None).dataset.attrs["metric"] == "log_probability"
    assert run(model, sites=("z",), answer=None, foil=None).dataset.attrs["metric"] == "kl_from_clean"
    chosen = run(model, sites=("hook_z",), metric="probability")
    assert chosen.dataset.attrs["metric"] == "probability"
    assert chosen.measurement.sites == ("z",)  # type: ignore[attr-defined]


def test_settings_make_the_same_measurement_again(model: Model) -> None:
    measurement = run(
        model, pairs=2, sites=("z", "q"), method="qk_fix", exact=8, seed=3, max_rows=5
    ).measurement
    assert isinstance(measurement, AttributionPatching)
    assert from_settings("attribution_patching", settings(measurement)) == measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"corrupted": CORRUPTED[0][:-1]}, r"the prompts have \[6, 7\] tokens"),
        ({"corrupted": CORRUPTED[:2]}, "1 clean and 2 corrupted"),
        ({"answer": None, "metric": "probability"}, "probability needs answer="),
        ({"foil": None, "metric": "logit_difference"}, "logit_difference needs foil="),
        ({"metric": "kl_from_clean", "direction": "noise"}, "all of them are zero"),
        ({"sites": ()}, "each once"),
        ({"sites": ("z", "z")}, "each once"),
        ({"sites": ("pattern",)}, "choose from"),
        ({"sites": "zz"}, r"sites=\('zz',\)"),
        ({"exact": 3}, "at least 4"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"clean": CLEAN[0], "corrupted": CORRUPTED[0], "answer": 7, "foil": 9, **changed}
    with pytest.raises(BadInput, match=message):
        assay.attribution_patch(model, **given)


def test_an_unknown_method_is_told_all_of_them(model: Model) -> None:
    unchecked: Any = inspect.unwrap(assay.attribution_patch)  # tests hold types that users pass by
    with pytest.raises(BadInput, match="choose from atp, .*, eap, eap_ig, eap_qk_fix, eap_star"):
        unchecked(model, CLEAN[0], CORRUPTED[0], method="foo")


def test_a_site_that_a_family_does_not_compute_is_refused() -> None:
    parallel = next(family for family in FAMILIES.values() if family.parallel)
    with pytest.raises(BadInput, match="does not compute resid_mid"):
        run(wrap(parallel.build()), sites=("resid_mid",))


def test_the_chart_needs_a_site_that_was_attributed(model: Model) -> None:
    result = run(model, sites=("z", "mlp_out"), exact=8)
    assert "agreement" in result.chart(site="mlp_out").to_dict()["datasets"]
    for site, part in (("k", "kv head"), ("z", "head")):
        named = run(model, sites=(site,))
        assert named.chart().to_dict()["title"]["text"] == f"AtP of {site}: strongest {part}"
        assert f", {part} " in findings(named.dataset)[0].text
    with pytest.raises(BadInput, match="this result has z, mlp_out"):
        result.chart(site="q")


@pytest.mark.smollm2
def test_all_nodes_of_smollm2_cost_less_than_four_forwards(smollm2: Model) -> None:
    """Counted in block calls, for seconds depend on what else the machine does: the backward pass costs two at most."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handles = [block.mlp.register_forward_pre_hook(count) for block in smollm2.parts.blocks if block.mlp]
    try:
        clean, corrupted = list(range(100, 124)), [*range(100, 110), 400, *range(111, 124)]
        assay.attribution_patch(
            smollm2, clean, corrupted, answer=7, foil=12, exact=0, baseline=False,
            sites=("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_act"),
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    assert calls <= 2 * smollm2.n_layers
