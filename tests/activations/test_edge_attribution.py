"""Edges: exact effects by hooks and weights taken apart by hand, scores by small steps, quadrature by its error."""

from typing import Any

import numpy as np
import pytest
import torch

import assay
from assay.activations.circuits.edge_scores import rule
from assay.activations.circuits.graph import find_edges, graph_of
from assay.activations.edge_attribution import EdgeAttribution
from assay.activations.indifferent import indifferent_copy
from assay.activations.prompt_pairs import Gauge
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from assay.zoo import copier as zoo
from families import FAMILIES
from reference.edges_slow import SlowEdges

NATS = 2e-5  # float32: logits of size 10, summed in another order
STEP = 0.01  # of central differences, whose error is its square
CLEAN, CORRUPTED = (5, 17, 23, 42, 8, 61, 9), (5, 17, 50, 42, 12, 61, 9)
ANSWER, FOIL = 7, 12
EDGES = (
    "embed>q.0.1", "embed>mlp.0", "head.0.1>k.1.0", "head.0.2>v.1.1", "mlp.0>q.2.3", "head.1.3>mlp.1", "mlp.1>v.2.0",
    "head.0.0>mlp.0", "embed>k.2.1", "mlp.2>logits", "head.2.1>logits", "embed>logits",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["llama"].build())


def run(model: Model, **changed: Any) -> assay.Result:
    given: dict[str, Any] = {
        "answer": ANSWER,
        "foil": FOIL,
        "method": "eap",
        "exact": 0,
        "baseline": False,
        **changed,
    }
    return assay.attribution_patch(model, CLEAN, CORRUPTED, **given)


def twin(model: Model, direction: str = "denoise") -> SlowEdges:
    ids = torch.tensor([CORRUPTED]), torch.tensor([CLEAN])
    return SlowEdges(model.module, *(ids if direction == "denoise" else ids[::-1]))


def difference(logits: torch.Tensor) -> float:
    return float(logits[ANSWER] - logits[FOIL])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_scores_are_slopes_of_patching_one_edge(model: Model, direction: Any) -> None:
    score, slow = run(model, direction=direction).dataset["score"], twin(model, direction)
    largest = 0.0
    for name in EDGES:
        sender, receiver = name.split(">")
        change = slow.written(sender)
        up, down = (difference(slow.logits(receiver, step * change)) for step in (STEP, -STEP))
        wanted = (up - down) / (2 * STEP)
        assert float(score.sel(sender=sender, receiver=receiver)) == pytest.approx(wanted, abs=3e-3)
        largest = max(largest, abs(wanted))
    assert largest > 0.3  # something is compared


def test_exact_effects_are_those_of_one_reader_reading_another_stream(model: Model) -> None:
    dataset, slow = run(model, exact=40, seed=2, max_rows=7).dataset, twin(model)
    base = difference(model.module(slow.base).logits[0, -1].detach())
    for index, name in enumerate(dataset["edge"].values):
        sender, receiver = name.split(">")
        wanted = difference(slow.logits(receiver, slow.written(sender))) - base
        assert float(dataset["edge_effect"][index]) == pytest.approx(wanted, abs=4 * NATS)
        score = dataset["score"].sel(sender=sender, receiver=receiver)
        assert float(dataset["edge_score"][index]) == pytest.approx(float(score), abs=1e-12)
    assert (dataset["edge_group"].values == "first").sum() == 20


def test_edges_against_the_order_are_none(model: Model) -> None:
    score = run(model).dataset["score"]
    graph = graph_of(model)
    assert len(graph.senders) == 1 + 3 * 5
    assert len(graph.receivers) == 3 * (4 + 2 + 2 + 1) + 1
    for sender, receiver, there in (
        ("head.1.0", "q.1.1", False), ("head.1.0", "mlp.1", True), ("mlp.1", "mlp.1", False), ("mlp.1", "q.2.0", True),
        ("mlp.2", "logits", True), ("mlp.2", "q.0.0", False), ("embed", "k.0.0", True),
    ):  # fmt: skip
        assert bool(np.isfinite(score.sel(sender=sender, receiver=receiver))) == there


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen3", "phi", "gemma2", "olmo2", "granite"])
def test_what_receivers_read_adds_up(kind: str) -> None:
    """Of every family: what the logits read from all senders is the change of the last stream."""
    other = wrap(FAMILIES[kind].build())
    dataset = run(other).dataset
    last = f"resid_post.{other.n_layers - 1}"
    seen = assay.capture(other, CORRUPTED, [last, "logits"], grad=True)
    value = seen["logits"][0, -1, ANSWER] - seen["logits"][0, -1, FOIL]
    (slope,) = torch.autograd.grad(value, seen[last])
    change = assay.capture(other, CLEAN, [last])[last] - seen[last].detach()
    total = dataset["score"].sel(receiver="logits").sum()
    assert float(total) == pytest.approx(float((change * slope).sum()), abs=10 * NATS)


@pytest.mark.parametrize(("sharpness", "metric"), [(2.0, "kl_from_clean"), (4.0, "log_probability")])
def test_the_usual_rule_is_an_eighth_wrong_where_gauss_is_right(sharpness: float, metric: Any) -> None:
    pairs, copied = copier(sharpness)
    usual, fine, gauss = (
        assay.attribution_patch(
            copied, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, metric=metric,
            method="eap_ig", exact=0, baseline=False, steps=steps, quadrature=quadrature,
        )
        for quadrature, steps in (("endpoint", 5), ("endpoint", 20), ("gauss", 5))
    )  # fmt: skip
    errors = [float(result.dataset["quadrature_error"]) for result in (usual, fine, gauss)]
    assert errors[0] > 0.12
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.2)  # it falls as one over the steps
    assert errors[2] < 2e-3
    verdicts = [{c.code: c.verdict for c in result.checks}["P304"] for result in (usual, gauss)]
    assert verdicts == ["warn", "pass"]


def test_the_adaptive_rule_finds_where_attention_turns() -> None:
    """At full sharpness all of the change happens within a hundredth of the way, between two points of Gauss's rule."""
    pairs, copied = copier(sharpness=32.0)
    given: dict[str, Any] = {"answer": pairs.answers, "foil": pairs.foils, "method": "eap_ig", "exact": 0}
    error = {
        (quadrature, steps): float(
            assay.attribution_patch(
                copied,
                pairs.clean,
                pairs.corrupted,
                quadrature=quadrature,
                steps=steps,
                baseline=False,
                **given,
            ).dataset["quadrature_error"]
        )
        for quadrature, steps in (("gauss", 12), ("adaptive", 48), ("adaptive", 3))
    }
    assert error["adaptive", 48] < 0.01
    assert error["gauss", 12] > 0.1
    assert error["adaptive", 3] > 0.1  # no more slopes than were allowed


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_rules_integrate_what_they_should(steps: int) -> None:
    points, weights = (np.array(part) for part in rule("gauss", steps))
    for degree in range(2 * steps):
        assert (weights * points**degree).sum() == pytest.approx(1 / (degree + 1), abs=1e-12)
    points, weights = (np.array(part) for part in rule("endpoint", steps))
    assert (weights * points).sum() == pytest.approx((steps + 1) / (2 * steps))


def copier(sharpness: float) -> tuple[zoo.Pairs, Model]:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=sharpness)
    return zoo.swapped(module.config, 4, generator=generator), wrap(module)


@pytest.mark.parametrize("method", ["eap", "eap_ig"])
def test_the_copier_s_edges_are_found_and_no_others(method: Any) -> None:
    pairs, copied = copier(sharpness=4.0)
    result = assay.attribution_patch(
        copied, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, method=method
    )
    score = result.dataset["score"].stack(edge_=("sender", "receiver")).to_series().dropna()
    named = {f"{s}>{r}": value for (s, r), value in score.items()}
    total = float(result.dataset["total_effect"])
    assert {name for name, value in named.items() if abs(value) > 0.05 * total} == set(zoo.EDGES)
    assert all(
        named[name] == 0
        for name in named
        if name.startswith(("mlp", "head.0.1", "head.0.2", "head.1.1", "head.1.2"))
    )
    exact = dict(zip(result.dataset["edge"].values, result.dataset["edge_effect"].values, strict=True))
    assert {name for name, value in exact.items() if abs(value) > 0.05 * total} == set(zoo.EDGES)
    if method == "eap_ig":
        for name in zoo.EDGES:  # each of them carries all of it, to the 1 % that the rule stops at
            assert named[name] == pytest.approx(total, rel=1e-2)
    verdicts = {check.code: check.verdict for check in result.checks}
    assert verdicts == dict.fromkeys(verdicts, "pass")


def test_the_qk_fix_puts_the_softmax_of_a_patched_head_in(model: Model) -> None:
    """The pattern of a pass in which one head's queries, or keys, read the edge, times the slope by the pattern."""
    dataset = run(model, method="eap_qk_fix").dataset
    slow = SlowEdges(model.module, torch.tensor([CORRUPTED]), torch.tensor([CLEAN]))
    for sender, name, layer, kv in (("embed", "q", 1, 3), ("head.0.2", "k", 1, 1), ("mlp.0", "k", 2, 0)):
        pattern = f"pattern.{layer}"
        seen = assay.capture(model, CORRUPTED, [pattern, "logits"], grad=True)
        metric = seen["logits"][0, -1, ANSWER] - seen["logits"][0, -1, FOIL]
        (slope,) = torch.autograd.grad(metric, seen[pattern])
        site, norm = f"{name}.{layer}", model.parts.blocks[layer].first_norm
        assert norm is not None
        before = assay.capture(model, CORRUPTED, f"resid_pre.{layer}")[f"resid_pre.{layer}"]
        with torch.no_grad():
            value = getattr(model.parts.blocks[layer], name)(norm(before + slow.written(sender)))
        heads = value.unflatten(-1, (4 if name == "q" else 2, -1))[:, :, [kv]]
        turned = assay.intervene(model, CORRUPTED, {site: assay.at(heads, heads=[kv])}, capture=[pattern])
        wanted = float(((turned[pattern] - seen[pattern].detach()) * slope).sum())
        found = float(dataset["score"].sel(sender=sender, receiver=f"{site}.{kv}"))
        assert found == pytest.approx(wanted, abs=NATS)
        assert abs(wanted) > 20 * NATS
    plain = run(model, method="eap").dataset["score"]
    others = [name for name in plain["receiver"].values if name[0] in "vml"]
    np.testing.assert_allclose(
        plain.sel(receiver=others), dataset["score"].sel(receiver=others), rtol=0, atol=NATS
    )


@pytest.mark.parametrize(
    "edge",
    ["embed>v.0.1", "head.0.2>v.1.0", "head.1.1>mlp.1", "mlp.0>mlp.2", "mlp.0>logits", "head.1.3>logits"],
)
def test_layers_are_dropped_one_at_a_time(model: Model, edge: str) -> None:
    """Where no softmax mends: the mean over those passes in which the receiver still reaches the metric."""
    sender, receiver = edge.split(">")
    slow = twin(model)
    drops = [[f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp")] for layer in range(3)]
    wanted = slow.grad_drop(receiver, slow.written(sender), lambda x: x[ANSWER] - x[FOIL], drops)
    score = run(model, method="eap_star").dataset["score"].sel(sender=sender, receiver=receiver)
    assert float(score) == pytest.approx(wanted, abs=NATS)
    assert wanted > 100 * NATS


def test_saturated_attention_hides_edges_into_keys_from_slopes_and_not_from_the_fix() -> None:
    """False negatives of EAP, against exact path patching: the edge that makes the circuit is missed, then found."""
    pairs, copied = copier(sharpness=16.0)
    given = {"answer": pairs.answers, "foil": pairs.foils}
    exact = assay.path_patch(
        copied, pairs.clean, pairs.corrupted, senders=("heads",), receivers=("k.1.0",), baseline=False, **given
    ).dataset["effect"].sel(sender="head.0.0", receiver="k.1.0")  # fmt: skip
    assert float(exact) > 19
    scored = {
        method: assay.attribution_patch(
            copied, pairs.clean, pairs.corrupted, method=method, exact=75, baseline=False, **given
        )
        for method in ("eap", "eap_qk_fix", "eap_star")
    }
    edge = {method: float(one.dataset["score"].sel(exact.coords).item()) for method, one in scored.items()}
    assert edge["eap"] < 0.1
    assert edge["eap_qk_fix"] == pytest.approx(float(exact), abs=0.05)
    strong = {
        method: set(one.dataset["edge"].values[np.abs(one.dataset["edge_score"].values) > 1])
        for method, one in scored.items()
    }
    truth = scored["eap"].dataset
    true = set(truth["edge"].values[np.abs(truth["edge_effect"].values) > 1])
    assert true == set(zoo.EDGES)
    missed = {method: len(true - found) for method, found in strong.items()}
    assert missed["eap"] > missed["eap_qk_fix"]
    assert strong["eap_qk_fix"] <= true


def test_intervals_and_baseline(model: Model) -> None:
    pairs, copied = copier(sharpness=4.0)
    given = {"method": "eap", "exact": 0, "seed": 4}
    several = assay.attribution_patch(
        copied, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, **given
    ).dataset
    single = [
        assay.attribution_patch(copied, c, k, answer=a, foil=f, **given).dataset["score"].values
        for c, k, a, f in zip(pairs.clean, pairs.corrupted, pairs.answers, pairs.foils, strict=True)
    ]
    np.testing.assert_allclose(several["score"], np.mean(single, 0), rtol=0, atol=NATS)
    stderr = np.std(single, 0, ddof=1) / 2
    np.testing.assert_allclose(several["score_stderr"], stderr, rtol=0, atol=NATS)
    gauge = Gauge(("logit_difference",), pairs.answers[0], pairs.foils[0], torch.zeros(12))
    ids = torch.tensor(pairs.corrupted[:1]), torch.tensor(pairs.clean[:1])
    tokens = indifferent_copy(copied, *ids, gauge, 4 * 1_000_003).tolist()
    null = assay.attribution_patch(
        copied, tokens, pairs.corrupted[:1], answer=pairs.answers[0], foil=pairs.foils[0], **given
    ).dataset
    np.testing.assert_allclose(several["baseline_score"], null["score"], rtol=0, atol=NATS)
    assert int(several["baseline_replaced"]) == (torch.tensor(tokens) != ids[0]).sum()


def test_names_of_edges(model: Model) -> None:
    graph = graph_of(model)
    found = find_edges(graph, EDGES)
    assert [f"{graph.senders[s]}>{graph.receivers[r].name}" for s, r in found] == list(EDGES)
    for name, message in (
        ("head.0.0", "write it as"),
        ("head.0.9>logits", "write it as"),
        ("mlp.1>q.1.0", "reads before"),
    ):
        with pytest.raises(BadInput, match=message):
            find_edges(graph, [name])


def test_settings_make_the_same_measurement_again(model: Model) -> None:
    measurement = run(model, method="eap_ig", steps=3, quadrature="endpoint", exact=8).measurement
    assert isinstance(measurement, EdgeAttribution)
    assert from_settings("edge_attribution", settings(measurement)) == measurement


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "one slope or more"),
        ({"method": "eap_ig", "steps": 2}, "the adaptive rule takes 3 slopes"),
        ({"exact": 2}, "at least 4"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
        ({"foil": None, "metric": "logit_difference"}, "needs foil"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(model: Model, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(model, **changed)


def test_a_family_whose_stream_is_no_sum_is_refused() -> None:
    with pytest.raises(BadInput, match="does not add up"):
        run(wrap(FAMILIES["opt-post-norm"].build()))


@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "glm4", "granite"])
def test_edges_of_families_that_norm_or_scale_what_they_write(kind: str) -> None:
    """The sender's change is read off the stream around it; the receiver's projection is applied by hand, in a hook."""
    other = wrap(FAMILIES[kind].build())
    scaled = kind == "granite"
    sender = "head.0.2" if scaled else "attention.0"
    dataset = run(other, exact=4000, method="eap").dataset
    assert (sender in dataset["sender"]) and (("head.0.2" in dataset["sender"]) == scaled)
    for name in (sender, "mlp.0"):
        for receiver in ("q.1.3", "k.2.1", "v.1.0", "mlp.2", "logits"):
            found = float(dataset["edge_effect"].sel(edge=f"{name}>{receiver}"))
            wanted = patched_by_hand(other, name, receiver)
            assert found == pytest.approx(wanted, abs=10 * NATS)
            assert abs(wanted) > 0 or receiver == "logits"
    assert float(np.abs(dataset["edge_effect"]).max()) > 1e3 * NATS


def patched_by_hand(other: Model, sender: str, receiver: str) -> float:
    """The metric's change when one receiver reads the corrupted stream with the change of one sender added."""
    kind, layer, *head = sender.split(".")
    around = ("resid_pre", "resid_mid") if kind != "mlp" else ("resid_mid", "resid_post")
    sites = [f"{name}.{layer}" for name in around]
    clean, corrupted = (assay.capture(other, ids, sites) for ids in (CLEAN, CORRUPTED))
    if head:  # what the head alone adds: its part of z from the clean run
        z = assay.capture(other, CLEAN, [f"z.{layer}"])[f"z.{layer}"][:, :, [int(head[0])]]
        edits = {f"z.{layer}": assay.at(z, heads=[int(head[0])])}
        clean = assay.intervene(other, CORRUPTED, edits, capture=sites)
    change = (clean[sites[1]] - clean[sites[0]]) - (corrupted[sites[1]] - corrupted[sites[0]])
    block = other.parts.blocks[int(receiver.split(".")[1])] if "." in receiver else None
    if block is None:
        last = f"resid_post.{other.n_layers - 1}"
        edits = {last: assay.capture(other, CORRUPTED, last)[last] + change}
    else:
        name, at, *index = receiver.split(".")
        stream = f"{'resid_mid' if name == 'mlp' else 'resid_pre'}.{at}"
        read = assay.capture(other, CORRUPTED, stream)[stream] + change
        norm = block.second_norm if name == "mlp" else block.first_norm
        with torch.no_grad():
            read = read if norm is None else norm(read)
            if name != "mlp":
                project = getattr(block, name)
                part = project(read).unflatten(-1, (-1, project.out_features // heads_of(block, name)))
                read = part[:, :, [int(index[0])]]
        edits = (
            {f"mlp_in.{at}": read}
            if name == "mlp"
            else {f"{name}.{at}": assay.at(read, heads=[int(index[0])])}
        )
    logits = assay.intervene(other, CORRUPTED, edits)["logits"][0, -1]
    base = assay.capture(other, CORRUPTED, "logits")["logits"][0, -1]
    return float((logits - base)[ANSWER] - (logits - base)[FOIL])


def heads_of(block: Any, name: str) -> int:
    return block.n_heads if name == "q" else block.n_kv_heads


def test_the_chart_shows_the_first_edges(model: Model) -> None:
    result = run(model, exact=8)
    tables = result.chart(top=5).to_dict()["datasets"]
    assert len(tables["edge_attribution"]) == 5
    with pytest.raises(BadInput, match="top=0"):
        result.chart(top=0)
    for method, steps, said in (
        ("eap", 48, "one slope"), ("eap_star", 48, "one slope"), ("eap_ig", 3, "up to 3 slopes, adaptive"),
    ):  # fmt: skip
        picture = run(model, method=method, steps=steps).chart().to_dict()
        assert picture["title"]["subtitle"] == said
