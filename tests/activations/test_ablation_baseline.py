"""The random directions an ablation is compared with: as long as its change of the stream, and the check on them."""

from typing import Any

import pytest
import torch
from torch import Tensor

import assay
from assay.activations.components.links import direction
from assay.activations.components.names import find_components
from assay.activations.components.replacements import Replacements
from assay.models.intervention import intervene
from assay.models.model import Model, wrap
from assay.models.partial import SiteEdit, Variant, record
from assay.report.charts.ablation import findings
from assay.zoo import copier as zoo
from assay.zoo import induction
from families import FAMILIES

INPUTS = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(1))
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(2))
PLACES = {
    "head.1.3": "attn_out.1",
    "neuron.2.17": "mlp_out.2",
    "mlp.0": "mlp_out.0",
    "attention.1": "attn_out.1",
    "layer.2": "resid_post.2",
    "head.0.1>output": "resid_post.2",
    "neuron.0.17>output": "resid_post.2",
    "layer.0>output": "resid_post.2",
    direction("resid_mid.1", VECTOR): "resid_mid.1",
}
"""Where each component's change meets the stream, or the stream that one reader sees."""

INDUCTION = ("head.0.1", "head.1.0", "head.1.1")
"""The heads of the induction transformer that its training leaves a price for."""

NORMED = ("head.1.3", "neuron.2.17")
"""Those that differ where a block norms what it writes."""


def value_at(model: Model, variant: Variant, site: str) -> Tensor:
    """The site with the variant's edits, (row, pos, d_model)."""
    edits: dict[str, Any] = {edit.site: whole(edit) for edit in variant}
    return intervene(model, INPUTS, edits, capture=[site])[site].detach()


def whole(edit: SiteEdit) -> Any:
    if edit.head is None:
        return edit.value

    def put(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[:, :, edit.head] = edit.value
        return tensor

    return put


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("llama", "gpt2") for name in PLACES] + [("gemma2", name) for name in NORMED],
)
def test_a_random_direction_moves_the_stream_as_far(kind: str, name: str) -> None:
    model, site = wrap(FAMILIES[kind].build()), PLACES[name]
    (component,) = find_components(model, [name])
    recording = record(model, INPUTS, sites=[*dict.fromkeys([*component.recorded, site])])
    standing_in = Replacements(recording, [0, 1], "zero", None, {}, 1.0, 0)
    own, instead, random = (
        value_at(model, variant, site)
        for variant in (
            component.variant(recording, {s: component.part(recording.sites[s]) for s in component.sites}),
            standing_in.variant(component),
            standing_in.variant(component, random=True),
        )
    )
    lengths = [(value - own).norm(dim=-1) for value in (instead, random)]
    assert (lengths[0] > 1e-4).all()
    torch.testing.assert_close(lengths[0], lengths[1], rtol=1e-3, atol=1e-6)
    along = torch.cosine_similarity(instead - own, random - own, dim=-1).abs()
    assert (along < 0.9).all()  # 18 draws of 32 dimensions: one above 0.9 has a chance of 1e-11


@pytest.mark.parametrize("value", ["zero", "mean", "resample", "freeze"])
def test_parts_of_a_circuit_do_more_than_random_directions_and_idle_ones_do_not(value: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    module = zoo.copier(generator=generator, sharpness=5.0)
    prompts = zoo.swapped(module.config, 8, generator=generator).clean
    verdicts = {}
    for components in (zoo.CIRCUIT, ("heads", "mlp")):  # six of the eight are idle
        given: dict[str, Any] = {"components": components, "value": value, "resamples": 20, "noise": 0.5}
        result = assay.ablate(wrap(module), prompts, baseline_inputs=6, **given)
        (check,) = [check for check in result.checks if check.code == "B102"]
        verdicts[components] = (check.verdict, check.figure)
    assert verdicts[zoo.CIRCUIT] == ("pass", 0.0)
    assert verdicts["heads", "mlp"] == ("warn", 0.75)
    assert ("takes as much" in check.message) == (value == "freeze")


@pytest.mark.parametrize("source", ["copier", "induction"])
def test_idle_parts_are_not_found_and_the_circuit_is_counted(source: str) -> None:
    model, generator = assay.load(f"zoo:{source}"), torch.Generator().manual_seed(0)
    if source == "copier":
        prompts, circuit, count = zoo.swapped(model.module.config, 32, generator=generator), zoo.CIRCUIT, 8
    else:
        prompts, circuit, count = induction.swapped(32, generator=generator), INDUCTION, 10
    for value in ("zero", "resample", "freeze"):
        result = assay.ablate(model, prompts.clean, value=value, baseline_inputs=0, resamples=20)
        idle = result.dataset.drop_sel(component=list(circuit)).sel(
            metric=["loss_difference", "logit_difference"]
        )
        assert idle.sizes["component"] == count - len(circuit)
        assert (idle["effect"] == 0).all() and (idle["q_value"] == 1).all()
        parts = result.dataset["q_value"].sel(component=list(circuit), metric="loss_difference")
        (finding,) = findings(result.dataset)
        assert finding.text.startswith(f"{int((parts <= 0.05).sum())} of {count} components")
