"""Ablation of edges and directions, by the best constants and by frozen components, against what they are made of."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import assay
from assay.activations.components.links import direction
from assay.errors import BadInput
from assay.models.edits import at
from assay.models.intervention import capture, intervene
from assay.models.model import Model, wrap
from families import FAMILIES
from reference.metrics_slow import slow_metrics
from reference.rewiring_slow import slow_rewired

NATS = 1e-4
INPUTS = torch.randint(3, 101, (4, 7), generator=torch.Generator().manual_seed(1)).tolist()
IDS = torch.tensor(INPUTS)
SECOND_NORM = {"gpt2": "ln_2", "llama": "post_attention_layernorm", "gemma2": "pre_feedforward_layernorm"}
EDGES = ("attention.0>mlp.0", "mlp.0>attention.2", "embed>mlp.1", "attention.1>output", "embed>output")


def ablate(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    return assay.ablate(model, inputs, **{"baseline_inputs": 0, "resamples": 20, **changed})


def effects(model: Model, edited: Tensor) -> np.ndarray:
    """The metrics of edited logits (input, pos, vocabulary), (input, metric)."""
    clean = model.module(input_ids=IDS).logits.detach()
    return torch.stack([slow_metrics(*each) for each in zip(clean, edited, IDS, strict=True)]).numpy()


def found(result: assay.Result, component: str) -> np.ndarray:
    return result.dataset["effect_by_input"].sel(component=component).values


def rewired(kind: str, model: Model, source: int, reader: int, instead: Tensor) -> np.ndarray:
    """The metrics with one edge cut, by streams put together by hand."""
    count = 1 + (2 if kind in SECOND_NORM else 1) * model.n_layers
    reads = torch.ones(count, count, dtype=torch.bool)
    reads[reader, source] = False
    values = [torch.zeros(1)] * count
    values[source] = instead
    edited = slow_rewired(
        model.module,
        FAMILIES[kind].blocks,
        SECOND_NORM.get(kind),
        IDS,
        reads,
        values,
        original=False,
        keep_first=False,
    )
    return effects(model, edited)


@pytest.mark.parametrize(("kind", "value"), [("gpt2", "mean"), ("llama", "zero"), ("gemma2", "zero")])
def test_an_edge_is_one_reader_s_view_of_one_component(kind: str, value: Any) -> None:
    model = wrap(FAMILIES[kind].build())
    result = ablate(model, components=EDGES, value=value)
    readers = {"mlp.0": 1, "attention.2": 4, "mlp.1": 3, "output": 2 * model.n_layers}
    for edge in EDGES:
        source, reader = edge.split(">")
        name, _, layer = source.partition(".")
        site = (
            "resid_pre.0"
            if name == "embed"
            else {"attention": "attn_out", "mlp": "mlp_out"}[name] + f".{layer}"
        )
        number = 0 if name == "embed" else 2 * int(layer) + (1 if name == "attention" else 2)
        instead = capture(model, IDS, site)[site].detach().mean((0, 1)) * (value == "mean")
        expected = rewired(kind, model, number, readers[reader], instead)
        np.testing.assert_allclose(found(result, edge), expected, rtol=0, atol=2 * NATS)
    assert (result.dataset["effect"].sel(metric="kl_from_clean") > 20 * NATS).all()
    assert float(result.dataset["own_value_effect"]) <= NATS


def test_heads_and_neurons_have_edges_too() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    result = ablate(
        model, components=("head.1.3>mlp.2", "neuron.0.17>attention.1"), value="zero", baseline_inputs=1
    )
    for edge, site, part, written, source, reader in (
        ("head.1.3>mlp.2", "z.1", {"heads": 3}, "attn_out.1", 3, 5),
        ("neuron.0.17>attention.1", "mlp_act.0", {"neurons": 17}, "mlp_out.0", 2, 2),
    ):
        without = intervene(model, IDS, {site: at(0.0, **part)}, capture=[written])[written]
        expected = rewired("gpt2", model, source, reader, without)
        np.testing.assert_allclose(found(result, edge), expected, rtol=0, atol=2 * NATS)
    assert (result.dataset["baseline_effect"].sel(metric="kl_from_clean") > 0).all()


def test_edges_of_blocks_with_factors_or_side_by_side() -> None:
    for kind in ("granite", "gpt_neox"):
        model = wrap(FAMILIES[kind].build())
        result = ablate(model, components=("mlp.0>attention.1",), value="zero")
        without = capture(model, IDS, ["resid_pre.1", "mlp_out.0"])
        stream = without["resid_pre.1"] - FAMILIES[kind].residual_scale * without["mlp_out.0"]
        norm = model.parts.blocks[1].first_norm
        assert norm is not None
        edited = intervene(model, IDS, {"attn_in.1": norm(stream).detach()})["logits"].detach()
        np.testing.assert_allclose(
            found(result, "mlp.0>attention.1"), effects(model, edited), rtol=0, atol=2 * NATS
        )


@pytest.mark.parametrize("value", ["zero", "mean", "position_mean", "resample"])
def test_a_direction_is_replaced_and_nothing_else(value: Any) -> None:
    model = wrap(FAMILIES["llama"].build())
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(2))
    result = ablate(model, components=(direction("resid_mid.1", vector), "mlp.0"), value=value, seed=3)
    name = str(result.dataset["component"].values[1])
    assert name.startswith("direction.resid_mid.1.")
    unit = vector / vector.norm()
    own = capture(model, IDS, "resid_mid.1")["resid_mid.1"] @ unit
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3)).tolist()
    partner = [order[(order.index(i) + 1) % 4] for i in range(4)]
    instead = {"zero": 0 * own, "mean": own.mean().expand_as(own), "position_mean": own.mean(0).expand_as(own),
               "resample": own[partner]}[value]  # fmt: skip
    edit = {"resid_mid.1": lambda whole: whole + (instead - own)[..., None] * unit}
    edited = intervene(model, IDS, edit)["logits"].detach()
    np.testing.assert_allclose(found(result, name), effects(model, edited), rtol=0, atol=2 * NATS)
    longer = ablate(model, components=(direction("resid_mid.1", 3 * vector),), value=value, seed=3)
    np.testing.assert_allclose(
        longer.dataset["effect"][:, 0], result.dataset["effect"][:, 1], rtol=0, atol=NATS
    )


def test_frozen_components_take_back_what_noise_on_the_embedding_does() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    result = ablate(
        model, components=("attention.1", "head.0.2"), value="freeze", noise=0.5, seed=4, baseline_inputs=2
    )
    embed = capture(model, IDS, "embed")["embed"]
    spread = 0.5 * embed.flatten(0, 1).double().std(0, unbiased=False).float()
    drawn = torch.stack(
        [
            torch.randn(
                embed.shape[1:],
                generator=torch.Generator().manual_seed(
                    int(np.random.default_rng([4, 2, i]).integers(2**63))
                ),
            )
            for i in range(4)
        ]
    )
    noise = {"embed": embed + spread * drawn}
    before = effects(model, intervene(model, IDS, noise)["logits"].detach())
    clean = capture(model, IDS, ["attn_out.1", "z.0"])
    for component, edit in (
        ("attention.1", {"attn_out.1": clean["attn_out.1"]}),
        ("head.0.2", {"z.0": at(clean["z.0"][:, :, [2]], heads=[2])}),
    ):
        after = effects(model, intervene(model, IDS, {**noise, **edit})["logits"].detach())
        difference = after - before * np.array([1, 1, 0, 1])  # agreement stays a share
        np.testing.assert_allclose(found(result, component), difference, rtol=0, atol=3 * NATS)
    assert float(result.dataset["disturbed_kl"]) == pytest.approx(before[:, 1].mean(), abs=NATS)
    assert float(result.dataset["disturbed_loss_difference"]) == pytest.approx(before[:, 0].mean(), abs=NATS)
    assert float(result.dataset["own_value_effect"]) <= NATS


def test_the_best_constant_is_no_worse_than_the_mean_and_the_best_of_a_grid() -> None:
    model = wrap(FAMILIES["llama"].build())
    names, given = ("mlp.1", "head.2.1", "neuron.1.5"), {"descent_steps": 12, "descent_rate": 0.3}
    results = {value: ablate(model, components=names, value=value, **given) for value in ("mean", "optimal")}
    kl = {value: result.dataset["effect"].sel(metric="kl_from_clean") for value, result in results.items()}
    assert (kl["optimal"] <= kl["mean"] + NATS).all()
    assert float(kl["optimal"].sel(component="mlp.1")) < 0.95 * float(kl["mean"].sel(component="mlp.1"))
    some = {
        value: ablate(model, components=names, value=value, read=1, **given).dataset["effect"]
        for value in ("mean", "optimal")
    }  # the constant is learned where it is read
    change = (some["optimal"] - some["mean"]).sel(metric="kl_from_clean")
    assert (change <= NATS).all() and float(change.sel(component="mlp.1")) < -0.05 * float(
        some["mean"].sel(metric="kl_from_clean", component="mlp.1")
    )
    own = capture(model, IDS, "mlp_act.1")["mlp_act.1"][..., 5]
    grid = [
        effects(model, intervene(model, IDS, {"mlp_act.1": at(float(x), neurons=5)})["logits"].detach())[
            :, 1
        ].mean()
        for x in np.linspace(float(own.min()), float(own.max()), 15)
    ]
    assert float(kl["optimal"].sel(component="neuron.1.5")) <= min(grid) * 1.02 + NATS
    fewer = ablate(model, components=("mlp.1",), value="optimal", descent_steps=1).dataset
    again = ablate(model, components=("mlp.1",), value="optimal", descent_steps=1).dataset
    assert (fewer["effect"].values == again["effect"].values).all()
    assert float(fewer["effect"].sel(metric="kl_from_clean")[0]) > float(kl["optimal"].sel(component="mlp.1"))


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("llama", {"components": ("mlp.1>attention.1",)}, "does not read what mlp.1 writes"),
        ("llama", {"components": ("mlp.1>mlp.1",)}, "does not read what mlp.1 writes"),
        ("gpt_neox", {"components": ("attention.1>mlp.1",)}, "does not read what attention.1 writes"),
        ("llama", {"components": ("mlp.1>logits",)}, "an edge ends in"),
        ("llama", {"components": ("heads>mlp.2",)}, "an edge begins at"),
        ("llama", {"components": ("mlp.1>mlp.3",)}, "the model has layers 0 to 2"),
        ("gemma2", {"components": ("head.0.1>mlp.2",)}, "norms what a block writes"),
        ("llama", {"components": ("direction:z.1:1,2",)}, "expected one of"),
        ("llama", {"components": ("direction:mlp_out.1:1,2",)}, "2 numbers; expected 32"),
        ("llama", {"components": ("direction:mlp_out.1:1,x",)}, "write numbers"),
        (
            "llama",
            {"components": (direction("mlp_out.1", [1.0] * 32),), "value": "noise"},
            "no spread along a direction",
        ),
        ("llama", {"components": ("embed>mlp.1",), "value": "optimal"}, "not learned for edges"),
        ("llama", {"value": "optimal", "descent_steps": 0}, "descent_steps=0"),
        ("llama", {"value": "optimal", "descent_rate": 0.0}, "descent_rate=0.0"),
    ],
)
def test_bad_input_is_refused(kind: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ablate(wrap(FAMILIES[kind].build()), **{"components": ("mlp.1",), **changed})


def test_some_positions_can_be_read() -> None:
    model = wrap(FAMILIES["llama"].build())
    some = ablate(model, components=("mlp.1",), value="zero", read=3).dataset
    clean = model.module(input_ids=IDS).logits.detach()
    edited = intervene(model, IDS, {"mlp_out.1": 0.0})["logits"].detach()
    expected = [slow_metrics(*each, read=[0, 2, 5]).numpy() for each in zip(clean, edited, IDS, strict=True)]
    np.testing.assert_allclose(some["effect_by_input"][..., 0], expected, rtol=0, atol=NATS)
