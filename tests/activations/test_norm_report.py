"""The norm report against distributions compared by hand, on models whose truth is known, and refused."""

import json
import re
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch

import assay
from assay.activations.norm_report import WAYS, NormReport
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.models.model import Model, wrap
from assay.models.norms.finding import find_norms
from assay.models.norms.fixing import scale
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.norms_slow import PATHS, fixed_logits, sigmas

INPUTS = torch.randint(3, 101, (5, 8), generator=torch.Generator().manual_seed(1)).tolist()
NATS = 2e-5


def report(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    return assay.norms.report(model, inputs, **{"resamples": 50, "float64_inputs": 1, **changed})


def by_hand(kind: str, way: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the model and of the changed one, (input, pos, vocabulary)."""
    module, ids = FAMILIES[kind].build(), torch.tensor(INPUTS)
    given = sigmas(kind, module, ids)
    for path, value in given.items():
        ordinary = value.mean() if way == "scale_all" else value[:, 1:].mean()
        fixed = torch.full_like(value, ordinary)
        if way == "scale":
            fixed[:, 0] = value[:, 0].mean()
        given[path] = {"freeze": value, "freeze_elsewhere": value.roll(1, 0), "remove": 1.0}.get(way, fixed)
    with torch.no_grad():
        clean = module(input_ids=ids).logits
    changed = clean if way == "fold" else fixed_logits(kind, module, ids, given)
    return clean.double(), changed.double()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def result(kind: str) -> assay.Result:
    return report(wrap(FAMILIES[kind].build()))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_that_done_by_hand(kind: str, result: assay.Result, way: str) -> None:
    clean, changed = by_hand(kind, way)
    p, q, ids = clean.log_softmax(-1), changed.log_softmax(-1), torch.tensor(INPUTS)
    loss = [-x[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] for x in (p, q)]
    found = result.dataset.sel(way=way)
    size = float(changed.abs().max())
    assert float(found["kl_from_original"]) == pytest.approx(
        float((p.exp() * (p - q)).sum(-1).mean()), abs=size * NATS
    )
    assert float(found["loss_difference"]) == pytest.approx(
        float((loss[1] - loss[0]).mean()), abs=size * NATS
    )
    assert float(found["top1_agreement"]) == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    if way != "fold":
        expected = float((clean - changed).abs().max())
        assert float(found["logit_difference"].sel(precision="own")) == pytest.approx(
            expected, abs=size * NATS
        )
    quantiles = torch.tensor([0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    assert result.dataset["loss_quantile"].sel(model=way).values == pytest.approx(
        loss[1].flatten().quantile(quantiles).numpy(), abs=size * NATS
    )


def test_what_is_exact_is_found(result: assay.Result) -> None:
    dataset = result.dataset
    assert [str(way) for way in dataset["way"].values[dataset["exact"].values]] == ["fold", "freeze"]
    found = dataset["logit_difference"].sel(way=["fold", "freeze"])
    assert (found.sel(precision="float64") < 1e-12).all()
    assert (found.sel(precision="own") > 1e-8).all()  # float32 rounds, or nothing was done
    assert 1e-8 < float(dataset["rounding"]) < 1e-4


def test_scales_are_those_of_the_forward_pass(kind: str, result: assay.Result) -> None:
    by_path = sigmas(kind, FAMILIES[kind].build(), torch.tensor(INPUTS))
    expected = np.stack([by_path[path].mean(0)[:, 0].numpy() for path in PATHS[kind]])
    np.testing.assert_allclose(result.dataset["norm_scale"], expected, rtol=1e-5)
    assert (result.dataset["norm_scale_low"] < result.dataset["norm_scale"]).all()
    assert result.dataset["norm_epsilon"].values == pytest.approx(1e-5 if kind == "gpt2" else 1e-6)


def test_other_norms_scales_do_worse(result: assay.Result) -> None:
    assert float(result.dataset["baseline_kl_from_original"]) > float(
        result.dataset["kl_from_original"].sel(way="scale")
    )


def test_the_seed_is_that_of_bootstrap_and_baseline() -> None:
    model = wrap(FAMILIES["gpt2"].build())

    def kl(changed: Model) -> np.ndarray:
        """From the model, of each input."""
        with torch.no_grad():
            p, q = (
                each.module(input_ids=torch.tensor(INPUTS)).logits.log_softmax(-1)
                for each in (model, changed)
            )
        return (p.exp() * (p - q)).sum(-1).mean(1).double().numpy()

    found, other = (report(model, ways=["scale"], float64_inputs=0, seed=seed).dataset for seed in (5, 0))
    expected = bootstrap(kl(scale(model, INPUTS)), np.random.default_rng(5), resamples=50)
    for part, value in zip(("", "_stderr", "_low", "_high"), expected, strict=True):
        assert float(found[f"kl_from_original{part}"].sel(way="scale")) == pytest.approx(
            float(value), rel=1e-3
        )
    drawn = float(kl(scale(model, INPUTS, seed=5)).mean())
    assert float(found["baseline_kl_from_original"]) == pytest.approx(drawn, rel=1e-3)
    assert float(other["baseline_kl_from_original"]) != pytest.approx(drawn, rel=1e-3)


def verdicts(result: assay.Result) -> dict[str, str]:
    return {check.code: check.verdict for check in result.checks if check.code.startswith("M")}


def test_one_kind_alone_changes_less_than_all() -> None:
    dataset = report(wrap(FAMILIES["gpt2"].build()), ways=["scale"], special=(0, 1)).dataset
    kl = {str(way): float(dataset["kl_from_original"].sel(way=way)) for way in dataset["way"].values}
    assert set(kl) == {"scale", "scale_only_ln1", "scale_only_ln2", "scale_only_final_norm"}
    assert all(0 < kl[f"scale_only_{part}"] < 2 * kl["scale"] for part in ("ln1", "ln2", "final_norm"))


def test_a_model_whose_norms_are_fixed_can_lose_them_exactly() -> None:
    model = scale(wrap(FAMILIES["gpt2"].build()), INPUTS, special=())
    found = report(model, special=())
    assert found.dataset["exact"].values[: len(WAYS)].all()
    assert verdicts(found)["M104"] == "pass"
    assert found.dataset.attrs["fixed_norms"] == 7


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_of_the_identity_form_every_way_is_exact(kind: str, tmp_path: Any) -> None:
    assay.norms.export(scale(wrap(FAMILIES[kind].build()), INPUTS, special=()), tmp_path)
    found = report(assay.load(tmp_path, norms="identity"))
    assert [str(way) for way in found.dataset["way"].values[: len(WAYS)]] == list(WAYS)
    assert found.dataset["exact"].values.all() and (found.dataset["norm_scale"] == 1).all()
    assert all(check.verdict == "pass" for check in found.checks if check.code.startswith("M"))


def test_by_default_what_a_model_does_not_allow_is_left_out() -> None:
    apart = report(scale(wrap(FAMILIES["gpt2"].build()), INPUTS), by_kind=False).dataset
    assert list(apart["way"].values) == [way for way in WAYS if way != "remove"]
    mixture = scale(wrap(FAMILIES["mixtral"].build()), INPUTS, special=())  # experts are not linear
    left = report(assay.norms.remove(mixture), by_kind=False).dataset
    assert list(left["way"].values) == [way for way in WAYS if way != "fold"]


def test_a_loader_that_ignores_epsilon_is_detected(tmp_path: Any) -> None:
    model = wrap(FAMILIES["gpt2"].build())
    assay.norms.export(scale(model, INPUTS, special=()), tmp_path)
    honest = assay.load(tmp_path)
    found = report(honest, ways=["remove"])
    assert verdicts(found)["M102"] == "pass"
    assert found.dataset["norm_epsilon"].values == pytest.approx(1e-0 * 1e12, rel=1e-6)
    careless = assay.load(tmp_path)
    for norm in find_norms(careless):
        norm.module.eps = 1e-5
    check = next(c for c in report(careless, ways=["remove"]).checks if c.code == "M102")
    assert check.verdict == "fail" and "switched on again" in check.remedy


def test_an_epsilon_that_was_lost_is_detected_by_the_weights_it_leaves(tmp_path: Any) -> None:
    assay.norms.export(scale(wrap(FAMILIES["llama"].build()), INPUTS, special=()), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-6}))
    check = next(c for c in report(assay.load(tmp_path), ways=["fold"]).checks if c.code == "M107")
    assert check.verdict == "fail" and "was lost" in check.remedy


def test_an_exact_way_that_is_not_is_reported() -> None:
    dataset = report(wrap(FAMILIES["gpt2"].build()), ways=["fold"]).dataset
    dataset["exact"][0] = False
    check = next(c for c in NormReport(inputs=()).checks(dataset) if c.code == "M101")
    assert check.verdict == "fail"


def test_a_position_unlike_the_others_is_named() -> None:
    module = FAMILIES["gpt2"].build()
    with torch.no_grad():
        module.transformer.wpe.weight[3] *= 100
    found = report(wrap(module), ways=["scale"])
    check = next(c for c in found.checks if c.code == "M103")
    assert check.verdict == "warn" and "special=(0, 3)" in check.remedy
    assert verdicts(report(wrap(module), ways=["scale"], special=(3,)))["M103"] == "pass"


def test_logits_that_are_not_finite_are_said_and_not_counted() -> None:
    module = FAMILIES["llama"].build()
    with torch.no_grad():
        module.model.layers[0].mlp.down_proj.weight *= 1e15  # a norm puts this right
    found = report(wrap(module), ways=["remove", "scale"], float64_inputs=0)
    assert np.isnan(found.dataset["kl_from_original"].sel(way="remove"))
    assert all(check.verdict != "fail" for check in found.checks)
    assert "M101" not in verdicts(found)


def test_one_input_has_no_interval_and_settings_round_trip() -> None:
    found = report(wrap(FAMILIES["llama"].build()), INPUTS[0], baseline=False, by_kind=False)
    assert list(found.dataset["way"].values) == [way for way in WAYS if way != "freeze_elsewhere"]
    assert "baseline_kl_from_original" not in found.dataset
    assert np.isnan(found.dataset["kl_from_original_low"]).all()
    assert from_settings("norm_report", settings(found.measurement)) == found.measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "no prompt was given"),
        ({"inputs": [[3, 4, 5], [3, 4]]}, r"the inputs have \[2, 3\] tokens"),
        ({"inputs": INPUTS[:1], "ways": ["freeze_elsewhere"]}, "there is one input only"),
        ({"max_inputs": 0}, "max_inputs=0"),
        ({"ways": ()}, "name some of"),
        ({"ways": ("fold", "fold")}, "each once"),
        ({"special": (7,)}, "positions 0 to 7"),
        ({"resamples": 1}, "resamples must be"),
        ({"seed": -1}, "resamples must be"),
        ({"float64_inputs": -1}, "resamples must be"),
        ({"length": 9}, "the longest text has 8"),
        ({"length": 99}, "has 64 tokens"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        report(wrap(FAMILIES["llama"].build()), **changed)


@pytest.mark.parametrize("changed", [{"ways": "fold"}, {"special": 0}])
def test_one_value_where_several_belong_is_refused(changed: dict[str, Any]) -> None:
    unchecked = unwrap(assay.norms.report)  # the types of arguments are checked in tests only
    ((name, value),) = changed.items()
    with pytest.raises(BadInput, match=re.escape(f"{name}=({value!r},)")):
        unchecked(wrap(FAMILIES["llama"].build()), INPUTS, **changed)
