"""How far edited runs are from a clean one, against whole distributions in float64."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from assay.activations import clean_run
from assay.activations.clean_run import METRICS, CleanRun
from assay.models.blocks import Blocks
from assay.models.model import Model, wrap
from assay.models.partial import Recording, measured, record
from families import FAMILIES, VOCABULARY
from reference.metrics_slow import slow_metrics

IDS = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
READ = (0, 2, 5, 6)
EPS = torch.finfo(torch.float32).eps


def moved(recording: Recording, size: float) -> Tensor:
    """Ends of two edited runs, (variant x row, read, d_model)."""
    resid = recording.resid[-1]
    noise = torch.randn(2, *resid.shape, generator=torch.Generator().manual_seed(2))
    return (resid + size * noise.to(resid)).flatten(0, 1)[:, list(READ)]


def slow(precise: Model, recording: Recording, ends: Tensor) -> Tensor:
    """The metrics of those ends from whole distributions, (variant, row, metric); the readout in float64."""
    blocks = Blocks(precise)
    clean, edited = (
        blocks.readout(resid.flatten(0, 1).double()).unflatten(0, resid.shape[:2])
        for resid in (recording.resid[-1][:, list(READ)], ends)
    )
    found = []
    for variant in edited.split(len(IDS)):
        for row in range(len(IDS)):
            whole = [torch.zeros(IDS.shape[1], clean.shape[-1], dtype=torch.float64) for _ in range(2)]
            whole[0][list(READ)], whole[1][list(READ)] = clean[row], variant[row]
            found.append(slow_metrics(*whole, IDS[row], list(READ)))
    return torch.stack(found).view(-1, len(IDS), len(METRICS))


@pytest.mark.parametrize("kind", ["llama", "gptj", "gemma2"])
@pytest.mark.parametrize("size", [1e-3, 0.1, 30.0])
def test_metrics_are_those_of_whole_distributions(
    kind: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        clean_run, "ROWS", 5
    )  # fewer rows than are read, entries that do not divide the vocabulary
    monkeypatch.setattr(clean_run, "SLICE", 40)
    recording = record(wrap(FAMILIES[kind].build()), IDS)
    ends = moved(recording, size)
    found = measured(recording, ends, 2, CleanRun.of(recording, READ).measure)
    expected = slow(wrap(FAMILIES[kind].build().double()), recording, ends)
    change = float(
        expected[..., 3].abs().max()
    )  # of logits: rounding goes with it, and with log-probabilities of 10
    torch.testing.assert_close(found.double(), expected, rtol=20 * EPS, atol=20 * EPS * (change + 1))


def test_small_divergences_keep_their_digits() -> None:
    recording = record(wrap(FAMILIES["llama"].build()), IDS)
    ends = moved(recording, 1e-2)
    found = measured(recording, ends, 2, CleanRun.of(recording, READ).measure)[..., 1].double()
    expected = slow(wrap(FAMILIES["llama"].build().double()), recording, ends)[..., 1]
    assert float(expected.max()) < 1e-3
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2 * EPS)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_run_that_is_not_edited_is_the_clean_one_to_the_last_digit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_run, "SLICE", 40)
    recording = record(wrap(FAMILIES[kind].build()), IDS)
    found = measured(recording, moved(recording, 0.0), 2, CleanRun.of(recording, READ).measure)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand_as(found), rtol=0, atol=0)


def test_tested_effects_that_may_be_rounding_are_none() -> None:
    for dtype in (torch.float32, torch.float64):
        clean = CleanRun.of(record(wrap(FAMILIES["llama"].build().to(dtype)), IDS), READ)
        finest = 4 * torch.finfo(dtype).eps * math.log(VOCABULARY)  # log-probabilities have the size of log V
        effects = finest * torch.tensor([[0.9, 0.9, 0.9, -0.9], [-1.1, 0.1, 1.1, 1.1]], dtype=dtype)
        kept = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]], dtype=dtype)
        torch.testing.assert_close(clean.settled(effects), effects * kept, rtol=0, atol=0)


def test_in_double_precision_the_metrics_are_as_exact() -> None:
    model = wrap(FAMILIES["llama"].build().double())
    recording = record(model, IDS)
    ends = moved(recording, 0.1)
    found = measured(recording, ends, 2, CleanRun.of(recording, READ).measure)
    torch.testing.assert_close(found, slow(model, recording, ends), rtol=1e-12, atol=1e-12)


def masking(kind: str, value: float) -> Model:
    """A model that puts a value in the place of two logits."""
    model = wrap(FAMILIES[kind].build())

    def mask(_: nn.Module, __: tuple[()], output: CausalLMOutput) -> CausalLMOutput:
        output.logits = output.logits.index_fill(-1, torch.tensor([3, 50]), value)
        return output

    model.module.register_forward_hook(mask)
    return model


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_entries_masked_with_minus_infinity_add_nothing(kind: str) -> None:
    ids = IDS.masked_fill((IDS == 3) | (IDS == 50), 4)
    found = []
    for value in (-torch.inf, -1e4):
        recording = record(masking(kind, value), ids)
        found.append(measured(recording, moved(recording, 0.1), 2, CleanRun.of(recording, READ).measure))
    assert bool(found[0].isfinite().all())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_some_of_the_rows_are_compared_as_all_are() -> None:
    recording = record(wrap(FAMILIES["llama"].build()), IDS)
    clean, ends = CleanRun.of(recording, READ), moved(recording, 0.1)
    whole = measured(recording, ends, 2, clean.measure)
    rows = ends.unflatten(0, (2, 3))[:, 1:].flatten(0, 1)
    torch.testing.assert_close(
        measured(recording.rows(1, 3), rows, 2, clean.rows(1, 3).measure), whole[:, 1:], rtol=0, atol=1e-6
    )
