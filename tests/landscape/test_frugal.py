"""Chains of a large module take the steps of all others, and hold less."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from assay.landscape import frugal as frugal_module
from assay.landscape import target as target_module
from assay.landscape.chains import Walking, begin
from assay.landscape.chance import Streams
from assay.landscape.frugal import Frugal
from assay.landscape.gradients import Functional
from assay.landscape.losses import squared_error
from assay.landscape.samplers.sgld import SGLD
from assay.landscape.sequential import Sequential
from assay.landscape.target import Target, target
from assay.landscape.walks import Chains


def material(mask: str | None = None) -> Target:
    """A network of 11,147 parameters in pieces of odd sizes."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Linear(5, 101), nn.LayerNorm(101), nn.Linear(101, 97), nn.Tanh(), nn.Linear(97, 5)
    )
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    data = torch.randn(40, 5, generator=generator), torch.randn(40, 5, generator=generator)
    return target(module, squared_error, data, mask=mask)


def chains(made: Target, batch_size: int | None, *, anchors: bool = False) -> Chains:
    mask = None if made.mask is None else made.mask[None]
    own = made.anchor() + 0.05 * torch.randn(2, made.d, generator=torch.Generator().manual_seed(3))
    return Chains(
        seeds=(4, 9),
        step_size=torch.tensor([1e-4, 2e-4]),
        n_beta=torch.tensor([20.0, 5.0]),
        localization=torch.tensor([3.0, 0.0]),
        masks=mask,
        batch_size=batch_size,
        anchors=own if anchors else None,
    )


@pytest.mark.parametrize("piece", [4096, 2**16], ids=["pieces", "one piece"])
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("anchors", [False, True])
def test_the_steps_are_those_of_whole_vectors(monkeypatch, piece: int, batch_size, anchors: bool) -> None:
    monkeypatch.setattr(frugal_module, "PIECE", piece)
    made = material()
    settings = chains(made, batch_size, anchors=anchors)
    whole = Walking(made, settings, SGLD(), Sequential(made))
    pieces = Frugal(made, settings, Sequential(made))
    assert torch.equal(pieces.position, whole.position)
    for steps in (3, 2):  # and goes on from where it is
        expected, found = whole.advance(steps), pieces.advance(steps)
        for name in ("loss", "squared_gradient", "distance", "virial", "bias"):
            # float32 sums of 11,147 terms, in another order
            assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)
        assert_close(pieces.position, whole.position, rtol=1e-5, atol=1e-6)
    whole.change_step(torch.tensor([5e-5, 1e-5]))
    pieces.change_step(torch.tensor([5e-5, 1e-5]))
    assert_close(pieces.advance(1).bias, whole.advance(1).bias, rtol=1e-4, atol=1e-6)
    assert_close(pieces.state.position, whole.state.position, rtol=1e-5, atol=1e-6)


def test_what_a_mask_holds_stays() -> None:
    made = material()
    half = made.anchor() > 0
    made = target(made.module, squared_error, made.data, mask=masks_of(made, half))
    walking = begin(made, chains(made, 7), gradient=Sequential(made))
    assert isinstance(walking, Frugal)
    walking.advance(3)
    moved = walking.position != made.anchor()
    assert not moved[:, ~half].any()
    assert moved[:, half].float().mean() > 0.99


def masks_of(made: Target, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(made.named(flat).items())


def test_other_ways_walk_as_before() -> None:
    made = material()
    assert isinstance(begin(made, chains(made, 7), gradient=Sequential(made)), Frugal)
    assert isinstance(begin(made, chains(made, 7)), Walking)


@pytest.mark.parametrize("frugal", [True, False])
def test_where_not_all_data_are_looked_at_losses_are_paired_with_the_anchors(
    monkeypatch, frugal: bool
) -> None:
    made = material()
    settings = chains(made, 7)
    gradient = Sequential(made) if frugal else Functional(made)
    plain = begin(made, settings, gradient=gradient).advance(4)
    monkeypatch.setattr(target_module, "WORK", 5.5 * 11_000)
    monkeypatch.setattr(frugal_module, "PAIRED", 1)
    fewer = target(made.module, squared_error, made.data)
    assert (fewer.seen, fewer.n) == (5, 40)
    assert fewer.looked_at[0].tolist() == made.data[0][[0, 10, 20, 29, 39]].tolist()
    with torch.no_grad():
        few = squared_error(fewer.module, fewer.looked_at).mean()
        assert_close(fewer.anchor_loss, few.double())
    walking = begin(fewer, settings, gradient=Sequential(fewer) if frugal else Functional(fewer))
    paired = walking.advance(4)
    assert_close(paired.squared_gradient, plain.squared_gradient)
    # the first draw is the anchor itself: nothing is left of its batch
    assert_close(paired.loss[:, 0], few.double().expand(2), rtol=1e-5, atol=0)
    streams = Streams(settings.seeds, walking.position)
    for step in range(4):
        rows = streams.rows(40, 7)
        with torch.no_grad():
            own = (
                squared_error(fewer.module, tuple(part[rows].flatten(0, 1) for part in made.data))
                .view(2, 7)
                .mean(1)
            )
        assert_close(paired.loss[:, step] - few.double(), plain.loss[:, step] - own, rtol=1e-3, atol=1e-4)


def test_neighbouring_steps_share_a_look_at_the_anchor(monkeypatch) -> None:
    monkeypatch.setattr(target_module, "WORK", 5.5 * 11_000)
    made = material()
    settings = chains(made, 7)
    few = Frugal(made, settings, Sequential(made)).advance(6).loss
    monkeypatch.setattr(frugal_module, "PAIRED", 1)
    each = Frugal(made, settings, Sequential(made)).advance(6).loss
    assert torch.equal(few[:, [0, 4]], each[:, [0, 4]])
    assert torch.equal(few[:, 1:4], each[:, :1].expand(-1, 3))
    assert torch.equal(few[:, 5], each[:, 4])
