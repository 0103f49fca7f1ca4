"""Gradients by path length and shallow models against every path listed, and every stream written out."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from assay.models.intervention import intervene
from assay.models.model import wrap
from assay.models.partial import Recording, record
from assay.models.paths import loss_gradient, path_gradients, shallow_streams
from families import FAMILIES, VOCABULARY


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox"])
def recording(request: pytest.FixtureRequest) -> Recording:
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(3))
    return record(wrap(FAMILIES[request.param].build()), ids)


def written(recording: Recording, layer: int, resid: Tensor) -> Tensor:
    """What a block writes into a stream, by a full forward whose stream is set before it."""
    site = f"resid_post.{layer}"
    found = intervene(
        recording.blocks.model,
        recording.ids,
        {f"resid_pre.{layer}": lambda own: resid + 0 * own},
        capture=[site],
        grad=True,
    )
    return found[site] - resid


def test_the_loss_gradient_is_that_of_finite_differences(recording: Recording) -> None:
    gradient = loss_gradient(recording).double()
    step = torch.randn(recording.resid[-1].shape, generator=torch.Generator().manual_seed(0))

    def loss(size: float) -> float:
        ends = (recording.resid[-1] + size * step).flatten(0, 1)
        logs = recording.readout(ends).double().log_softmax(-1).unflatten(0, recording.ids.shape)
        return float(-logs[:, :-1].gather(-1, recording.ids[:, 1:, None]).mean((1, 2)).sum())

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert float((gradient * step).sum()) == pytest.approx(slope, abs=2e-4, rel=1e-2)


def test_gradients_by_length_are_sums_over_every_path(recording: Recording) -> None:
    layers, gradient = len(recording.resid) - 1, loss_gradient(recording)
    found = path_gradients(recording, gradient)
    for length in range(layers + 1):
        total = torch.zeros_like(gradient)
        for path in combinations(range(layers), length):
            carried = gradient
            for layer in reversed(path):
                resid = recording.resid[layer].detach().requires_grad_()
                with torch.enable_grad():
                    carried = torch.autograd.grad(written(recording, layer, resid), resid, carried)[0]
            total += carried
        torch.testing.assert_close(found[length], total, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("keep_first", [False, True])
def test_shallow_streams_are_those_written_out(recording: Recording, keep_first: bool) -> None:
    layers = len(recording.resid) - 1

    def stream(layer: int, depth: int) -> Tensor:
        """The stream entering a block when at most so many blocks work in a row, by its definition."""
        total = recording.resid[0].clone()
        if depth:
            for source in range(layer):
                before = stream(source, depth - 1)
                total = total + written(recording, source, before).detach()
        if keep_first:
            total[:, 0] = recording.resid[layer][:, 0]
        return total

    found = shallow_streams(recording, keep_first=keep_first)
    for depth in range(layers + 1):
        torch.testing.assert_close(found[depth], stream(layers, depth), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[-1], recording.resid[-1])
