"""AtP against central differences; its QK fix against patterns of patched runs; GradDrop one layer at a time."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import assay
from assay.activations.circuits.node_scores import Contrast, attribute, contrast
from assay.activations.prompt_pairs import Gauge
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.zoo import copier as zoo
from families import FAMILIES
from reference.attribution_slow import SlowAttribution

CLEAN, CORRUPTED = (5, 17, 23, 42, 8, 61, 9), (5, 17, 50, 42, 12, 61, 9)
ANSWER, FOIL = 7, 12
NAMES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp_act")
SLOPES = {"gpt2": 1e-6, "llama": 4e-3}
"""The step of the central differences squared, or float32 over it, times what third derivatives are here."""
ROUNDING = 2e-6  # LLaMA's norms round to float32


@cache
def model(kind: str) -> Model:
    return wrap(FAMILIES[kind].build().double())


def found(
    kind: str, names: tuple[str, ...], direction: Any = "denoise", metric: Any = "logit_difference"
) -> Contrast:
    return contrast(
        model(kind), (CLEAN, CORRUPTED), names, direction=direction,
        gauge=lambda final: Gauge((metric,), ANSWER, FOIL, final),
    )  # fmt: skip


def twin(kind: Any, one: Contrast) -> SlowAttribution:
    return SlowAttribution(kind, one.model.module, one.base, one.source, one.number)


@pytest.mark.parametrize(
    ("direction", "metric"),
    [("denoise", "logit_difference"), ("noise", "log_probability"), ("denoise", "kl_from_clean")],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_attributions_are_slopes_towards_the_source(kind: str, direction: str, metric: str) -> None:
    one = found(kind, NAMES, direction, metric)
    nodes, slow = attribute(one, "atp").nodes, twin(kind, one)
    largest = 0.0
    for layer, position in ((0, 2), (1, 4), (1, 6), (2, 6)):
        for name, entries, index in (
            *((name, slice(None), ()) for name in NAMES[:4]),
            ("z", slice(24, 32), (3,)),
            ("mlp_act", slice(11, 12), (11,)),
        ):
            wanted = slow.directional(f"{name}.{layer}", position, entries)
            assert float(nodes[name][(layer, position, *index)]) == pytest.approx(wanted, abs=SLOPES[kind])
            largest = max(largest, abs(wanted))
    assert largest > 100 * SLOPES[kind]  # something is compared


def test_queries_keys_and_values_before_positions_are_encoded() -> None:
    one = found("llama", ("q", "k", "v"))
    nodes, slow = attribute(one, "atp").nodes, twin("llama", one)
    assert nodes["q"].shape == (3, 7, 4)
    assert nodes["k"].shape == (3, 7, 2)
    for name in ("q", "k", "v"):
        for layer, position in ((0, 2), (1, 4), (2, 6)):
            wanted = slow.directional(f"{name}.{layer}", position, slice(8, 16))
            assert float(nodes[name][layer, position, 1]) == pytest.approx(wanted, abs=SLOPES["llama"])


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("q", ((0, 2, 0), (1, 4, 1), (2, 6, 0), (2, 6, 1))),  # in the last layer only the last query is read
        ("k", ((0, 2, 0), (1, 4, 1), (2, 4, 0), (2, 6, 1))),
    ],
)
def test_the_qk_fix_puts_the_softmax_of_a_patched_run_in(
    name: str, places: tuple[tuple[int, int, int], ...]
) -> None:
    """The pattern of a full forward with one query or key replaced, times the slope by the pattern."""
    one = found("llama", ("q", "k"))
    nodes = attribute(one, "qk_fix").nodes
    for layer, position, head in places:
        pattern = f"pattern.{layer}"
        seen = assay.capture(one.model, one.base, [pattern, "logits"], grad=True)
        (slope,) = torch.autograd.grad(one.number(seen["logits"][:, -1]).sum(), seen[pattern])
        value = one.activations[f"{name}.{layer}"][0, position, head]
        edits = {f"{name}.{layer}": assay.at(value, positions=position, heads=head)}
        changed = assay.intervene(one.model, one.base, edits, capture=[pattern])[pattern]
        wanted = float(((changed - seen[pattern].detach()) * slope).sum())
        assert float(nodes[name][layer, position, head]) == pytest.approx(wanted, abs=ROUNDING)
        assert abs(wanted) > 1e3 * ROUNDING


def test_the_qk_fix_leaves_other_nodes_as_they_are() -> None:
    one = found("gpt2", ("q", "z", "mlp_out"))
    plain, fixed = (attribute(one, method).nodes for method in ("atp", "qk_fix"))
    torch.testing.assert_close(plain["z"], fixed["z"], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(plain["mlp_out"], fixed["mlp_out"], rtol=0, atol=ROUNDING)
    assert not torch.allclose(plain["q"], fixed["q"], atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "q",
        "v",
        "z",
        "mlp_act",
        "mlp_in",
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
    ],
)
def test_layers_are_dropped_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over those passes in which the node still reaches the metric, each run by itself."""
    monkeypatch.setattr("assay.activations.circuits.node_scores.TOKENS_AT_ONCE", 14)  # two layers, then one
    one = found("llama", (name,))
    nodes, slow = attribute(one, "grad_drop").nodes[name], twin("llama", one)
    head = (slice(8, 16), (1,))
    special = {"q": head, "v": head, "z": head, "mlp_act": (slice(5, 6), (5,))}
    entries, index = special.get(name, (slice(None), ()))
    drops = [[f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp")] for layer in range(3)]
    for layer, position in ((0, 4), (1, 2), (2, 6)):
        wanted = slow.grad_drop(f"{name}.{layer}", position, entries, drops)
        assert float(nodes[(layer, position, *index)]) == pytest.approx(wanted, abs=ROUNDING)
        assert wanted > 10 * ROUNDING or (name, layer, position) == ("v", 1, 2)


def test_both_mendings_together_drop_slopes_of_patterns() -> None:
    one = found("llama", ("q", "v"))
    both, drop = (attribute(one, method).nodes for method in ("atp_star", "grad_drop"))
    torch.testing.assert_close(both["v"], drop["v"], rtol=0, atol=ROUNDING)
    assert not torch.allclose(both["q"], drop["q"], atol=1e-4)
    assert bool((both["q"] >= 0).all())


def copied(sharpness: float) -> tuple[Contrast, Any]:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=sharpness)
    pairs = zoo.swapped(module.config, 1, generator=generator)
    one = contrast(
        wrap(module), (tuple(pairs.clean[0]), tuple(pairs.corrupted[0])), ("q", "k", "v", "z", "mlp_out"),
        direction="denoise", gauge=lambda final: Gauge(("logit_difference",), pairs.answers[0], pairs.foils[0], final),
    )  # fmt: skip
    exact = assay.patch(
        one.model, pairs.clean, pairs.corrupted, answer=pairs.answers, foil=pairs.foils, site="k", by_head=True,
        metrics=("logit_difference",), baseline_pairs=0,
    )  # fmt: skip
    return one, torch.from_numpy(exact.dataset["effect"].values[0])


@pytest.mark.parametrize("method", ["atp", "qk_fix", "grad_drop", "atp_star"])
def test_the_copier_s_parts_are_found_and_no_others(method: Any) -> None:
    nodes = attribute(copied(sharpness=3.0)[0], method).nodes
    largest = max(float(effect.abs().max()) for effect in nodes.values())
    true = {
        ("z", 0, 2, 0),
        ("z", 0, 4, 0),
        ("z", 1, 7, 0),
        ("k", 1, 2, 0),
        ("k", 1, 4, 0),
        ("v", 0, 1, 0),
        ("v", 0, 3, 0),
    }
    strong = {
        (name, *place) for name, e in nodes.items() for place in (e.abs() > 0.02 * largest).nonzero().tolist()
    }
    assert true <= strong
    assert {place[-1] for place in strong} == {
        0
    }  # what else is not flat at so soft an attention, is of the same heads
    assert all(bool((nodes[name][..., 1:] == 0).all()) for name in ("q", "k", "v", "z"))
    assert bool((nodes["mlp_out"] == 0).all())


def test_saturated_attention_hides_keys_from_slopes_and_not_from_the_qk_fix() -> None:
    one, exact = copied(sharpness=16.0)
    slopes_only, fixed = (attribute(one, method).nodes["k"] for method in ("atp", "qk_fix"))
    assert float(exact[1, 2, 0]) > 9
    assert float(slopes_only[1, 2, 0]) < 0.01
    torch.testing.assert_close(fixed, exact, rtol=0, atol=1e-4)  # what follows is linear: float32 rounding


def test_one_layer_has_nothing_to_drop() -> None:
    config = LlamaConfig(
        vocab_size=101, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    one = contrast(
        wrap(LlamaForCausalLM(config)), (CLEAN, CORRUPTED), ("z",), direction="denoise",
        gauge=lambda final: Gauge(("logit_difference",), ANSWER, FOIL, final),
    )  # fmt: skip
    with pytest.raises(BadInput, match="needs two or more"):
        attribute(one, "grad_drop")


def test_slopes_are_found_where_gradients_are_switched_off() -> None:
    one = found("llama", ("z",))
    with torch.no_grad():
        nodes = attribute(one, "atp").nodes
    torch.testing.assert_close(nodes["z"], attribute(one, "atp").nodes["z"])
