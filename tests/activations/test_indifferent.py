"""Copies that do not matter, against forwards one token at a time; and what is read of effects between them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import assay
from assay.activations.indifferent import LARGEST, indifferent_copy, null_check
from assay.activations.prompt_pairs import Gauge
from assay.models.model import Model, wrap
from assay.zoo import copier as zoo
from families import FAMILIES

BASE, SOURCE = (5, 17, 50, 42, 12, 61, 9, 3, 88, 20, 7, 33), (5, 17, 23, 42, 8, 61, 9, 3, 88, 20, 7, 33)
GAUGE = Gauge(("logit_difference",), 7, 12, torch.zeros(101))


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["gpt2"].build())


def copied(model: Model, seed: int, source: tuple[int, ...] = SOURCE) -> list[int]:
    found = indifferent_copy(model, torch.tensor([BASE]), torch.tensor([source]), GAUGE, seed)
    return found[0].tolist()


def moved(model: Model, ids: list[int]) -> float:
    both = [assay.capture(model, row, "logits")["logits"][0, -1] for row in (ids, BASE)]
    return abs(float((both[0] - both[1])[7] - (both[0] - both[1])[12]))


@pytest.mark.parametrize("seed", range(4))
def test_the_tokens_that_matter_least_are_replaced(model: Model, seed: int) -> None:
    """The same draws, each tried alone in a forward of its own."""
    generator = torch.Generator().manual_seed(seed)
    shared = [p for p in range(12) if p not in (2, 4)]
    places = [shared[i] for i in torch.randperm(10, generator=generator)[:8].tolist()]
    drawn = torch.randint(100, (8,), generator=generator).tolist()
    tokens = [token + (token >= BASE[place]) for place, token in zip(places, drawn, strict=True)]
    alone = [
        moved(model, [*BASE[:place], token, *BASE[place + 1 :]])
        for place, token in zip(places, tokens, strict=True)
    ]
    wanted = list(BASE)
    for index in np.argsort(alone)[:2]:  # the pair differs in two
        wanted[places[index]] = tokens[index]
    assert copied(model, seed) == wanted


def test_as_many_tokens_as_the_pair_differs_in_and_none_of_these(model: Model) -> None:
    for seed in range(8):
        replaced = [p for p, (a, b) in enumerate(zip(copied(model, seed), BASE, strict=True)) if a != b]
        assert len(replaced) == 2
        assert not {2, 4} & set(replaced)
    assert copied(model, 0) != copied(model, 1)
    nothing_shared = tuple(token + 1 for token in BASE)
    assert sum(a != b for a, b in zip(copied(model, 0, nothing_shared), BASE, strict=True)) == 12


@pytest.mark.parametrize(("differing", "replaced"), [(5, 5), (6, 6), (9, 3)])
def test_a_pair_that_differs_in_many_has_as_many_replaced_as_it_shares(
    model: Model, differing: int, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tuple(token + 1 if place < differing else token for place, token in enumerate(BASE))
    found = copied(model, 0, source)
    changed = [p for p, (a, b) in enumerate(zip(found, BASE, strict=True)) if a != b]
    assert len(changed) == replaced
    assert min(changed) >= differing  # none of those in which the pair differs
    monkeypatch.setattr("assay.activations.indifferent.TOKENS_AT_ONCE", 24)  # two rows a pass
    assert copied(model, 0, source) == found


def test_no_more_are_tried_than_a_pass_should_hold(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.activations.indifferent.MOST", 3)
    source = tuple(token + 1 if place < 5 else token for place, token in enumerate(BASE))
    assert sum(a != b for a, b in zip(copied(model, 0, source), BASE, strict=True)) == 3


@pytest.mark.parametrize("seed", range(3))
def test_on_the_copier_nothing_is_found_where_nothing_is(seed: int) -> None:
    """And a prompt of random tokens, which is no null, moves what is asked for."""
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator)
    pairs, copier = zoo.swapped(module.config, 1, generator=generator), wrap(module)
    given: dict[str, Any] = {"answer": pairs.answers, "foil": pairs.foils, "site": "z", "by_head": True}
    result = assay.patch(copier, pairs.clean, pairs.corrupted, seed=seed, **given)
    assert (
        float(np.abs(result.dataset["baseline_effect"]).max()) < 0.01
    )  # 10 exp(-8): what rests on the first token
    assert float(np.abs(result.dataset["effect"].sel(metric="logit_difference")).max()) > 19
    assert {check.code: check.verdict for check in result.checks}["P102"] == "pass"
    tokens = torch.randint(12, (1, 8), generator=torch.Generator().manual_seed(seed)).tolist()
    random = assay.patch(copier, tokens, pairs.corrupted, baseline_pairs=0, **given)
    assert float(np.abs(random.dataset["effect"].sel(metric="logit_difference")).max()) > 5


@pytest.mark.parametrize(
    ("null", "apart", "verdict", "figure"),
    [
        ([0.5, -0.9], 0.0, "pass", 0.09),
        ([0.5, -2.6], 0.0, "warn", 0.26),
        ([0.0, 0.0], 6.0, "warn", 0.3),  # the copy matters
        ([math.nan, 1.0], 2.0, "pass", 0.1),  # no edge
    ],
)
def test_the_verdict(null: list[float], apart: float, verdict: str, figure: float) -> None:
    dataset = xr.Dataset(
        {
            "score": ("node", [3.0, -10.0]),
            "baseline_score": ("node", null),
            "total_effect": 20.0,
            "baseline_total_effect": apart,
            "baseline_replaced": 2,
        }
    )
    check = null_check("P305", dataset, {"score": "baseline_score"})
    assert (check.verdict, check.figure) == (verdict, pytest.approx(figure))
    assert "a copy with 2 other tokens" in check.message
    assert LARGEST == 0.25


def test_the_worst_metric_decides() -> None:
    dataset = xr.Dataset(
        {
            "effect": (("metric", "layer"), [[1.0, 2.0], [0.0, 0.1]]),
            "baseline_effect": (("metric", "layer"), [[0.1, 0.2], [0.0, 0.09]]),
            "total_effect": ("metric", [2.0, 0.1]),
            "baseline_total_effect": ("metric", [0.0, 0.0]),
            "baseline_replaced": 1.5,
        }
    )
    check = null_check("P102", dataset, {"effect": "baseline_effect"})
    assert (check.verdict, check.figure) == ("warn", pytest.approx(0.9))
    dataset["effect"][1] = 0.0
    assert null_check("P102", dataset, {"effect": "baseline_effect"}).figure == math.inf
