"""Chains of a large module take the steps of all others, and hold less."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from assay.landscape import chance as chance_module
from assay.landscape import frugal as frugal_module
from assay.landscape import target as target_module
from assay.landscape.chains import Walking, begin
from assay.landscape.chance import Streams
from assay.landscape.frugal import Frugal
from assay.landscape.gradients import Functional
from assay.landscape.losses import Batch, squared_error
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
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
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


@pytest.mark.parametrize("anchors", [False, True])
def test_segments_of_the_vector_have_noise_of_their_own(monkeypatch, anchors: bool) -> None:
    monkeypatch.setattr(frugal_module, "PIECE", 1024)
    monkeypatch.setattr(chance_module, "SEGMENT", 4096)
    made = material()
    settings = chains(made, 7, anchors=anchors)
    whole, cut = Walking(made, settings, SGLD(), Sequential(made)), Frugal(made, settings, Sequential(made))
    noise = Streams(settings.seeds, whole.position).noise()
    assert noise.unique().numel() > 0.99 * noise.numel()  # no segment repeats another
    assert_close(cut.advance(3).bias, whole.advance(3).bias, rtol=1e-4, atol=1e-6)
    assert_close(cut.position, whole.position, rtol=1e-5, atol=1e-6)


def test_the_numbers_are_the_same_on_any_number_of_cores(monkeypatch) -> None:
    monkeypatch.setattr(frugal_module, "PIECE", 512)
    monkeypatch.setattr(chance_module, "SEGMENT", 2048)
    made, found = material(), []
    for cores in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        walking = Frugal(made, chains(made, 7), Sequential(made))
        found.append((walking.advance(3).bias, walking.position.clone(), walking.acceptance(1)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


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


def test_the_anchors_loss_is_found_once_and_every_few_steps(monkeypatch) -> None:
    monkeypatch.setattr(target_module, "WORK", 5.5 * 11_000)
    made = material()
    looks: list[int] = []

    def counted(module: nn.Module, batch: Batch) -> torch.Tensor:
        looks.append(len(batch[0]))
        return squared_error(module, batch)

    settings = chains(made, 7)
    monkeypatch.setattr(frugal_module, "PAIRED", 1)
    each = Frugal(made, settings, Sequential(made)).advance(60).loss
    monkeypatch.setattr(frugal_module, "PAIRED", 4)
    walking = Frugal(replace(made, loss=counted), settings, Sequential(made))
    few = walking.advance(6).loss
    assert_close(few[:, [2, 5]], each[:, [2, 5]], rtol=1e-6, atol=0)
    assert torch.equal(
        few[:, :4], few[:, 2:3].expand(-1, 4)
    )  # the middle of four, and of the two that are left
    assert torch.equal(few[:, 4], few[:, 5])
    later = walking.advance(54).loss
    assert sum(looks) == 40 + 5  # every example once, and those of the anchor's loss
    # where it is known for every example, every step has its own
    assert_close(later[:, 44:], each[:, 50:], rtol=1e-6, atol=0)


def test_where_a_mask_holds_weights_chains_hold_those_that_move() -> None:
    made = material()
    moves = torch.rand(made.d, generator=torch.Generator().manual_seed(5)) < 0.8  # above a block of noise
    made = target(made.module, squared_error, made.data, mask=masks_of(made, moves))
    settings = chains(made, 7, anchors=True)
    walking = Frugal(made, settings, Sequential(made))
    found = walking.advance(3)
    assert settings.anchors is not None
    anchors, here = settings.anchors[:, moves], settings.anchors.clone()
    streams = Streams(settings.seeds, anchors)
    for step in range(3):  # the plain way, with all weights at hand
        rows, noise = streams.rows(40, 7), streams.noise()
        batch = tuple(part[rows] for part in made.data)
        loss, slope = Functional(made)(here, batch)
        away = here[:, moves] - anchors
        slope = slope[:, moves] * settings.n_beta[:, None] + settings.localization[:, None] * away
        epsilon = settings.step_size[:, None]
        assert_close(found.loss[:, step], loss.double(), rtol=1e-5, atol=0)
        assert_close(found.distance[:, step], away.norm(dim=1).double(), rtol=1e-5, atol=1e-7)
        assert_close(found.squared_gradient[:, step], slope.square().sum(1).double(), rtol=1e-4, atol=0)
        here[:, moves] += epsilon.sqrt() * noise - epsilon / 2 * slope
    assert_close(walking.position, here, rtol=1e-5, atol=1e-6)
    assert torch.equal(walking.position[:, ~moves], settings.anchors[:, ~moves])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("piece", [4096, 2**16], ids=["pieces", "one piece"])
def test_acceptance_is_that_of_the_step_that_is_taken(monkeypatch, piece: int, masked: bool) -> None:
    monkeypatch.setattr(frugal_module, "PIECE", piece)
    monkeypatch.setattr(frugal_module, "ROWS", 13)
    made = material()
    moves = torch.ones(made.d, dtype=torch.bool)
    if masked:
        moves[::3] = False
        made = target(made.module, squared_error, made.data, mask=masks_of(made, moves))
    step_size = torch.tensor([3e-4, 1e-3])
    settings = replace(chains(made, 7), step_size=step_size, localization=torch.tensor([30.0, 5.0]))
    walking, gradient = Frugal(made, settings, Sequential(made)), Functional(made)
    walking.advance(2)
    batch = tuple(part[None, ::4] for part in made.data)  # at most 13 of 40
    epsilon, seen = step_size[:, None], list[torch.Tensor]()

    def potential(here: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, slope = gradient(here, batch)
        away = here - made.anchor()
        slope = (slope * settings.n_beta[:, None] + settings.localization[:, None] * away) * moves
        return settings.n_beta * loss + settings.localization / 2 * away.square().sum(1), slope

    def log_density(to: torch.Tensor, of: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        return -((to - of + epsilon / 2 * slope).square() * moves).sum(1).double() / (2 * step_size)

    for seed in range(3, 11):
        before = walking.position.clone()
        seen.append(walking.acceptance(seed))
        after = walking.position
        (one, here), (other, there) = potential(before), potential(after)
        ratio = one - other + log_density(before, after, there) - log_density(after, before, here)
        assert_close(seen[-1], ratio.clamp_max(0).exp().double(), rtol=5e-2, atol=1e-3)
        assert ((after != before) == moves).float().mean() > 0.99
    assert any(0.05 < float(rate) < 0.95 for rates in seen for rate in rates)


def test_chains_with_masks_of_their_own_hold_whole_positions() -> None:
    made = material()
    masks = torch.ones(2, made.d, dtype=torch.bool)
    masks[1, : made.d // 2] = False
    settings = replace(chains(made, 7), masks=masks)
    assert isinstance(begin(made, settings, gradient=Sequential(made)), Walking)
