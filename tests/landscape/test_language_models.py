"""The learning coefficient of language models: no loss needed, parts by name, behaviour instead of training loss."""

import math
from pathlib import Path
from pydoc_data import topics

import pytest
import torch
from torch.testing import assert_close

import assay
from assay.landscape import target as target_module
from assay.landscape.gradients import gradient_of
from assay.landscape.learning_coefficient import LearningCoefficient
from assay.landscape.losses import next_token
from assay.landscape.sequential import Sequential
from assay.landscape.target import target
from assay.landscape.tokens import token_rows
from assay.models.model import Model
from assay.runs.result import Result

TEXT = "The Eiffel Tower is located in the city of Paris, and the Colosseum is in Rome. " * 30


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def measured(model: Model, text: Path, loss: str | None, **settings: object) -> Result:
    few = {"step_size": 1e-4, "chains": 2, "draws": 12, "burn_in": 4, "batch_size": 3, "n_beta": 20.0}
    return assay.learning_coefficient(model, loss, text, **{**few, **settings})  # type: ignore[arg-type]


def test_a_behaviour_is_at_its_minimum_where_the_training_loss_is_not(tiny_llama: Model, text: Path) -> None:
    behaviour = measured(tiny_llama, text, "kl_to_anchor", mask="mlp.1")
    verdicts = {check.code: check.verdict for check in behaviour.checks}
    assert float(behaviour.dataset["anchor_loss"]) == 0
    assert float(behaviour.dataset["anchor_downhill"]) == pytest.approx(0, abs=1e-3)
    assert verdicts["L202"] == "pass"
    assert float(behaviour.dataset["loss"].min()) >= -1e-6  # a divergence, in float32
    assert float(behaviour.dataset["loss"].isel(draw=-1).min()) > 1e-5
    training = measured(tiny_llama, text, None, mask="mlp.1")
    assert {check.code: check.verdict for check in training.checks}[
        "L202"
    ] == "fail"  # its weights are random


@pytest.mark.parametrize("mask", [None, "head.1.2"])
def test_pairing_with_the_anchor_gives_the_estimate_of_all_data(
    monkeypatch, tiny_llama: Model, text: Path, mask: str | None
) -> None:
    plain = measured(tiny_llama, text, None, mask=mask, draws=60)
    monkeypatch.setattr(target_module, "WORK", 1.0)
    paired = measured(tiny_llama, text, None, mask=mask, draws=60)
    assert paired.manifest["settings"] == plain.manifest["settings"]
    expected, found = plain.dataset, paired.dataset
    spread = float((20 * expected["loss"]).std() / math.sqrt(expected["loss"].size))
    # the same walks; the plain ones see the chance of their batches, of which neighbouring steps are independent
    # (`llc` itself is withheld: random weights are no minimum)
    assert float(found["llc_raw"]) == pytest.approx(float(expected["llc_raw"]), abs=4 * spread)
    # near the anchor, where one head stays longer than all weights, there is little but the chance of the batches
    first, share = slice(-4, 12), 0.9 if mask is None else 0.5
    assert float(found["loss"].sel(draw=first).std()) < share * float(expected["loss"].sel(draw=first).std())


@pytest.mark.parametrize("mask", ["head.1.2", "mlp.1"])
@pytest.mark.parametrize("loss", [None, "kl_to_anchor"])
def test_passes_that_begin_where_weights_move_change_nothing(
    monkeypatch, tiny_llama: Model, text: Path, mask: str, loss: str | None
) -> None:
    monkeypatch.setattr(target_module, "KEPT", 0)
    rows = token_rows(tiny_llama, text, context=32)
    made = target(tiny_llama, loss, rows, mask=mask)
    whole = target(tiny_llama.module, loss or next_token, rows, mask=dict(made.named(made.mask)))
    assert made.entries is not None
    assert whole.entries is None
    assert_close(made.anchor_loss, whole.anchor_loss, rtol=1e-6, atol=1e-9)
    here = made.anchor() + 0.05 * torch.randn(made.d, generator=torch.Generator().manual_seed(2))
    found, expected = torch.zeros_like(here), torch.zeros_like(here)
    with made.evaluating():
        one = Sequential(made).add(here, (rows[:3],), found)
    with whole.evaluating():
        other = Sequential(whole).add(here, (rows[:3],), expected)
    assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0
    assert made.entries.held > 0
    settings = LearningCoefficient(data=made.data_hash(), loss="next_token", budget=1000, batch_size=4)
    assert settings.memory(made) - settings.memory(whole) == made.entries.most(rows) > 0
    assert isinstance(gradient_of(made), Sequential)


def test_passes_are_whole_where_the_first_block_moves(tiny_llama: Model, text: Path) -> None:
    assert target(tiny_llama, None, text, mask="mlp.0").entries is None
    assert target(tiny_llama, None, text).entries is None
    assert target(tiny_llama, None, text, mask="*embed*").entries is None


def test_a_record_says_what_moved(tiny_llama: Model, text: Path) -> None:
    attrs = measured(tiny_llama, text, None, mask="head.1.2", draws=8).dataset.attrs
    assert attrs["moved"].startswith("model.layers.1.self_attn.q_proj.weight (256 of 1,024), ")
    assert measured(tiny_llama, text, None, draws=8).dataset.attrs["moved"] == "everything"


def test_a_step_of_a_large_module_is_tested(tiny_llama: Model, text: Path) -> None:
    accepted = {
        step_size: measured(
            tiny_llama, text, None, mask="mlp.1", chains=8, draws=8, step_size=step_size
        ).dataset["acceptance"]
        for step_size in (1e-5, 0.3)
    }
    assert float(accepted[1e-5].min()) > 0.9
    assert float(accepted[0.3].mean()) < 0.7  # a step down from where others led is taken


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_head_of_smollm2_is_measured_by_its_behaviour(smollm2: Model, tmp_path: Path) -> None:
    before = smollm2.weight_hash()
    result = measured(
        smollm2, Path(topics.__file__), "kl_to_anchor", mask="head.15.3", draws=8, burn_in=0, batch_size=1
    )
    assert result.dataset.attrs["parameters"] == 64 * 576 * 4
    assert float(result.dataset["anchor_loss"]) == 0
    assert float(result.dataset["llc_raw"]) > 0
    assert smollm2.weight_hash() == before
    assert all(parameter.grad is None for parameter in smollm2.module.parameters())
    assert torch.isfinite(torch.tensor(float(result.dataset["llc"])))
