"""Faithfulness: circuits by hooks, the whole and the empty graph, areas by hand, the circuit that is written down."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import assay
from assay.activations.checks.faithfulness import faithfulness_checks
from assay.activations.circuits.circuit import run_circuits
from assay.activations.circuits.graph import find_edges, graph_of
from assay.activations.faithfulness import SIZES, Faithfulness, described
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from assay.zoo import copier as zoo
from families import FAMILIES
from reference.edges_slow import SlowEdges

NATS = 2e-5  # float32: logits of size 10, summed in another order
CLEAN, CORRUPTED = (5, 17, 23, 42, 8, 61, 9), (5, 17, 50, 42, 12, 61, 9)


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["llama"].build())


@pytest.fixture(scope="module")
def material() -> tuple[zoo.Pairs, Model]:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=5.0)
    return zoo.swapped(module.config, 6, generator=generator), wrap(module)


def run(material: tuple[zoo.Pairs, Model], **changed: Any) -> assay.Result:
    pairs, copied = material
    given: dict[str, Any] = {
        "answer": pairs.answers,
        "foil": pairs.foils,
        "random_sets": 2,
        "resamples": 200,
        **changed,
    }
    return assay.faithfulness(copied, pairs.clean, pairs.corrupted, **given)


def circuits(model: Model, kept: torch.Tensor) -> torch.Tensor:
    graph = graph_of(model)
    other = assay.capture(model, CORRUPTED, list(dict.fromkeys([*graph.written_sites, *graph.read_sites])))
    return run_circuits(graph, torch.tensor([CLEAN]), other, kept)


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "gpt_neox", "qwen3", "gemma2", "gemma3", "olmo2", "exaone4", "granite"]
)
def test_the_whole_graph_is_the_clean_run_and_the_empty_one_the_corrupted(kind: str) -> None:
    other = wrap(FAMILIES[kind].build())
    allowed = graph_of(other).allowed
    found = circuits(other, torch.stack([allowed, ~allowed & False]))
    for logits, ids in zip(found, (CLEAN, CORRUPTED), strict=True):
        expected = assay.capture(other, ids, "logits")["logits"][0, -1]
        torch.testing.assert_close(logits, expected, rtol=0, atol=5 * NATS)


@pytest.mark.parametrize("edge", ["embed>q.1.2", "embed>v.2.1", "embed>mlp.1", "embed>logits"])
def test_all_edges_but_one_is_what_a_hook_makes_of_it(model: Model, edge: str) -> None:
    """The last edge carries the corrupted embedding: one receiver reads the clean stream with that change."""
    graph = graph_of(model)
    ((sender, receiver),) = find_edges(graph, [edge])
    kept = graph.allowed.clone()
    kept[sender, receiver] = False
    slow = SlowEdges(model.module, torch.tensor([CLEAN]), torch.tensor([CORRUPTED]))
    expected = slow.logits(edge.split(">")[1], slow.written("embed"))
    torch.testing.assert_close(circuits(model, kept[None])[0], expected, rtol=0, atol=5 * NATS)


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_circuits_side_by_side_are_circuits_alone(
    model: Model, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assay.activations.circuits.circuit.ENTRIES_AT_ONCE", at_once)
    graph = graph_of(model)
    kept = torch.rand(5, *graph.allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    together = circuits(model, kept)
    for one, logits in zip(kept, together, strict=True):
        torch.testing.assert_close(circuits(model, one[None])[0], logits, rtol=0, atol=NATS)
    assert float(together.std(0).max()) > 100 * NATS


def test_the_written_circuit_is_faithful_and_every_part_of_it_needed(
    material: tuple[zoo.Pairs, Model],
) -> None:
    whole = run(material, parts=zoo.EDGES)
    assert float(whole.dataset["faithfulness"][0]) == pytest.approx(1, abs=1e-4)
    assert float(whole.dataset["baseline_faithfulness"][0]) == pytest.approx(0, abs=0.01)
    for left in zoo.EDGES:
        broken = run(material, parts=[edge for edge in zoo.EDGES if edge != left]).dataset
        assert float(broken["faithfulness"][0]) == pytest.approx(0, abs=1e-4)
    nodes = run(material, level="nodes", parts=("embed", *zoo.CIRCUIT)).dataset
    assert float(nodes["faithfulness"][0]) == pytest.approx(1, abs=1e-4)
    assert float(run(material, level="nodes", parts=zoo.CIRCUIT).dataset["faithfulness"][0]) == pytest.approx(
        0, abs=1e-4
    )


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_a_ranking_finds_it_with_as_many_parts(material: tuple[zoo.Pairs, Model], level: Any) -> None:
    total = {"edges": 75, "nodes": 9}[level]
    result = run(material, level=level, sizes=tuple(k / total for k in range(1, 6)) + (1.0,), ranked_on=2)
    assert result.dataset["count"].values.tolist() == [1, 2, 3, 4, 5, total]
    np.testing.assert_allclose(result.dataset["faithfulness"], [0, 0, 1, 1, 1, 1], rtol=0, atol=1e-3)
    assert result.dataset.attrs["pairs"] == 4
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")


def test_areas_and_intervals(material: tuple[zoo.Pairs, Model]) -> None:
    dataset = run(material, sizes=(0.02, 0.04, 0.2, 1.0), metric="log_probability").dataset
    f, x = dataset["faithfulness"].values, dataset["size"].values
    assert float(dataset["cpr"]) == pytest.approx(
        sum((x[i + 1] - x[i]) * (f[i + 1] + f[i]) / 2 for i in range(3))
    )
    short = np.abs(1 - f)
    assert float(dataset["cmd"]) == pytest.approx(
        sum((x[i + 1] - x[i]) * (short[i + 1] + short[i]) / 2 for i in range(3))
    )
    for name in ("cpr", "cmd", "baseline_cpr", "baseline_faithfulness", "faithfulness"):
        assert (dataset[f"{name}_low"] <= dataset[name] + 1e-9).all()
        assert (dataset[name] <= dataset[f"{name}_high"] + 1e-9).all()
    assert float(dataset["cpr"]) > float(dataset["baseline_cpr_high"])
    again, other = (run(material, sizes=(0.5, 0.9), seed=seed, random_sets=6).dataset for seed in (0, 1))
    assert not np.array_equal(again["baseline_faithfulness"], other["baseline_faithfulness"])


def test_areas_of_random_sets_are_those_of_each_set(material: tuple[zoo.Pairs, Model]) -> None:
    """The curve that is the mean of several is nearer to 1 than they are, where some are above it and some below."""
    given: dict[str, Any] = {"sizes": (0.1, 0.5, 0.8, 1.0), "random_sets": 5, "metric": "log_probability"}
    dataset = run(material, **given).dataset
    curves, x = dataset["baseline_faithfulness_by_set"].values, dataset["size"].values
    assert curves.shape == (5, 4)
    np.testing.assert_allclose(dataset["baseline_faithfulness"], curves.mean(0), rtol=1e-12)
    areas = {"cpr": np.trapezoid(curves, x), "cmd": np.trapezoid(np.abs(1 - curves), x)}
    for name, area in areas.items():
        np.testing.assert_allclose(dataset[f"baseline_{name}_by_set"], area, rtol=1e-12)
        assert float(dataset[f"baseline_{name}"]) == pytest.approx(area.mean())
    assert areas["cmd"].std() > 0.01
    lead = areas["cmd"].min() - float(dataset["cmd"])
    assert float(dataset["lead"]) == pytest.approx(lead)
    assert float(dataset["lead_low"]) <= lead <= float(dataset["lead_high"])


def test_random_sets_are_less_faithful_than_the_circuit_and_as_faithful_as_idle_parts(
    material: tuple[zoo.Pairs, Model],
) -> None:
    def judged(**changed: Any) -> Any:
        return {check.code: check for check in run(material, **changed).checks}["P503"]

    idle = ("embed>v.0.1", "head.0.1>q.1.2", "mlp.0>logits")
    assert judged(parts=zoo.EDGES).verdict == "pass"
    assert judged(parts=zoo.EDGES).figure == pytest.approx(1, abs=0.02)
    assert (judged(parts=idle).verdict, judged(parts=idle).figure) == ("warn", pytest.approx(0, abs=0.02))
    alone = assay.faithfulness(
        material[1], material[0].clean[0], material[0].corrupted[0], parts=zoo.EDGES, random_sets=3
    )
    (check,) = [check for check in alone.checks if check.code == "P503"]
    assert check.verdict == "pass" and "one pair" in check.message


@pytest.mark.parametrize(
    ("lead", "low", "verdict"),
    [
        (0.4, 0.1, "pass"),
        (0.4, -0.1, "warn"),
        (-0.2, -0.3, "warn"),
        (0.4, np.nan, "pass"),
        (np.nan, np.nan, "warn"),
    ],
)
def test_a_lead_has_to_be_told_from_none(lead: float, low: float, verdict: str) -> None:
    variables = {"metric_full": 2.0, "metric_empty": 0.0, "graph_error": 0.0, "lead": lead, "lead_low": low,
                 "lead_high": 2 * lead - low}  # fmt: skip
    dataset = xr.Dataset(variables, attrs={"random_sets": 3})
    assert [check.verdict for check in faithfulness_checks(dataset) if check.code == "P503"] == [verdict]


def test_a_circuit_that_overshoots_is_not_more_faithful() -> None:
    """Twice and a half what the model does is as far from it as its opposite: random sets, which do nothing, lead."""
    overshot = np.array(
        [[2.0, 0.0, 5.0, 0.0], [2.0, 0.0, 5.0, 0.1]]
    )  # pair: all, none, circuit, a random set
    found = described(overshot, np.array([0.1]), np.random.default_rng(0), resamples=50)
    dataset = xr.Dataset(found)
    assert float(dataset["faithfulness"][0]) == 2.5
    assert float(dataset["lead"]) == pytest.approx(0.975 - 1.5) and float(dataset["lead_high"]) < 0


def test_one_pair_has_no_interval_and_kl_is_ranked_from_the_corrupted_run(
    material: tuple[zoo.Pairs, Model],
) -> None:
    pairs, copied = material
    dataset = assay.faithfulness(
        copied, pairs.clean[0], pairs.corrupted[0], random_sets=0, method="eap"
    ).dataset
    assert dataset.attrs["metric"] == "kl_from_clean"
    assert np.isnan(dataset["cpr_low"])
    assert float(dataset["faithfulness"][-1]) == pytest.approx(1)
    assert "baseline_faithfulness" not in dataset
    assert len(SIZES) == 10


def test_equal_prompts_are_told(material: tuple[zoo.Pairs, Model]) -> None:
    pairs, copied = material
    result = assay.faithfulness(copied, pairs.clean, pairs.clean, answer=pairs.answers, resamples=20)
    assert {check.code: check.verdict for check in result.checks}["P501"] == "fail"


def test_settings_make_the_same_measurement_again(material: tuple[zoo.Pairs, Model]) -> None:
    result = run(material, level="nodes", method="eap", sizes=(0.5, 1.0), ranked_on=1, random_sets=1, seed=4)
    assert isinstance(result.measurement, Faithfulness)
    assert from_settings("faithfulness", settings(result.measurement)) == result.measurement
    rows = result.chart().to_dict()["datasets"]["faithfulness"]
    assert [row["which"] for row in rows] == ["circuit"] * 2 + ["random sets"] * 2 + ["one random set"] * 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": ()}, "ascending"),
        ({"sizes": (0.5, 0.1)}, "ascending"),
        ({"sizes": (0.0, 1.0)}, "above 0"),
        ({"sizes": (0.5, 1.1)}, "up to 1"),
        ({"ranked_on": 6}, "left to measure"),
        ({"random_sets": -1}, "0 or more"),
        ({"parts": ("head.0.7>logits",)}, "write it as"),
        ({"parts": ("mlp.1>q.0.0",)}, "reads before"),
        ({"parts": ("head.0.7",), "level": "nodes"}, "is no node"),
        ({"foil": None, "metric": "logit_difference"}, "needs foil="),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    material: tuple[zoo.Pairs, Model], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(material, **changed)
