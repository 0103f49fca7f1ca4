"""The hand-written copier: it predicts what its formula says, by the parts that are written down, and by no others."""

import math

import pytest
import torch
from torch import Tensor

import assay
from assay.models.model import Model, wrap
from assay.zoo import copier as zoo

GAIN = 10.0


def made(**settings: float) -> zoo.Copier:
    return zoo.copier(generator=torch.Generator().manual_seed(0), **settings)  # type: ignore[arg-type]


def pairs(n: int = 3, length: int = 9, seed: int = 1) -> zoo.Pairs:
    return zoo.swapped(made().config, n, generator=torch.Generator().manual_seed(seed), length=length)


def expected(tokens: list[int], sharpness: float) -> list[float]:
    """Logits at the last position, from the two attentions written out token by token."""
    words = max(tokens) + 1
    previous: list[list[float]] = []  # how much of each token the stream holds as the previous one
    for at in range(len(tokens)):
        weights = [math.exp(sharpness * (j == max(at - 1, 0))) for j in range(at + 1)]
        held = [0.0] * words
        for weight, token in zip(weights, tokens, strict=False):
            if token != zoo.FIRST:
                held[token] += weight / sum(weights)
        previous.append(held)
    scores = [sharpness * (0.5 if j == 0 else previous[j][tokens[-1]]) for j in range(len(tokens))]
    scores[0] += sharpness * previous[0][tokens[-1]]
    total = sum(map(math.exp, scores))
    logits = [0.0] * words
    for score, token in zip(scores, tokens, strict=True):
        if token != zoo.FIRST:
            logits[token] += GAIN * math.exp(score) / total
    return logits


@pytest.mark.parametrize("sharpness", [16.0, 3.0, 1.0])
def test_logits_are_those_of_the_formula(sharpness: float) -> None:
    model = made(sharpness=sharpness)
    for tokens in (*pairs().clean, [0, 1, 2, 3, 4], [0, 5, 5, 5], [0, 3, 1, 3, 2, 3]):
        found = model(torch.tensor([tokens])).logits[0, -1]
        wanted = torch.tensor(expected(tokens, sharpness))
        torch.testing.assert_close(found[: len(wanted)], wanted, rtol=0, atol=1e-5)
        assert (found[len(wanted) :] == 0).all()


def test_it_copies_what_followed() -> None:
    model, given = made(), pairs(n=20)
    for prompts, answers in ((given.clean, given.answers), (given.corrupted, given.foils)):
        logits = model(torch.tensor(prompts)).logits[:, -1].detach()
        assert logits.argmax(-1).tolist() == answers
        assert float(logits.amax(-1).min()) > 0.999 * GAIN


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(made())


def test_every_part_is_found_and_its_blocks_continue_a_prefix(model: Model) -> None:
    assert {"resid_mid.1", "q.1", "k.0", "v.1", "z.0", "mlp_act.0", "pattern.1"} <= set(model.sites())
    verdicts = {check.code: check.verdict for check in assay.patch(model, [0, 1, 2], [0, 2, 1]).checks}
    assert verdicts["P104"] == "pass"


def test_idle_parts_write_and_nothing_depends_on_it(model: Model) -> None:
    ids, generator = pairs().clean, torch.Generator().manual_seed(3)
    clean = assay.capture(model, ids, ["logits", "z.0", "z.1", "mlp_out.0", "mlp_out.1"])

    def noise(part: Tensor) -> Tensor:
        return torch.randn(part.shape, generator=generator)

    assert all(float(clean[site].abs().max()) > 0.01 for site in ("mlp_out.0", "mlp_out.1"))
    assert all(float(clean[site][:, :, 1:].abs().amax((0, 1, 3)).min()) > 0.01 for site in ("z.0", "z.1"))
    idle = {f"z.{layer}": assay.at(noise, heads=[1, 2]) for layer in (0, 1)}
    for edits in (idle, {"mlp_act.0": noise, "mlp_act.1": noise}):
        changed = assay.intervene(model, ids, edits, capture=["logits", "resid_post.1"])
        assert torch.equal(changed["logits"], clean["logits"])
    for site, head in (("z.0", 0), ("z.1", 0)):
        changed = assay.intervene(model, ids, {site: assay.at(0.0, heads=head)})
        assert float((changed["logits"] - clean["logits"])[:, -1].abs().max()) > 0.9 * GAIN


def test_patching_finds_the_circuit_and_nothing_else(model: Model) -> None:
    given = pairs()
    dataset = assay.patch(
        model, given.clean, given.corrupted, answer=given.answers, foil=given.foils, site="z", by_head=True,
        metrics=("logit_difference",),
    ).dataset  # fmt: skip
    effect = dataset["effect"].sel(metric="logit_difference")
    assert float(effect.sel(layer=1, position=8, head=0)) == pytest.approx(2 * GAIN, rel=1e-3)
    for position in (2, 4):  # half of it: with one of the two, both keys match, or neither
        assert float(effect.sel(layer=0, position=position, head=0)) == pytest.approx(GAIN, rel=1e-3)
    assert (effect.sel(head=[1, 2]) == 0).all()


def test_ablation_finds_the_circuit_and_nothing_else(model: Model) -> None:
    given = pairs(n=8)
    inputs = [[*clean, answer] for clean, answer in zip(given.clean, given.answers, strict=True)]
    dataset = assay.ablate(model, inputs, value="zero", components=("heads", "mlp")).dataset
    effect = dataset["effect"].sel(metric="loss_difference").to_series()
    rounding = 1e-6  # logits of 10 in float32, summed in another order
    assert {name for name, value in effect.items() if abs(value) > rounding} == set(zoo.CIRCUIT)
    assert (effect[list(zoo.CIRCUIT)] > 0.1).all()


def test_direct_attribution_finds_the_head_that_writes(model: Model) -> None:
    given = pairs()
    dataset = assay.direct_logit_attribution(model, given.clean, answer=given.answers).dataset
    for name in ("attribution", "direct_effect"):
        found = dataset[name].to_series()
        assert {part for part, value in found.items() if value != 0} == {"attention.1", "head.1.0"}
        assert found["head.1.0"] == pytest.approx(GAIN, rel=1e-3)


@pytest.mark.parametrize("settings", [{"vocabulary": 3}, {"context": 3}])
def test_too_small_a_copier_is_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="needs four or more"):
        made(**settings)


@pytest.mark.parametrize("length", [5, 14, 17])
def test_prompts_have_to_fit(length: int) -> None:
    with pytest.raises(ValueError, match="6 to 13"):
        pairs(length=length)


def test_sizes_can_be_chosen() -> None:
    model = zoo.copier(
        generator=torch.Generator().manual_seed(0), vocabulary=20, context=30, idle_heads=0, gain=3.0
    )
    given = zoo.swapped(model.config, 4, generator=torch.Generator().manual_seed(0), length=20)
    logits = model(torch.tensor(given.clean)).logits[:, -1].detach()
    assert logits.argmax(-1).tolist() == given.answers
    assert float(logits.max()) == pytest.approx(3.0, rel=1e-3)
