"""Norms switched off by a huge epsilon: written, loaded as they are and as the identity, and refused."""

import json
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama-tied", "gemma3", "qwen3", "stablelm"])
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


SIGMAS = {"gpt2": {"ln_1": 0.4, "ln_2": 1.7, "ln_f": 2.5}, "llama": {"input": 0.3, "post": 2.1, "norm": 3.0}}


class Linear(nn.Module):
    """What a norm without normalisation is: (x - mean) / sigma * w + b."""

    def __init__(self, norm: Any, sigma: float) -> None:
        super().__init__()
        self.norm, self.sigma, self.bias = norm, sigma, getattr(norm, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        centred = x if self.bias is None else x - x.mean(-1, keepdim=True)
        scaled = centred / self.sigma * self.norm.weight
        return scaled if self.bias is None else scaled + self.bias


def published(kind: str, folder: Path) -> Any:
    """Write a model as norm-free models are published, with nothing of ours; the same with explicit affine maps."""
    module, plain = FAMILIES[kind].build(), FAMILIES[kind].build()
    norms = {path: norm for path, norm in plain.named_modules() if "Norm" in type(norm).__name__}
    for path, norm in norms.items():
        parent, _, name = path.rpartition(".")
        sigma = next(s for part, s in SIGMAS[kind].items() if name.startswith(part))
        setattr(plain.get_submodule(parent), name, Linear(norm, sigma))
        with torch.no_grad():
            module.get_submodule(path).weight *= 1e6 / sigma
    setattr(module.config, "layer_norm_epsilon" if kind == "gpt2" else "rms_norm_eps", 1e12)
    module.save_pretrained(folder)
    return plain


@pytest.mark.parametrize("kind", list(SIGMAS))
def test_a_published_model_is_what_its_affine_maps_make_it(kind: str, tmp_path: Path) -> None:
    expected = logits(published(kind, tmp_path))
    bound = 2e-5 * expected.abs().max()
    kept, identity = assay.load(tmp_path), assay.load(tmp_path, norms="identity")
    assert (logits(kept.module) - expected).abs().max() < bound
    assert (logits(identity.module) - expected).abs().max() < bound
    assert all(norm.is_fixed and not norm.is_identity for norm in find_norms(kept))
    assert all(norm.is_identity for norm in find_norms(identity))
    assert (logits(FAMILIES[kind].build()) - expected).abs().max() > 1e3 * bound
    with pytest.raises(BadInput, match="float16 ends at 65504"):
        assay.load(tmp_path, dtype="float16")


@pytest.mark.parametrize("norms", ["kept", "identity"])
def test_weights_that_were_stored_in_float16_are_refused(norms: Any, tmp_path: Path) -> None:
    published("gpt2", tmp_path)
    assay.load(tmp_path).module.half().save_pretrained(tmp_path)  # 1e6 / 2.5 is infinite there
    with pytest.raises(
        BadInput, match=r"infinite numbers in transformer.h.0.ln_1.weight.*float16 ends at 65504"
    ):
        assay.load(tmp_path, norms=norms)


@pytest.mark.parametrize("norms", ["kept", "identity"])
def test_in_bfloat16_both_forms_are_as_near_as_the_affine_maps_are(norms: Any, tmp_path: Path) -> None:
    plain = published("gpt2", tmp_path)
    expected = logits(plain)
    rounding = (logits(plain.bfloat16()).float() - expected).abs().max()
    found = logits(assay.load(tmp_path, dtype="bfloat16", norms=norms).module).float()
    assert (found - expected).abs().max() < 3 * rounding < 0.3 * expected.abs().max()


def test_a_model_some_of_whose_norms_are_live_is_not_loaded_as_the_identity(tmp_path: Path) -> None:
    module = FAMILIES["deepseek_v2"].build()  # its norms of latents have an epsilon of their own
    module.config.rms_norm_eps = 1e12
    module.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="6 of 13 norms are live .q_a_layernorm.0, .* epsilon of 1e-06"):
        assay.load(tmp_path, norms="identity")
    kept = {norm.kind: norm.is_fixed for norm in find_norms(assay.load(tmp_path))}
    assert kept == {
        "ln1": True,
        "q_a_layernorm": False,
        "kv_a_layernorm": False,
        "ln2": True,
        "final_norm": True,
    }


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
    ],
)
def test_what_cannot_be_written_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        export(make(), tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model, file = without_norms("gpt2"), tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(BadInput, match="file is a file"):
        export(model, file)
    with pytest.raises(BadInput, match="is not empty"):
        export(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "kept"
    assert export(model, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"


def test_another_word_for_norms_is_refused(tmp_path: Path) -> None:
    export(without_norms("gpt2"), tmp_path)
    for dtype in ("float32", "float16"):
        with pytest.raises(BadInput, match="norms='Identity': give one of 'kept', 'identity'"):
            unwrap(assay.load)(tmp_path, norms="Identity", dtype=dtype)


def test_reference_material_is_not_loaded_as_the_identity() -> None:
    with pytest.raises(BadInput, match="zoo:copier has no norms"):
        assay.load("zoo:copier", norms="identity")


def test_an_epsilon_that_switches_nothing_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="give at least 1e"):
        export(without_norms("gpt2"), tmp_path, epsilon=1.0)


def test_live_norms_are_not_loaded_as_the_identity(tmp_path: Path) -> None:
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="7 of 7 norms are live"):
        assay.load(tmp_path, norms="identity")
