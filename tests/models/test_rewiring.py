"""Rewired runs are full forwards with every reader's stream put together by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.models.partial import Recording, record
from assay.models.rewiring import Rewiring, middle_sites, run_rewired, written
from families import FAMILIES, VOCABULARY
from reference.rewiring_slow import slow_rewired

LENGTH = 8
SECOND_NORM = {"gpt2": "ln_2", "llama": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm"}


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma2", "gpt_neox"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


@pytest.fixture(scope="module")
def recording(model: Model) -> Recording:
    ids = torch.randint(3, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    return record(model, ids, sites=middle_sites(model))


def everything(logits: Tensor) -> Tensor:
    return logits


def run(recording: Recording, rewirings: list[Rewiring], instead: list[Tensor], **settings: Any) -> Tensor:
    return run_rewired(recording, rewirings, instead, everything, positions=range(LENGTH), **settings)


@pytest.mark.parametrize(("original", "keep_first"), [(False, True), (True, False)])
def test_any_wiring_is_that_of_streams_put_together(
    kind: str, model: Model, recording: Recording, original: bool, keep_first: bool
) -> None:
    parts, rng = written(recording), torch.Generator().manual_seed(1)
    count = len(parts)
    reads = [torch.rand(count, count, generator=rng) < share for share in (0.5, 0.8)]
    late = torch.ones(count, count, dtype=torch.bool)
    late[-2, 1] = False  # one edge
    instead = [torch.randn(part.shape[-1], generator=rng) for part in parts]
    wirings = [Rewiring(table, original) for table in (*reads, late)]
    found = run(recording, wirings, instead, keep_first=keep_first, max_rows=4)
    for table, logits in zip((*reads, late), found, strict=True):
        expected = slow_rewired(
            model.module, FAMILIES[kind].blocks, SECOND_NORM.get(kind), recording.ids, table, instead,
            original=original, keep_first=keep_first,
        )  # fmt: skip
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_who_reads_everything_reads_the_model(recording: Recording) -> None:
    parts = written(recording)
    torch.testing.assert_close(sum(parts), recording.resid[-1])
    assert len(parts) == 1 + (2 if recording.sites else 1) * (len(recording.resid) - 1)
    whole = Rewiring(torch.ones(len(parts), len(parts), dtype=torch.bool))
    logits = run(recording, [whole], [torch.zeros(())] * len(parts))[0]
    torch.testing.assert_close(logits[:, -1], recording.readout(recording.resid[-1][:, -1]))


def test_a_table_of_another_size_is_refused(recording: Recording) -> None:
    with pytest.raises(BadInput, match=r"a wiring of shape \(2, 2\)"):
        run(recording, [Rewiring(torch.ones(2, 2, dtype=torch.bool))], [torch.zeros(())] * 7)
