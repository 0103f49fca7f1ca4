from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from assay.zoo import digits, induction, modular_addition, toy_layernorm
from assay.zoo.densities import Separable
from assay.zoo.training import Training, generators, linear, train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return (module(batch[0]) - batch[1]).square().sum(1)


def one_by_one(networks, batches, optimizer, steps: int) -> list[list[Tensor]]:
    """The slow way: each network by itself, through its own optimizer."""
    left = []
    for seed, network in enumerate(networks):
        updates = optimizer(list(network.parameters()))
        for step in range(steps):
            updates.zero_grad()
            loss(network, tuple(part[seed] for part in batches(step))).mean().backward()
            updates.step()
        left.append([value.detach() for value in network.parameters()])
    return left


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.5),
    ],
)
def test_together_networks_train_as_each_does_alone(optimizer) -> None:
    def networks() -> list[nn.Module]:
        return [
            nn.Sequential(linear(3, 5, generator=g), nn.LayerNorm(5), nn.Tanh(), linear(5, 2, generator=g))
            for g in generators(3, generator=generator())
        ]

    def batches(step: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(3, 8, width, generator=generator(step * 10 + width)) for width in (3, 2))

    started = networks()
    run = train(started, loss, batches, optimizer=optimizer, steps=11, keep_every=4)
    assert run.steps == (0, 4, 8, 11)
    assert run.seeds == 3
    for seed, expected in enumerate(one_by_one(networks(), batches, optimizer, 11)):
        assert_close(list(run.network(seed).parameters()), expected, rtol=1e-4, atol=1e-5)
        # left untouched, and kept at the first step
        assert_close(
            dict(run.network(seed, 0).state_dict()), dict(started[seed].state_dict()), rtol=0, atol=0
        )
        own = loss(run.network(seed, 8), tuple(part[seed] for part in batches(8))).mean()
        assert_close(run.loss[2, seed], own.detach(), rtol=1e-5, atol=1e-6)
    assert list(run.states(1)) == [0, 4, 8, 11]


def test_a_seed_trains_the_same_in_every_company() -> None:
    few, many = (
        toy_layernorm.train_many(seeds, steps=6, keep_every=3, generator=generator(4)) for seeds in (2, 4)
    )
    for name, value in few.weights.items():
        assert_close(many.weights[name][:, :2], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(many.weights["0.weight"][0, 0], many.weights["0.weight"][0, 1])


class Tied(nn.Module):
    """Two names for one matrix, a buffer that is saved and one that is not, and statistics."""

    def __init__(self, source: torch.Generator) -> None:
        super().__init__()
        self.first = linear(3, 3, bias=False, generator=source)
        self.second = nn.Linear(3, 3, bias=False, device="meta")
        self.second.weight = self.first.weight
        self.statistics = nn.BatchNorm1d(3)
        self.register_buffer("shift", torch.randn(3, generator=source))
        self.register_buffer("scale", torch.rand(3, generator=source), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        seen = self.statistics(self.first(inputs) + self.get_buffer("shift"))
        return self.second(seen) * self.get_buffer("scale")


def test_tied_weights_and_buffers_of_every_kind_come_back() -> None:
    def networks() -> list[nn.Module]:
        return [Tied(source) for source in generators(2, generator=generator())]

    def batches(step: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(2, 6, 3, generator=generator(step * 10 + part)) for part in range(2))

    optimizer = partial(torch.optim.SGD, lr=0.05)
    started, alone = networks(), networks()
    run = train(started, loss, batches, optimizer=optimizer, steps=5, keep_every=2)
    one_by_one(alone, batches, optimizer, 5)
    for seed in range(2):
        assert_close(dict(run.network(seed, 0).state_dict()), dict(started[seed].state_dict()))
        found = run.network(seed)
        assert found.first.weight is found.second.weight
        assert torch.equal(found.scale, started[seed].scale)
        assert int(found.statistics.num_batches_tracked) == 5
        assert_close(list(found.parameters()), list(alone[seed].parameters()), rtol=1e-4, atol=1e-5)
        assert set(run.states(seed)[5]) == set(started[seed].state_dict())
        started[seed].load_state_dict(run.states(seed)[5])


def test_a_density_of_the_zoo_can_be_trained() -> None:
    density = Separable([2, 4])
    density.weight.data = torch.tensor([1.0, 1.0])
    run = train(
        [density],
        lambda module, batch: module(batch[0]),
        lambda step: (torch.zeros(1, 1, 1),),
        optimizer=partial(torch.optim.SGD, lr=0.1),
        steps=1,
        keep_every=1,
    )
    assert_close(run.network().weight.detach(), torch.tensor([0.8, 0.6]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"networks": []}, "one for each seed"),
        ({"keep_every": 0}, "keep_every=0"),
        ({"steps": -1}, "steps=-1"),
        ({"networks": [nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1))]}, "1 is a dropout"),
        ({"loss": lambda module, batch: loss(module, batch).mean()}, "one value per example"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed: dict, message: str) -> None:
    given = {
        "networks": [linear(3, 2, generator=generator())],
        "loss": loss,
        "batches": lambda step: (torch.zeros(1, 4, 3), torch.zeros(1, 4, 2)),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "steps": 2,
        "keep_every": 1,
    }
    kept = train(**given)
    with pytest.raises(ValueError, match="step 17 was not kept"):
        kept.network(step=17)
    with pytest.raises(ValueError, match="no network 1: they are 0 to 0"):
        kept.states(1)
    with pytest.raises(ValueError, match=message):
        train(**given | changed)


def test_a_linear_layer_has_the_law_of_torch_s_own_without_touching_the_global_source() -> None:
    before = torch.random.get_rng_state()
    layer = linear(400, 300, generator=generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(torch.Generator().manual_seed(0).get_state())
        theirs = nn.Linear(400, 300)
    # standard deviations of 120,000 and 300 uniform numbers
    assert float(layer.weight.detach().std()) == pytest.approx(float(theirs.weight.detach().std()), rel=0.01)
    assert float(layer.bias.detach().abs().max()) <= 400**-0.5
    assert linear(4, 3, bias=False, generator=generator()).bias is None


def test_what_directions_alone_can_tell_is_the_plateau() -> None:
    """The best predictor c u_1 that sees the direction u only, fitted to many inputs."""
    inputs = toy_layernorm.examples(200_000, generator=generator())
    direction = (inputs / inputs.norm(dim=1, keepdim=True))[:, 0]
    fitted = direction * (direction @ inputs[:, 0]) / (direction @ direction)
    # the mean of 200,000 squares, whose standard deviation is about 85
    assert float((fitted - inputs[:, 0]).square().mean()) == pytest.approx(toy_layernorm.PLATEAU, abs=0.6)


@pytest.mark.slow
def test_with_a_layer_norm_the_loss_stays_near_the_plateau() -> None:
    run = toy_layernorm.train_many(4, steps=6000, keep_every=100, generator=generator())
    inputs = toy_layernorm.examples(4096, generator=generator(1))
    found = torch.tensor(
        [
            float(toy_layernorm.loss(run.network(seed, step), (inputs,)).mean().detach())
            for seed in range(4)
            for step in run.steps[30:]
        ]
    )
    assert float(run.loss[0].mean()) > 300
    # 4096 inputs leave a standard error of 1.3; the noise of a batch at this rate adds up to a quarter
    assert toy_layernorm.PLATEAU - 4 < float(found.median()) < 1.25 * toy_layernorm.PLATEAU


def test_without_it_the_loss_falls_to_nothing_at_a_lower_rate_and_diverges_at_this_one() -> None:
    run = toy_layernorm.train_many(
        2, layer_norm=False, steps=400, keep_every=200, rate=3e-4, generator=generator()
    )
    assert not any(isinstance(part, nn.LayerNorm) for part in run.module.modules())
    assert float(run.loss[-1].max()) < 0.1
    lost = toy_layernorm.train_many(2, layer_norm=False, steps=200, keep_every=200, generator=generator())
    assert not bool(lost.loss[-1].isfinite().any())


def test_digits_are_drawn_where_they_fit_and_can_be_told() -> None:
    pictures, classes = digits.examples(300, generator=generator(), noise=0.0)
    glyphs = digits.font()
    assert pictures.shape == (300, 64)
    assert set(pictures.unique().tolist()) == {0.0, 1.0}
    for picture, digit in zip(pictures[:50], classes[:50], strict=True):
        windows = picture.view(8, 8).unfold(0, 5, 1).unfold(1, 3, 1).reshape(-1, 5, 3)
        assert any(torch.equal(window, glyphs[digit]) for window in windows)
        assert float(picture.sum()) == float(glyphs[digit].sum())
    assert len({tuple(glyph.flatten().tolist()) for glyph in glyphs}) == 10
    noisy = digits.examples(2000, generator=generator(), noise=0.5)[0]
    assert float((noisy - digits.examples(2000, generator=generator(), noise=0.0)[0]).std()) == pytest.approx(
        0.5, rel=0.02
    )


@pytest.mark.slow
def test_digits_are_learned() -> None:
    run = digits.train_many(2, steps=1000, keep_every=500, generator=generator())
    pictures, classes = digits.examples(1000, generator=generator(9))
    for seed in range(2):
        right = (run.network(seed)(pictures).argmax(1) == classes).float().mean()
        assert float(right) > 0.9


def test_all_pairs_are_split_and_their_sums_are_right() -> None:
    train_part, rest = modular_addition.examples(7, 0.4, generator=generator())
    assert len(train_part[0]) == 20
    pairs = torch.cat([train_part[0], rest[0]])
    assert len({tuple(pair) for pair in pairs.tolist()}) == 49
    assert torch.equal(torch.cat([train_part[1], rest[1]]), (pairs[:, 0] + pairs[:, 1]) % 7)


@pytest.mark.parametrize("made_with", [31, 11])
def test_sums_of_another_modulus_are_refused(made_with: int) -> None:
    data, _ = modular_addition.examples(made_with, 0.5, generator=generator())
    with pytest.raises(ValueError, match="not sums modulo 23"):
        modular_addition.train_many(1, data, steps=1, generator=generator())


@pytest.mark.slow
def test_modular_addition_is_learned_by_heart_first_and_understood_later() -> None:
    train_part, rest = modular_addition.examples(23, 0.5, generator=generator())
    run = modular_addition.train_many(2, train_part, steps=2500, keep_every=250, generator=generator(1))
    for seed in range(2):
        early, late = run.network(seed, 250), run.network(seed)
        assert float(modular_addition.loss(early, train_part).mean().detach()) < 0.2
        assert float(modular_addition.loss(early, rest).mean().detach()) > 2.5
        assert float(modular_addition.loss(late, rest).mean().detach()) < 0.3


def test_texts_repeat_with_a_period_of_their_own() -> None:
    texts = induction.examples(200, generator=generator())
    periods = []
    for text in texts:
        repeating = [p for p in range(8, 17) if torch.equal(text[p:], text[: len(text) - p])]
        assert repeating
        periods.append(repeating[0])
    assert set(periods) == set(range(8, 17))


def test_the_transformer_sees_the_past_only() -> None:
    network = induction.Network(generator=generator())
    texts = induction.examples(3, generator=generator(1))
    changed = texts.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % induction.VOCABULARY
    before, after = network(texts), network(changed)
    assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20:], after[:, 20:])
    assert induction.loss(network, (texts,)).shape == (3, induction.LENGTH - 1)


@pytest.mark.slow
def test_the_transformer_learns_to_copy_and_fresh_tokens_stay_at_chance() -> None:
    run: Training = induction.train_many(1, steps=900, keep_every=300, generator=generator())
    texts = induction.examples(200, generator=generator(1))
    fresh, repeated = (
        [float(induction.loss(run.network(0, step), (texts,))[:, part].mean().detach()) for step in run.steps]
        for part in (slice(0, 7), slice(16, None))
    )
    assert min(fresh) > 3.3  # ln 32 = 3.47
    assert repeated[1] > 2.5
    assert repeated[-1] < 1.0
