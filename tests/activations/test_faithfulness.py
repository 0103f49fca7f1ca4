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
    assert whole.dataset["ranking"].values.tolist() == ["given"]
    assert whole.dataset["faithfulness"].item() == pytest.approx(1, abs=1e-4)
    assert float(whole.dataset["baseline_faithfulness"][0]) == pytest.approx(0, abs=0.01)
    for left in zoo.EDGES:
        broken = run(material, parts=[edge for edge in zoo.EDGES if edge != left]).dataset
        assert broken["faithfulness"].item() == pytest.approx(0, abs=1e-4)
    for parts, expected in ((("embed", *zoo.CIRCUIT), 1), (zoo.CIRCUIT, 0)):
        nodes = run(material, level="nodes", parts=parts).dataset
        assert nodes["faithfulness"].item() == pytest.approx(expected, abs=1e-4)
    assert float(run(material, parts=zoo.EDGES[0]).dataset["count"][0]) == 1  # one word is one part


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_a_ranking_finds_it_with_as_many_parts(material: tuple[zoo.Pairs, Model], level: Any) -> None:
    total = {"edges": 75, "nodes": 9}[level]
    result = run(material, level=level, sizes=tuple(k / total for k in range(1, 6)) + (1.0,), ranked_on=2)
    assert result.dataset["count"].values.tolist() == [1, 2, 3, 4, 5, total]
    assert result.dataset["ranking"].values.tolist() == ["signed", "absolute"]
    np.testing.assert_allclose(result.dataset["faithfulness"], [[0, 0, 1, 1, 1, 1]] * 2, rtol=0, atol=1e-3)
    assert result.dataset.attrs["pairs"] == 4
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")


def mib_areas(model: Model, given: dict[str, Any], level: str) -> tuple[float, float, list[int]]:
    """CPR and CMD written out as in MIB: all ten shares on the axis, int(share * n) parts, one ranking for each."""
    edges = assay.attribution_patch(
        model, *PAIRS, **given, method="eap", direction="noise", exact=0, baseline=False
    ).dataset
    graph = graph_of(model)
    total = float(edges["metric_source"] - edges["metric_base"])
    scores = np.nan_to_num(edges["score"].values)
    scores = scores if level == "edges" else scores.sum(1)
    parts = graph.allowed.nonzero().tolist() if level == "edges" else np.arange(len(scores))[:, None].tolist()
    counts = [int(share * len(parts)) for share in SIZES]
    each = [graph.allowed, ~graph.allowed & False]
    for ranked in (scores * np.sign(total), np.abs(scores)):
        order = sorted(parts, key=lambda part: -ranked[tuple(part)])
        for count in counts:
            kept = torch.zeros_like(graph.allowed)
            for part in order[:count]:
                kept[tuple(part)] = True
            each.append(kept)
    values = []
    for clean, corrupted, answer, foil in zip(*PAIRS, given["answer"], given["foil"], strict=True):
        sites = list(dict.fromkeys([*graph.written_sites, *graph.read_sites]))
        other = assay.capture(model, corrupted, sites)
        logits = run_circuits(graph, torch.tensor([clean]), other, torch.stack(each))
        values.append((logits[:, answer] - logits[:, foil]).double().numpy())
    full, empty, *circuit = np.mean(values, 0)
    f = [(value - empty) / (full - empty) for value in circuit]
    areas = f[: len(SIZES)], f[len(SIZES) :]
    steps = range(len(SIZES) - 1)
    widths = [SIZES[i + 1] - SIZES[i] for i in steps]
    cpr = sum(widths[i] * (areas[0][i] + areas[0][i + 1]) / 2 for i in steps)
    cmd = sum(widths[i] * (abs(1 - areas[1][i]) + abs(1 - areas[1][i + 1])) / 2 for i in steps)
    return cpr, cmd, counts


PAIRS = ([list(CLEAN), [4, 17, 30, 9, 11, 2, 3]], [list(CORRUPTED), [4, 17, 31, 9, 5, 2, 3]])


@pytest.mark.parametrize("level", ["edges", "nodes"])
def test_areas_are_those_of_the_benchmark(model: Model, level: Any) -> None:
    given: dict[str, Any] = {"answer": [7, 9], "foil": [12, 13]}
    cpr, cmd, counts = mib_areas(model, given, level)
    dataset = assay.faithfulness(
        model, *PAIRS, **given, level=level, method="eap", random_sets=2, resamples=20
    ).dataset
    assert dataset["size"].values.tolist() == list(SIZES) and dataset["count"].values.tolist() == counts
    assert float(dataset["cpr"]) == pytest.approx(cpr, abs=1e-4)
    assert float(dataset["cmd"]) == pytest.approx(cmd, abs=1e-4)
    signed, absolute = dataset["faithfulness"].values
    assert np.abs(signed - absolute).max() > 0.05
    assert abs(np.trapezoid(absolute, SIZES) - cpr) > 0.02  # the other ranking has another area
    assert signed[-1] == absolute[-1] == 1.0
    if level == "nodes":  # 22 of them: the smallest shares are none, the empty circuit
        assert counts[:5] == [0] * 5 and (absolute[:5] == 0).all()


def test_shares_are_whole_parts_to_rounding(material: tuple[zoo.Pairs, Model]) -> None:
    """29 hundredths of 100 is 28.999999999999996 in floating point."""
    sizes = tuple(count / 75 for count in (7, 14, 23, 28, 56))
    dataset = run(material, sizes=sizes, method="eap", random_sets=0, resamples=2).dataset
    assert dataset["count"].values.tolist() == [7, 14, 23, 28, 56]


def test_magnitudes_have_one_ranking(material: tuple[zoo.Pairs, Model]) -> None:
    dataset = run(material, method="eap_star", sizes=(0.1, 1.0), resamples=2).dataset
    assert dataset["ranking"].values.tolist() == ["absolute"]
    f = dataset["faithfulness"].values[0]
    assert float(dataset["cpr"]) == pytest.approx(0.9 * (f[0] + 1) / 2)
    assert float(dataset["cmd"]) == pytest.approx(0.9 * (1 - f[0]) / 2)


def test_intervals(material: tuple[zoo.Pairs, Model]) -> None:
    dataset = run(material, sizes=(0.02, 0.04, 0.2, 1.0), metric="log_probability").dataset
    for name in ("cpr", "cmd", "baseline_cpr", "baseline_faithfulness", "faithfulness", "total_effect"):
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
                 "lead_high": 2 * lead - low, "total_effect": 2.0, "total_effect_low": 1.0,
                 "total_effect_high": 3.0}  # fmt: skip
    dataset = xr.Dataset(variables, attrs={"random_sets": 3, "metric": "probability"})
    assert [check.verdict for check in faithfulness_checks(dataset) if check.code == "P503"] == [verdict]


def test_a_circuit_that_overshoots_is_not_more_faithful() -> None:
    """Twice and a half what the model does is as far from it as its opposite: random sets, which do nothing, lead."""
    overshot = np.array(
        [[2.0, 0.0, 5.0, 0.0], [2.0, 0.0, 5.0, 0.1]]
    )  # pair: all, none, circuit, a random set
    found = described(overshot, 1, np.array([0.1]), np.random.default_rng(0), resamples=50)
    dataset = xr.Dataset(found)
    assert dataset["faithfulness"].item() == 2.5
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
    assert dataset["faithfulness"].values[:, -1] == pytest.approx(1)
    assert np.isnan(dataset["total_effect_low"])
    assert "baseline_faithfulness" not in dataset
    assert len(SIZES) == 10


def test_equal_prompts_are_told(material: tuple[zoo.Pairs, Model]) -> None:
    pairs, copied = material
    result = assay.faithfulness(copied, pairs.clean, pairs.clean, answer=pairs.answers, resamples=20)
    assert {check.code: check.verdict for check in result.checks}["P501"] == "fail"


def test_prompts_differ_where_the_interval_says_so(model: Model) -> None:
    """The same pairs are judged alike here and by the scores of edges, large differences and small ones."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(3, 100, (4, 6), generator=generator).tolist()
    corrupted = [[*row[:2], 5, *row[3:]] for row in clean]
    given: dict[str, Any] = {"answer": [7, 9, 11, 30], "foil": [12, 13, 14, 15]}
    for metric in ("probability", "logit_difference"):
        judged = assay.faithfulness(
            model,
            clean,
            corrupted,
            **given,
            metric=metric,
            method="eap",
            sizes=(1.0,),
            random_sets=0,
            resamples=2,
        )
        scored = assay.attribution_patch(
            model, clean, corrupted, **given, metric=metric, method="eap", exact=0, baseline=False
        )
        (ours,) = [check for check in judged.checks if check.code == "P501"]
        (theirs,) = [check for check in scored.checks if check.code == "P301"]
        assert ours.verdict == theirs.verdict == "warn"
        assert abs(ours.figure or 0) == pytest.approx(abs(theirs.figure or 0), abs=NATS)


def test_settings_make_the_same_measurement_again(material: tuple[zoo.Pairs, Model]) -> None:
    result = run(material, level="nodes", method="eap", sizes=(0.5, 1.0), ranked_on=1, random_sets=1, seed=4)
    assert isinstance(result.measurement, Faithfulness)
    assert from_settings("faithfulness", settings(result.measurement)) == result.measurement
    rows = result.chart().to_dict()["datasets"]["faithfulness"]
    curves = ("by signed score", "by size of score", "random sets", "one random set")
    assert [row["which"] for row in rows] == [which for which in curves for _ in range(2)]


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
