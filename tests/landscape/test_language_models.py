"""The learning coefficient of language models: no loss needed, parts by name, behaviour instead of training loss."""

import math
from pathlib import Path
from pydoc_data import topics

import pytest
import torch

import assay
from assay.landscape import target as target_module
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
    assert float(behaviour.dataset["anchor_downhill"]) == 0
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
    assert float(found["llc"]) == pytest.approx(float(expected["llc"]), abs=4 * spread)
    # near the anchor, where one head stays longer than all weights, there is little but the chance of the batches
    first, share = slice(-4, 12), 0.9 if mask is None else 0.5
    assert float(found["loss"].sel(draw=first).std()) < share * float(expected["loss"].sel(draw=first).std())


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
