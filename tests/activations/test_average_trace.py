"""The average causal trace against causal traces of single facts, averaged by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import assay
from activations.teaching import teach
from assay.activations.average_trace import ROLES, AverageTrace, roles, spread
from assay.activations.material import Fact
from assay.activations.restoration import embedding_scale
from assay.errors import BadInput
from assay.models.model import Model
from assay.models.twin import untrained_twin
from assay.runs.result import Result

PROBABILITY = 1e-6  # float32: other batches, another order of summation
FACTS = [
    Fact("Eiffel Tower", "place", "The Eiffel Tower is in the city of", " Paris"),
    Fact("Colosseum", "place", "The Colosseum is in the city of", " Rome"),
    Fact("Mrs Dursley", "place", "So Mrs Dursley is near the old", " gate"),
    Fact("John", "place", "So John is near the old", " store"),
]
UNTAUGHT = Fact("Mary", "place", "So Mary is in the city of", " drink")
SETTINGS: dict[str, Any] = {
    "kinds": ("state", "attn"), "noise": 4.0, "noise_samples": 3, "window": 2, "seed": 6, "baseline_facts": 2,
}  # fmt: skip
"""None of them the default."""


@pytest.fixture(scope="module")
def model(make_tiny_llama: Callable[..., Model]) -> Model:
    made = make_tiny_llama()
    lessons = [
        (made.tokens(fact.prompt), made.tokens(fact.prompt + fact.answer)[len(made.tokens(fact.prompt))])
        for fact in FACTS
    ]
    return teach(made, lessons)


@pytest.fixture(scope="module")
def result(model: Model) -> Result:
    return assay.average_causal_trace(model, [*FACTS[:2], UNTAUGHT, *FACTS[2:]], **SETTINGS)


def single(model: Model, fact: Fact, index: int, sigma: float) -> tuple[dict[str, np.ndarray], float]:
    """A fact's own trace: the effect of each role, (kind, layer), and the total effect."""
    dataset = assay.causal_trace(
        model, fact.prompt, fact.subject, fact.answer, kinds=("state", "attn"), noise=4.0, noise_samples=3,
        window=2, sigma=sigma, seed=6 * 1_000_003 + index, baseline_samples=0,
    ).dataset  # fmt: skip
    inside = np.flatnonzero(dataset["is_subject"].values).tolist()
    last = dataset.sizes["position"] - 1
    places = {
        "first_subject": inside[:1] if len(inside) > 1 else [],
        "middle_subject": inside[1:-1],
        "last_subject": inside[-1:],
        "next": [inside[-1] + 1],
        "further": list(range(inside[-1] + 2, last)),
        "last": [last],
    }
    effect = dataset["indirect_effect"]
    found = {
        role: effect.isel(position=where).mean("position").values for role, where in places.items() if where
    }
    return found, float(dataset["total_effect"])


def test_averages_are_those_of_single_traces(model: Model, result: Result) -> None:
    dataset, sigma = result.dataset, embedding_scale(model)
    traces = [single(model, fact, index, sigma) for index, fact in zip((0, 1, 3, 4), FACTS, strict=True)]
    for role in ROLES:
        having = np.stack([found[role] for found, _ in traces if role in found])
        here = dataset.sel(role=role)
        assert int(here["n_facts"]) == len(having)
        np.testing.assert_allclose(here["average_indirect_effect"], having.mean(0), rtol=0, atol=PROBABILITY)
        if len(having) == 1:
            assert np.isnan(here["average_indirect_effect_stderr"]).all()
            continue
        stderr = having.std(0, ddof=1) / np.sqrt(len(having))
        reach = stats.t.ppf(0.975, len(having) - 1) * stderr
        for part, expected in {
            "stderr": stderr,
            "low": having.mean(0) - reach,
            "high": having.mean(0) + reach,
        }.items():
            found = here[f"average_indirect_effect_{part}"]
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=20 * PROBABILITY
            )  # times t of one degree
    totals = np.array([total for _, total in traces])
    assert float(dataset["average_total_effect"]) == pytest.approx(totals.mean(), abs=PROBABILITY)
    assert float(dataset["average_total_effect_stderr"]) == pytest.approx(
        totals.std(ddof=1) / 2, abs=PROBABILITY
    )


def test_only_facts_that_are_answered_right_count(result: Result) -> None:
    dataset = result.dataset
    assert dataset["known"].values.tolist() == [True, True, False, True, True]
    assert (int(dataset["n_known"]), int(dataset["n_not_known"])) == (4, 1)
    assert np.isnan(dataset["total_effect"].values).tolist() == [False, False, True, False, False]
    assert dataset["prompt"].values.tolist()[2] == UNTAUGHT.prompt
    assert dataset["answer"].values.tolist()[2] == UNTAUGHT.answer


def test_the_baseline_is_the_average_over_some_facts_in_an_untrained_twin(
    model: Model, result: Result
) -> None:
    dataset, twin = result.dataset, untrained_twin(model, seed=6)
    chosen = [(0, FACTS[0]), (2, UNTAUGHT)]  # two of five, spread over the list, known to the model or not
    traces = [single(twin, fact, index, embedding_scale(model)) for index, fact in chosen]
    found = dataset["baseline_average_indirect_effect"]
    expected = np.mean([found["last"] for found, _ in traces], 0)
    np.testing.assert_allclose(found.sel(role="last"), expected, rtol=0, atol=PROBABILITY)
    total = np.mean([total for _, total in traces])
    assert float(dataset["baseline_average_total_effect"]) == pytest.approx(total, abs=PROBABILITY)


def test_the_twin_has_nothing_of_what_was_taught(result: Result) -> None:
    largest = float(np.abs(result.dataset["average_indirect_effect"]).max())
    assert largest > 0.1
    assert float(np.abs(result.dataset["baseline_average_indirect_effect"]).max()) < 0.1 * largest
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts["F101"] == "warn"  # four facts are few
    assert verdicts["F103"] == "pass"
    assert verdicts["A001"] == "pass"


def test_no_baseline_on_request(model: Model) -> None:
    result = assay.average_causal_trace(model, FACTS[:1], kinds=("state",), noise_samples=1, baseline_facts=0)
    dataset = result.dataset
    assert not [name for name in dataset if str(name).startswith("baseline")]
    assert np.isnan(dataset["average_total_effect_stderr"])  # of one fact there is no spread
    assert {check.code: check.verdict for check in result.checks}["F101"] == "fail"


def test_facts_that_nobody_knows_give_no_number(model: Model) -> None:
    result = assay.average_causal_trace(model, [UNTAUGHT], kinds=("state",), noise_samples=1)
    assert int(result.dataset["n_known"]) == 0
    assert np.isnan(result.dataset["average_indirect_effect"]).all()
    assert {check.code: check.verdict for check in result.checks}["F101"] == "fail"
    assert {check.code: check.verdict for check in result.checks}["F102"] == "fail"


def test_fewer_facts_are_spread_over_the_list() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == [0, 1, 2]


def test_max_facts_takes_some_of_those_given(model: Model) -> None:
    result = assay.average_causal_trace(model, FACTS, max_facts=2, kinds=("state",), noise_samples=1)
    assert result.dataset["prompt"].values.tolist() == [FACTS[0].prompt, FACTS[2].prompt]
    assert result.measurement.window == model.n_layers  # the default, on a shallow model


def test_shipped_facts_are_the_default(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    monkeypatch.setattr("assay.activations.average_trace.shipped_facts", lambda: tuple(FACTS[:1]))
    result = assay.average_causal_trace(model, kinds=("state",), noise_samples=1)
    assert isinstance(result.measurement, AverageTrace)
    assert result.measurement.facts == ((FACTS[0].subject, FACTS[0].prompt, FACTS[0].answer),)


def test_it_reports_on_one_page(result: Result, tmp_path: Path) -> None:
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Average causal trace" in page
    assert "over 4 facts" in page


@pytest.mark.parametrize(
    ("subject", "length", "expected"),
    [
        ([1], 5, ([], [], [1], [2], [3], [4])),
        ([0, 1], 3, ([0], [], [1], [], [], [2])),
        ([2, 3, 4, 5], 9, ([2], [3, 4], [5], [6], [7], [8])),
        ([1, 2], 3, ([1], [], [2], [], [], [])),
    ],
)
def test_every_position_from_the_subject_on_has_one_role(
    subject: list[int], length: int, expected: tuple[list[int], ...]
) -> None:
    found = roles(subject, length)
    assert tuple(found.values()) == expected
    assert sorted(p for positions in found.values() for p in positions) == list(range(subject[0], length))


@pytest.mark.parametrize(
    ("facts", "changed", "message"),
    [
        ([], {}, "no facts were given"),
        (FACTS, {"max_facts": 0}, "max_facts=0"),
        (FACTS, {"baseline_facts": -1}, "baseline_facts=-1"),
        (FACTS, {"noise": -1.0}, "noise=-1.0: the noise needs a positive scale"),
        (FACTS, {"noise_samples": 0}, "noise_samples must be at least 1"),
        (FACTS, {"window": 4}, "window=4"),
        ([Fact("Harry", "", "So Mary is in", " Rome")], {}, "the subject 'Harry' is not in the prompt"),
        ([Fact("Mary", "", "So Mary and Mary are in", " Rome")], {}, "it has to stand in one place"),
        ([Fact("Mary", "", "So Mary is in", " ")], {}, "the answer ' ' is empty"),
    ],
)
def test_wrong_facts_and_settings_are_refused(
    model: Model, facts: list[Fact], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        assay.average_causal_trace(model, facts, **changed)
