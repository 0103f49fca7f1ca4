"""The doctor finds healthy models healthy, and each sick one sick of what it has."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.models import doctor as doctors
from assay.models.doctor import Examination, doctor
from assay.models.model import Model, wrap
from families import FAMILIES, Family

ROUNDING = "D106"
SERVED_IN_FULL = "D107"
NOT_ADDITIVE = "D108"
WITHOUT_TOKENIZER = [f"D{number}" for number in range(101, 109)]


def verdicts(found: Examination) -> dict[str, str]:
    return {check.code: check.verdict for check in found.checks}


def check(found: Examination, code: str) -> Check:
    return next(check for check in found.checks if check.code == code)


def failed(found: Examination) -> set[str]:
    return {code for code, verdict in verdicts(found).items() if verdict == "fail"}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_healthy(name: str) -> None:
    family: Family = FAMILIES[name]
    found = doctor(wrap(family.build()))
    assert list(verdicts(found)) == WITHOUT_TOKENIZER
    assert found.healthy
    warned = {code for code, verdict in verdicts(found).items() if verdict == "warn"}
    assert warned <= {ROUNDING, SERVED_IN_FULL, NOT_ADDITIVE}
    assert (ROUNDING in warned) == (name == "xglm")  # fills a float32 scalar with float64's smallest number
    assert (NOT_ADDITIVE in warned) == family.norm_after_add, check(found, NOT_ADDITIVE).message


def test_a_healthy_model_passes_every_check(tiny_llama: Model) -> None:
    found = doctor(tiny_llama)
    assert set(verdicts(found).values()) == {"pass"}
    assert [*verdicts(found)] == [*WITHOUT_TOKENIZER, "D109"]
    assert all(check.remedy == "" for check in found.checks)
    assert check(found, "D103").figure == 0


def test_sites_are_counted_and_the_absent_have_a_reason() -> None:
    model = wrap(FAMILIES["gptj"].build())  # runs attention and MLP in parallel
    found = doctor(model)
    assert sum(found.sites.values()) == len(model.sites())
    assert found.sites["resid_post"] == model.n_layers
    assert found.sites["logits"] == 1
    assert "parallel" in found.absent["resid_mid"]
    assert not set(found.absent) & set(found.sites)


def test_figures_are_those_of_the_model(tiny_llama: Model) -> None:
    ticks = itertools.cycle([0.0, 0.25])  # every forward takes a quarter of a second
    found = doctor(tiny_llama, "Mr Dursley had seen Harry.", clock=lambda: next(ticks))
    count = sum(p.numel() for p in tiny_llama.module.parameters())
    tokens = len(tiny_llama.tokens("Mr Dursley had seen Harry."))
    assert found.figures["layers"] == 3
    assert found.figures["parameters"] == count
    assert found.figures["weights_bytes"] == 4 * count
    assert found.figures["tokens"] == tokens
    assert found.figures["forward_seconds"] == 0.25
    assert found.figures["tokens_per_second"] == 4 * tokens
    vocabulary = tiny_llama.parts.vocabulary
    assert 4 * tokens * vocabulary < found.figures["forward_bytes"] < 40 * tokens * vocabulary


def test_a_context_shorter_than_the_prompt_is_kept_to(make_tiny_llama: Callable[..., Model]) -> None:
    found = doctor(make_tiny_llama(max_position_embeddings=12))
    assert found.figures["tokens"] == 12
    assert found.healthy


def test_what_is_no_decoder_is_refused_with_the_layout_to_pass() -> None:
    with pytest.raises(BadInput, match="Layout"):
        doctor(wrap(nn.Linear(2, 2)))


def test_nan_weights_are_named_and_end_the_examination(tiny_llama: Model) -> None:
    with torch.no_grad():
        tiny_llama.module.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = torch.nan
    found = doctor(tiny_llama)
    assert verdicts(found) == {"D101": "fail", "D109": "pass"}
    assert "model.layers.1.mlp.up_proj.weight" in check(found, "D101").message
    assert not found.healthy


def test_logits_that_overflow_are_found(tiny_llama: Model) -> None:
    with torch.no_grad():
        tiny_llama.module.lm_head.weight.mul_(1e38)
    found = doctor(tiny_llama)
    assert failed(found) == {"D101"}
    assert "logits" in check(found, "D101").message


def test_dropout_left_on_is_found(make_tiny_llama: Callable[..., Model]) -> None:
    model = make_tiny_llama(attention_dropout=0.5)
    model.module.train()
    with torch.random.fork_rng(devices=[]):
        assert "D102" in failed(doctor(model))


def with_forward(model: Model, change: Callable[[Tensor, dict], Tensor]) -> Model:
    """The model with its logits changed on the way out."""
    own = model.module.forward

    def forward(**arguments: object) -> object:
        output = own(**arguments)
        output.logits = change(output.logits, arguments)
        return output

    model.module.forward = forward
    return model


def test_a_module_that_notices_hooks_is_found(tiny_llama: Model) -> None:
    def hooked() -> bool:
        return any(module._forward_hooks for module in tiny_llama.module.modules())

    with_forward(tiny_llama, lambda logits, _: logits + 1e-6 * hooked())
    found = doctor(tiny_llama)
    assert "D103" in failed(found)
    assert 0 < check(found, "D103").figure < 1e-5


def test_a_module_that_sees_the_future_is_found(tiny_llama: Model) -> None:
    with_forward(tiny_llama, lambda logits, _: logits + logits.mean(1, keepdim=True))
    assert "D104" in failed(doctor(tiny_llama))


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_padding_that_is_ignored_is_found(ignored: str) -> None:
    model = wrap(
        FAMILIES["gpt2"].build()
    )  # learned positions: places in the prompt matter, not just distances
    body = model.module.get_submodule("transformer")
    own = body.forward

    def forward(*args: object, **arguments: object) -> object:
        return own(*args, **{**arguments, ignored: None})

    body.forward = forward
    assert "D105" in failed(doctor(model))


def test_rounding_is_measured_against_float64(make_tiny_llama: Callable[..., Model]) -> None:
    exact, rounded = make_tiny_llama(), make_tiny_llama()
    rounded.module.bfloat16()
    fine, coarse = check(doctor(exact), "D106"), check(doctor(rounded), "D106")
    assert 0 < fine.figure < 1e-6
    assert coarse.verdict == "warn"
    assert "bfloat16" in coarse.message
    assert coarse.figure > 1e-3


def test_a_copy_that_does_not_fit_is_not_made(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "free_memory", lambda device: 1000)
    found = check(doctor(tiny_llama), "D106")
    assert (found.verdict, found.figure) == ("warn", None)
    assert "GiB" in found.message


def test_a_family_without_partial_forwards_is_served_in_full(tiny_llama: Model) -> None:
    def forward(*args: object, past_key_values: object = None, **arguments: object) -> object:
        return own(*args, **arguments)

    own = tiny_llama.module.model.forward
    tiny_llama.module.model.forward = forward
    found = check(doctor(tiny_llama), "D107")
    assert found.verdict == "warn"
    assert "full forwards" in found.message
    assert found.figure < 1e-4


def test_partial_forwards_that_are_wrong_are_found(
    tiny_llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors.partial, "partial_forward", lambda *_, **__: torch.zeros(1, 1, 1, 1))
    assert "D107" in failed(doctor(tiny_llama))


@pytest.fixture
def layers_scaled_otherwise(tiny_llama: Model) -> Iterator[Model]:
    """A model whose second block adds twice what its parts wrote."""
    block = tiny_llama.parts.blocks[1].module
    handle = block.register_forward_hook(lambda _, given, output: 2 * output - given[0])
    yield tiny_llama
    handle.remove()


def test_blocks_that_do_not_add_up_are_told(layers_scaled_otherwise: Model) -> None:
    found = check(doctor(layers_scaled_otherwise), NOT_ADDITIVE)
    assert found.verdict == "warn"
    assert found.figure > 0.01


def test_one_factor_for_the_whole_model_adds_up() -> None:
    found = check(doctor(wrap(FAMILIES["granite"].build())), NOT_ADDITIVE)
    assert found.verdict == "pass"
    assert f"+ {FAMILIES['granite'].residual_scale:.6g} " in found.message


def test_a_tokenizer_of_another_model_is_found(make_tiny_llama: Callable[..., Model]) -> None:
    found = doctor(make_tiny_llama(vocab_size=50))
    assert failed(found) == {"D109"}
    assert "50 rows" in check(found, "D109").message


def test_a_tokenizer_that_loses_text_is_told(
    tiny_llama: Model, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny_tokenizer.decode
    monkeypatch.setattr(
        tiny_tokenizer, "decode", lambda *args, **named: own(*args, **named).replace("é", "e")
    )
    found = check(doctor(tiny_llama), "D109")
    assert found.verdict == "warn"
    assert found.figure == doctors.TEXT.index("é")


@pytest.mark.smollm2
def test_the_embedded_model_is_healthy(smollm2: Model) -> None:
    found = doctor(smollm2)
    assert set(verdicts(found).values()) == {"pass"}
    assert check(found, "D106").figure < 1e-4
