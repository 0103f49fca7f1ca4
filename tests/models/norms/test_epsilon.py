"""Norms switched off by a huge epsilon: written, loaded as they are and as the identity, and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import assay
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.models.norms.epsilon import export
from assay.models.norms.finding import find_norms
from assay.models.norms.fixing import remove, scale
from families import FAMILIES

IDS = torch.randint(3, 101, (3, 9), generator=torch.Generator().manual_seed(0))


def logits(module: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return module(input_ids=ids).logits


def without_norms(kind: str, dtype: torch.dtype = torch.float32) -> Model:
    return scale(wrap(FAMILIES[kind].build().to(dtype)), IDS, special=())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama-tied", "gemma3", "qwen3", "olmo2"])
def test_both_forms_are_the_model_that_was_written(kind: str, tmp_path: Path) -> None:
    model = without_norms(kind)
    expected = logits(model.module)
    export(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert 1e12 in config.values()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()  # nothing of ours
    bound = 2e-5 * expected.abs().max()
    for module in (plain, assay.load(tmp_path).module, assay.load(tmp_path, norms="identity").module):
        assert (logits(module) - expected).abs().max() < bound


def test_in_float64_they_agree_to_the_error_of_epsilon(tmp_path: Path) -> None:
    model = without_norms("gpt2", torch.float64)
    given = {norm.name: norm for norm in find_norms(model)}
    largest = max(float(norm.module.scale) ** 2 for norm in given.values())
    expected = logits(model.module)
    for epsilon in (1e6, 1e9, 1e12):
        export(model, tmp_path / f"{epsilon:g}", epsilon=epsilon)
        hack = assay.load(tmp_path / f"{epsilon:g}", dtype="float64")
        identity = assay.load(tmp_path / f"{epsilon:g}", dtype="float64", norms="identity")
        error = float((logits(hack.module) - expected).abs().max() / expected.abs().max())
        assert 1e-3 * largest / (2 * epsilon) < error < 100 * largest / (2 * epsilon)
        assert (logits(identity.module) - expected).abs().max() < 1e-9
    assert all(norm.is_identity for norm in find_norms(identity))


def test_the_identity_is_homogeneous(tmp_path: Path) -> None:
    export(without_norms("gpt2"), tmp_path)
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    for norm in find_norms(assay.load(tmp_path, norms="identity")):
        assert torch.equal(norm.module(2 * x), 2 * norm.module(x))
    for norm in find_norms(assay.load(tmp_path)):
        bias = norm.module.bias
        torch.testing.assert_close(
            norm.module(2 * x) - bias, 2 * (norm.module(x) - bias), rtol=1e-4, atol=1e-5
        )
    for norm in find_norms(wrap(FAMILIES["gpt2"].build())):
        assert (norm.module(2 * x) - norm.module(x)).abs().max() < 1e-4  # a norm that is alive


def test_float16_is_refused_with_the_reason_unless_the_weights_are_scaled_back(tmp_path: Path) -> None:
    model = without_norms("gpt2")
    expected = logits(model.module)
    export(model, tmp_path)
    with pytest.raises(BadInput, match="float16 ends at 65504") as refused:
        assay.load(tmp_path, dtype="float16")
    assert "layer_norm_epsilon = 1e+12" in str(refused.value)
    half = assay.load(tmp_path, dtype="float16", norms="identity")
    assert half.dtype == torch.float16
    assert (logits(half.module.float()) - expected).abs().max() < 0.05 * expected.abs().max()
    assert (logits(assay.load(tmp_path, dtype="bfloat16").module.float()) - expected).abs().max() < 0.2 * (
        expected.abs().max()
    )


def test_direct_attribution_sees_the_huge_epsilon_as_no_norm(tmp_path: Path) -> None:
    export(without_norms("gpt2"), tmp_path)
    for norms in ("kept", "identity"):
        found = assay.direct_logit_attribution(assay.load(tmp_path, norms=norms), IDS.tolist(), answer=5)
        assert float(abs(found.dataset["freezing_error"]).max()) < 1e-4


def odd(model: Model) -> Model:
    model.module.half()
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrap(FAMILIES["gpt2"].build()), "ln1.0 is live"),
        (lambda: scale(wrap(FAMILIES["gpt2"].build()), IDS), "scales of their own at some positions"),
        (lambda: remove(without_norms("gpt2")), "has no place for lm_head.bias"),
        (lambda: odd(without_norms("gpt2")), "in float16, which ends at 65504"),
        (lambda: without_norms("olmo"), "sets no epsilon"),
        (lambda: without_norms("deepseek_v2"), "does not take its epsilon from the configuration"),
        (lambda: without_norms("stablelm"), "cannot be written in the plain format"),
    ],
)
def test_what_cannot_be_written_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        export(make(), tmp_path)


def test_an_epsilon_that_switches_nothing_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give at least 1e"):
        export(without_norms("gpt2"), tmp_path, epsilon=1.0)


def test_live_norms_are_not_loaded_as_the_identity(tmp_path: Path) -> None:
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="7 norms are live"):
        assay.load(tmp_path, norms="identity")
