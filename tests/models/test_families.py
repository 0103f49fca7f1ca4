"""Every site of every family: bit-identical logits, the block's arithmetic, edits, gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay.errors import BadInput
from assay.models.edits import at
from assay.models.inputs import batch
from assay.models.intervention import capture, intervene
from assay.models.model import Model, wrap
from families import FAMILIES, VOCABULARY, Family
from reference.naive import naive_capture, naive_patch, patched, record

SUM = 2e-5  # float32: contributions of size 10 and matmuls of 56 terms, done again in another order
SELF = 2e-5  # float32: heads multiplied by their own pattern once more, seen in the logits
PADDED = 1e-4  # float32: what a prompt may owe to its neighbours in the batch
FRACTION = 1e-6  # float32: sums of at most 14 probabilities
STEP = 1e-2  # of a logit: large beside its rounding (4e-6), too small to send a token to another expert
SCALES = ("ln1_scale", "ln2_scale", "final_norm_scale")
TRANSFORMER_LENS = {
    "blocks.1.hook_resid_pre": "resid_pre.1",
    "blocks.2.hook_resid_post": "resid_post.2",
    "blocks.0.hook_attn_out": "attn_out.0",
    "blocks.1.hook_mlp_out": "mlp_out.1",
    "blocks.1.attn.hook_z": "z.1",
    "blocks.1.attn.hook_pattern": "pattern.1",
}


@dataclass(frozen=True, eq=False)
class Case:
    """One family, built: notes, bare module, model, two prompts, their logits and all activations."""

    family: Family
    module: PreTrainedModel
    model: Model
    ids: Tensor
    logits: Tensor
    activations: dict[str, Tensor]

    @property
    def layers(self) -> range:
        return range(len(self.module.get_submodule(self.family.blocks)))

    def block(self, layer: int) -> nn.Module:
        return self.module.get_submodule(self.family.blocks)[layer]

    def path(self, layer: int, inside: str) -> str:
        return f"{self.family.blocks}.{layer}.{inside}"

    def read(self, *sites: str) -> tuple[Tensor, ...]:
        return tuple(self.activations[site] for site in sites)

    def has(self, site: str) -> bool:
        return site in self.activations


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    family = FAMILIES[request.param]
    module = family.build()
    ids = torch.randint(3, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = module(ids).logits
    model = wrap(module)
    return Case(family, module, model, ids, logits, capture(model, ids, model.sites()))


def close(left: Tensor, right: Tensor, tolerance: float = SUM) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def at_every_site(case: Case, edit: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Logits after editing one site at a time: the whole-model sites and those of layer 1."""
    sites = [site for site in case.activations if "." not in site or site.endswith(".1")]
    writable = [site for site in sites if site.partition(".")[0] not in SCALES]
    return {
        site: intervene(case.model, case.ids, {site: edit(case.activations[site])})["logits"]
        for site in writable
    }


def test_without_an_edit_logits_are_the_bare_modules(case: Case) -> None:
    assert torch.equal(intervene(case.model, case.ids, {})["logits"], case.logits)
    assert torch.equal(capture(case.model, case.ids, ["logits"])["logits"], case.logits)


def test_capturing_every_site_changes_no_bit(case: Case) -> None:
    assert list(case.activations) == case.model.sites()
    assert torch.equal(case.activations["logits"], case.logits)
    assert all(value.isfinite().all() for value in case.activations.values())


def test_aliases_come_back_under_the_names_asked(case: Case) -> None:
    captured = capture(case.model, case.ids, [*TRANSFORMER_LENS, "z.1"])
    assert list(captured) == [*TRANSFORMER_LENS, "z.1"]
    for alias, site in TRANSFORMER_LENS.items():
        assert torch.equal(captured[alias], case.activations[site])


def test_the_sites_are_those_the_family_has(case: Case) -> None:
    family = case.family
    present = {site.removesuffix(".1") for site in case.model.sites() if site.endswith(".1")}
    expected = {"resid_pre", "resid_post", "attn_in", "attn_out", "z", "pattern", "mlp_in", "mlp_out"}
    expected |= set() if family.parallel else {"resid_mid"}
    expected |= {"mlp_pre", "mlp_act"} if family.has_neurons else set()
    expected |= set() if family.kind.startswith("deepseek") else {"q", "k", "v"}
    scales = ("ln1_scale", "ln2_scale")
    expected |= {scale for scale, norm in zip(scales, family.pre_norms, strict=True) if norm is not None}
    assert present == expected


def test_an_absent_site_is_refused_with_its_reason(case: Case) -> None:
    for site in ("resid_mid.1", "mlp_act.1", "ln2_scale.1", "q.1", "final_norm"):
        if not case.has(site):
            with pytest.raises(BadInput, match=site):
                capture(case.model, case.ids, [site])


def test_shapes_put_the_batch_first(case: Case) -> None:
    rows, positions = case.ids.shape
    width, head = case.module.config.hidden_size, case.family.d_head
    shapes = {site: tuple(value.shape) for site, value in case.activations.items()}
    for name in ("resid_pre.1", "resid_post.1", "attn_in.1", "attn_out.1", "mlp_in.1", "mlp_out.1"):
        assert shapes[name] == (rows, positions, width), name
    assert shapes["z.1"] == (rows, positions, 4, head)
    assert shapes["pattern.1"] == (rows, 4, positions, positions)
    if "v.1" in shapes:
        assert shapes["v.1"] in {(rows, positions, kv, head) for kv in (1, 2, 4)}
    if "mlp_act.1" in shapes:
        assert shapes["mlp_act.1"] == shapes["mlp_pre.1"]
        assert shapes["mlp_act.1"][:2] == (rows, positions)


def test_sites_are_the_modules_inputs_and_outputs(case: Case) -> None:
    family, layer = case.family, 1
    written = (
        family.post_norms[0] or f"{family.attention}.{family.o_proj}",
        family.post_norms[1] or family.down,
    )
    ports = {
        "resid_pre.1": (f"{family.blocks}.1", "in"),
        "resid_post.1": (f"{family.blocks}.1", "out"),
        "attn_in.1": (case.path(layer, family.attention), "in"),
        "z.1": (case.path(layer, f"{family.attention}.{family.o_proj}"), "in"),
        "attn_out.1": (case.path(layer, written[0]), "out"),
        "mlp_out.1": (case.path(layer, written[1] or family.mlp or ""), "out"),
    }
    if family.down:
        ports["mlp_act.1"] = (case.path(layer, family.down), "in")
    if family.mlp:
        ports["mlp_in.1"] = (case.path(layer, family.mlp), "in")
    expected = record(case.module, case.ids, ports)
    captured = capture(case.model, case.ids, list(ports))
    for site, value in expected.items():
        assert torch.equal(captured[site].flatten(), value.flatten()), site


def test_each_block_begins_where_the_last_one_ended(case: Case) -> None:
    for layer in case.layers[:-1]:
        ended, begun = case.read(f"resid_post.{layer}", f"resid_pre.{layer + 1}")
        assert torch.equal(ended, begun)


def test_the_block_is_the_sum_of_its_parts(case: Case) -> None:
    scale = case.family.residual_scale
    for layer in case.layers:
        sites = [f"{name}.{layer}" for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        before, attention, mlp, after = case.read(*sites)
        if case.family.parallel:
            close(before + scale * attention + scale * mlp, after)
            continue
        (middle,) = case.read(f"resid_mid.{layer}")
        first, second = before + scale * attention, middle + scale * mlp
        if case.family.norm_after_add:
            first = case.block(layer).self_attn_layer_norm(first)
            second = case.block(layer).final_layer_norm(second)
        close(first, middle)
        close(second, after)


def test_norms_lead_from_the_stream_to_the_modules(case: Case) -> None:
    for layer in case.layers:
        stream = f"resid_pre.{layer}"
        streams = (stream, stream if case.family.parallel else f"resid_mid.{layer}")
        shared = case.family.pre_norms[0] if case.family.parallel else None
        for name, source, norm in zip(("attn_in", "mlp_in"), streams, case.family.pre_norms, strict=True):
            read, expected = case.read(f"{name}.{layer}", source)
            path = norm or (shared if name == "mlp_in" else None)
            close(read, case.block(layer).get_submodule(path)(expected) if path else expected)


def test_norm_scales_are_what_the_norms_divide_by(case: Case) -> None:
    for site, norm in zip(("ln1_scale.1", "ln2_scale.1"), case.family.pre_norms, strict=True):
        if norm is None:
            continue
        module = case.block(1).get_submodule(norm)
        (scale,) = case.read(site)
        (stream,) = record(case.module, case.ids, {"x": (case.path(1, norm), "in")}).values()
        stream = stream.view(*case.ids.shape, -1)
        eps = getattr(module, "eps", getattr(module, "variance_epsilon", 1e-5))  # OLMo's is in its forward
        centred = stream - stream.mean(-1, keepdim=True)
        divided = stream if "RMS" in type(module).__name__ else centred
        assert scale.shape == (*case.ids.shape, 1)
        close(scale, (divided.square().mean(-1, keepdim=True) + eps).sqrt())


def test_projections_lead_from_heads_and_neurons_to_what_is_written(case: Case) -> None:
    family = case.family
    for layer in case.layers:
        block = case.block(layer)
        z, attention = case.read(f"z.{layer}", f"attn_out.{layer}")
        out = block.get_submodule(f"{family.attention}.{family.o_proj}")
        post = block.get_submodule(family.post_norms[0]) if family.post_norms[0] else nn.Identity()
        close(post(out(z.flatten(2))), attention)
        if family.down:
            act, mlp = case.read(f"mlp_act.{layer}", f"mlp_out.{layer}")
            post = block.get_submodule(family.post_norms[1]) if family.post_norms[1] else nn.Identity()
            close(post(block.get_submodule(family.down)(act)), mlp)


def test_the_last_stream_leads_to_the_logits(case: Case) -> None:
    normed, logits = case.read(f"resid_post.{case.layers[-1]}", "logits")
    if case.family.norm:
        normed = case.module.get_submodule(case.family.norm)(normed)
        close(normed, *case.read("final_norm"))
    project = case.module.get_submodule(case.family.project_out) if case.family.project_out else nn.Identity()
    unembedded = case.module.get_output_embeddings()(project(normed)) * case.family.logit_scale
    if case.family.soft_cap:
        unembedded = case.family.soft_cap * torch.tanh(unembedded / case.family.soft_cap)
    close(unembedded, logits)


def sliding(case: Case, layer: int) -> bool:
    config = case.module.config
    kinds = getattr(config, "attention_layers", None) or getattr(config, "layer_types", None)
    return case.family.sliding is not None and (
        kinds is None or kinds[layer] in {"local", "sliding_attention"}
    )


def test_patterns_are_causal_windowed_distributions(case: Case) -> None:
    positions = case.ids.shape[1]
    distance = torch.arange(positions)[:, None] - torch.arange(positions)
    for layer in case.layers:
        (pattern,) = case.read(f"pattern.{layer}")
        window = case.family.sliding if sliding(case, layer) else positions
        allowed = (distance >= 0) & (distance < window)
        assert (pattern[..., allowed] > 0).all()
        assert (pattern[..., ~allowed] == 0).all()
        if case.family.sinks:
            assert (pattern.sum(-1) < 1).all()
        else:
            close(pattern.sum(-1), torch.ones(pattern.shape[:-1]), FRACTION)


def test_patterns_mix_the_values_into_z(case: Case) -> None:
    if not case.has("v.1"):
        pytest.skip("values are expanded from a latent inside the module")
    for layer in case.layers:
        pattern, value, z = case.read(f"pattern.{layer}", f"v.{layer}", f"z.{layer}")
        value = value.clamp(-case.family.clip, case.family.clip) if case.family.clip else value
        value = value.repeat_interleave(4 // value.shape[2], dim=2)
        close(torch.einsum("bhqk,bkhd->bqhd", pattern, value), z)


def test_patterns_are_those_of_the_eager_implementation(case: Case) -> None:
    if case.family is FAMILIES["falcon-alibi"]:
        pytest.skip("transformers' eager kernel for Falcon adds ALiBi twice")
    with torch.no_grad():
        attentions = case.family.build(attention="eager")(case.ids, output_attentions=True).attentions
    for layer in case.layers:
        close(case.read(f"pattern.{layer}")[0], attentions[layer])


def test_an_activation_replaced_by_itself_changes_nothing(case: Case) -> None:
    for site, logits in at_every_site(case, lambda value: value).items():
        difference = (logits - case.logits).abs().max()
        assert difference <= SELF, f"{site}: {difference:.1e}"


def test_an_activation_replaced_by_zero_changes_the_logits(case: Case) -> None:
    for site, logits in at_every_site(case, lambda _: 0.0).items():
        assert (logits - case.logits).abs().max() > 1e-3, site


def test_a_restricted_edit_is_a_patch_by_hand(case: Case) -> None:
    family = case.family
    out = case.path(1, f"{family.attention}.{family.o_proj}")
    head = (0, 5, slice(family.d_head, 2 * family.d_head))
    edited = intervene(case.model, case.ids, {"z.1": at(0.5, rows=0, positions=5, heads=1)})["logits"]
    close(edited, patched(case.module, case.ids, out, "in", head, 0.5))
    value = torch.linspace(-1, 1, case.module.config.hidden_size)
    edited = intervene(case.model, case.ids, {"resid_post.1": at(value, positions=-3)})["logits"]
    close(edited, naive_patch(case.module, case.ids, family.blocks, 1, -3, value))


def test_edits_at_several_sites_compose(case: Case) -> None:
    once = {"attn_out.0": at(0.0, positions=[2, 7]), "mlp_out.1": lambda x: 2 * x}
    both = intervene(case.model, case.ids, once)["logits"]
    first = intervene(case.model, case.ids, {"attn_out.0": once["attn_out.0"]}, capture=["mlp_out.1"])
    second = intervene(
        case.model, case.ids, {"attn_out.0": once["attn_out.0"], "mlp_out.1": 2 * first["mlp_out.1"]}
    )["logits"]
    assert torch.equal(both, second)
    assert (both - case.logits).abs().max() > 1e-3


def opinion(captured: dict[str, Tensor]) -> Tensor:
    """A number that every activation has a say in."""
    return captured["logits"][:, -1, 7].sum()


def gradients(model: Model, ids: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations at the whole-model sites and those of layer 1, and the opinion's gradient at each."""
    sites = [site for site in model.sites() if "." not in site or site.endswith(".1")]
    sites = [site for site in sites if site.partition(".")[0] not in SCALES]
    captured = capture(model, ids, sites, grad=True)
    found = torch.autograd.grad(opinion(captured), [captured[site] for site in sites])
    return captured, dict(zip(sites, found, strict=True))


def test_gradients_are_the_slopes_of_edits(case: Case) -> None:
    captured, found = gradients(case.model, case.ids)
    close(captured["logits"], case.logits, SELF)
    for site, gradient in found.items():
        steepness = gradient.norm()
        length = STEP / (1 + steepness)
        value, step = captured[site].detach(), length * gradient / steepness
        up, down = (intervene(case.model, case.ids, {site: value + sign * step}) for sign in (1, -1))
        difference = opinion(up) - opinion(down)
        torch.testing.assert_close(difference, 2 * length * steepness, rtol=2e-2, atol=4e-6, msg=site)
        assert steepness > 1e-3, site


def test_gradients_need_no_gradients_of_weights(case: Case) -> None:
    _, expected = gradients(case.model, case.ids)
    _, found = gradients(wrap(case.family.build().requires_grad_(False)), case.ids)
    for site, gradient in expected.items():
        close(found[site], gradient)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_an_exception_in_an_edit_leaves_no_trace(case: Case) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    for site in ("resid_post.1", "pattern.1", "logits"):
        with pytest.raises(RuntimeError, match="on purpose"):
            intervene(case.model, case.ids, {site: fail}, capture=["resid_pre.0", "z.1", "pattern.0"])
        assert hooks(case.module) == 0
    with torch.no_grad():
        assert torch.equal(case.module(case.ids).logits, case.logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_have_the_numbers_they_have_alone(case: Case, side: Literal["left", "right"]) -> None:
    sites = ["logits", "resid_post.1", "attn_out.2", "z.1"]
    prompts = [row.tolist() for row in (case.ids[0], case.ids[1, :9], case.ids[0, 3:8])]
    together = batch(case.model, prompts, padding_side=side)
    captured = capture(case.model, together, sites)
    for row, prompt in enumerate(prompts):
        real = together.attention_mask[row].bool()
        assert together.input_ids[row, real].tolist() == prompt
        for site, alone in capture(case.model, prompt, sites).items():
            close(captured[site][row, real], alone[0], PADDED)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gpt_bigcode", "biogpt", "xglm"])
def test_a_mask_alone_does_not_tell_learned_positions_where_a_prompt_begins(name: str) -> None:
    """What goes wrong unnoticed where a padded batch is given no positions."""
    module = FAMILIES[name].build()
    model = wrap(module)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
    together = batch(model, prompts, padding_side="left")
    with torch.no_grad():
        naive = module(together.input_ids, attention_mask=together.attention_mask).logits[1, 3:]
    (alone,) = capture(model, prompts[1], ["logits"]).values()
    assert (naive - alone[0]).abs().max() > 0.1
    (right,) = capture(model, together, ["logits"]).values()
    close(right[1, 3:], alone[0], PADDED)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_captures_agree_with_the_naive_twin(kind: str) -> None:
    module = FAMILIES[kind].build()
    model = wrap(module)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    for site in [site for site in model.sites() if site.endswith(".2")]:
        name = site.partition(".")[0]
        if name in {*SCALES, "pattern"} or (kind == "gpt2" and name in "qkv"):
            continue
        captured = capture(model, ids, [site])[site]
        assert torch.equal(captured.flatten(2), naive_capture(kind, module, ids, site)), site
