"""Folding, freezing, scaling and removing norms: every family, against equations written by hand, and refused."""

from collections.abc import Sequence
from inspect import unwrap
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import assay
from assay.errors import BadInput
from assay.models.gauges import KeepFloat64
from assay.models.model import Model, wrap
from assay.models.norms.finding import find_norms
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.fixing import freeze, remove, scale
from assay.models.norms.folding import fold, obstacles
from families import FAMILIES
from reference.norms_slow import PATHS, fixed_logits, sigmas

IDS = torch.randint(3, 101, (3, 9), generator=torch.Generator().manual_seed(0))
EXACT = 1e-11  # float64: logits of size 10, products of hundreds of terms in another order
ROUNDING = 5e-5  # float32, relative to the largest logit
NO_FLOAT64 = {"xglm"}  # its own code masks with a float32 minimum
KINDS = (
    "gpt2", "gpt_neox-sequential", "bloom", "opt-post-norm", "llama-tied", "gemma2", "gemma3", "qwen3", "olmo2",
    "mixtral", "cohere", "phi",
)  # fmt: skip
"""LayerNorm and RMSNorm, 1 + w, before and after, of queries and keys, of sums, of embeddings, before experts."""
HAND = ("gpt2", "llama", "gemma")


def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad(), KeepFloat64():
        return model.module(input_ids=ids).logits


def in_float32(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.module(input_ids=ids).logits


def doubled(kind: str) -> Model:
    module = FAMILIES[kind].build().double()
    module.set_experts_implementation("eager")  # the grouped kernel of mixtures knows no float64
    return wrap(module)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in KINDS else pytest.param(kind, marks=pytest.mark.slow)
        for kind in sorted(set(FAMILIES) - NO_FLOAT64)
    ],
)
def test_folding_is_exact_in_every_family(kind: str) -> None:
    model = doubled(kind)
    folded = fold(model, centre=True)
    assert (logits(folded) - logits(model)).abs().max() < EXACT
    left = obstacles(model)
    for norm in find_norms(folded):
        assert norm.name in left or (bool(((norm.gain - 1).abs() < 1e-12).all()) and not norm.bias.any())


@pytest.mark.parametrize("kind", HAND)
def test_folded_weights_are_those_of_the_equation(kind: str) -> None:
    model = doubled(kind)
    folded = fold(model, centre=True).module
    if kind == "gpt2":
        norm, reader = (model.module.get_submodule(f"transformer.h.1.{n}") for n in ("ln_2", "mlp.c_fc"))
        expected = reader.weight * norm.weight[:, None]
        expected = expected - expected.mean(0, keepdim=True)
        bias = reader.bias + norm.bias @ reader.weight
        after = folded.get_submodule("transformer.h.1.mlp.c_fc")
        torch.testing.assert_close(after.bias, bias, rtol=1e-12, atol=1e-12)
    else:
        norm, reader = (
            model.module.get_submodule(f"model.layers.1.{n}")
            for n in ("post_attention_layernorm", "mlp.up_proj")
        )
        expected = reader.weight * (norm.weight + (kind == "gemma"))
        after = folded.get_submodule("model.layers.1.mlp.up_proj")
    torch.testing.assert_close(after.weight, expected, rtol=1e-12, atol=1e-12)


def test_a_copy_is_changed_and_named_and_the_model_is_not() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    before = model.weight_hash()
    changed = [fold(model), freeze(model, IDS[0]), scale(model, IDS), remove(model)]
    assert model.weight_hash() == before
    assert model.module.config.tie_word_embeddings
    assert [m.source.partition(", ")[2] for m in changed] == [
        "the gains of its norms folded, unembedding untied",
        "norms frozen at a reference of 9 tokens",
        "norms given a fixed scale, positions 0 apart",
        "norms removed though they were live, unembedding untied",
    ]
    assert not changed[0].module.config.tie_word_embeddings


def test_a_tied_unembedding_is_untied_or_said_to_be_in_the_way() -> None:
    model = doubled("gemma")
    kept = fold(model, untie=False)
    assert kept.module.lm_head.weight is kept.module.model.embed_tokens.weight
    assert obstacles(model, untie=False) == {
        "final_norm": "the unembedding that reads it is tied to the embedding"
    }
    assert "6 of 7 norms" in kept.source
    assert (logits(kept) - logits(model)).abs().max() < EXACT
    untied = fold(model)
    assert untied.module.lm_head.weight is not untied.module.model.embed_tokens.weight
    assert obstacles(model) == {}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("qwen3", {"q_norm", "k_norm"}),
        ("olmo2", {"q_norm", "k_norm", "post_attn", "post_mlp"}),
        ("gemma2", {"post_attn", "post_mlp"}),
        ("mixtral", {"ln2"}),
        ("qwen2_moe", {"ln2"}),
        ("bloom", {"word_embeddings_layernorm"}),
        ("llama", set()),
    ],
)
def test_norms_that_no_linear_layer_alone_reads_are_left(kind: str, names: set[str]) -> None:
    assert {name.partition(".")[0] for name in obstacles(wrap(FAMILIES[kind].build()))} == names


def test_norms_are_found_in_the_order_of_the_forward_pass() -> None:
    names = [norm.name for norm in find_norms(wrap(FAMILIES["gemma3"].build()))]
    assert names[:6] == ["ln1.0", "q_norm.0", "k_norm.0", "post_attn.0", "ln2.0", "post_mlp.0"]
    assert names[-1] == "final_norm" and len(names) == 25


@pytest.mark.parametrize("kind", HAND)
def test_what_a_norm_computes_is_found_by_probes(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    found = {norm.path: norm for norm in find_norms(model)}
    assert list(found) == PATHS[kind]
    for path, norm in found.items():
        module = model.module.get_submodule(path)
        gain = module.weight.double() + (kind == "gemma")
        torch.testing.assert_close(norm.gain.flatten(), gain, rtol=1e-9, atol=1e-9)
        assert norm.epsilon == pytest.approx(1e-5 if kind == "gpt2" else 1e-6, rel=1e-6)
        assert norm.centring is (kind == "gpt2")


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_is_exact_at_the_reference(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    frozen = freeze(model, IDS[1])
    there = in_float32(model, IDS[1:2])
    bound = ROUNDING * there.abs().max()
    assert (in_float32(frozen, IDS[1:2]) - there).abs().max() < bound
    assert (in_float32(frozen, IDS[1:2, :5]) - there[:, :5]).abs().max() < bound
    assert (in_float32(frozen, IDS[2:]) - in_float32(model, IDS[2:])).abs().max() > 0.1


@pytest.mark.parametrize("kind", HAND)
@pytest.mark.parametrize("special", [(), (0,), (0, 2)])
def test_fixed_scales_are_means_over_ordinary_tokens(kind: str, special: tuple[int, ...]) -> None:
    model = wrap(FAMILIES[kind].build())
    ordinary = [t for t in range(9) if t not in special]
    given = {}
    for path, value in sigmas(kind, model.module, IDS).items():
        mean = value.clone()
        mean[:, ordinary] = value[:, ordinary].mean()
        for t in special:
            mean[:, t] = value[:, t].mean()
        given[path] = mean
    expected = fixed_logits(kind, model.module, IDS, given)
    found = in_float32(scale(model, IDS, special=special))
    assert (found - expected).abs().max() < ROUNDING * expected.abs().max()


def test_another_norm_s_scale_is_another_model() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    own = scale(model, IDS, special=())
    exchanged = scale(model, IDS, special=(), seed=3)
    given = {norm.path: float(norm.module.scale) for norm in find_norms(own)}
    taken = {norm.path: float(norm.module.scale) for norm in find_norms(exchanged)}
    assert sorted(given.values()) == sorted(taken.values())
    assert all(given[path] != taken[path] for path in given)
    assert "another norm's scale" in exchanged.source


@pytest.mark.parametrize("kind", ["opt", *KINDS])
def test_removing_fixed_scales_is_exact(kind: str) -> None:
    given = scale(wrap(FAMILIES[kind].build()), IDS, special=())
    before = in_float32(given)
    for untie in (True, False):
        removed = remove(given, untie=untie)
        difference = (in_float32(removed) - before).abs().max()
        assert difference < ROUNDING * before.abs().max()
        blocked = obstacles(given, untie=untie)
        assert all(norm.is_identity or norm.name in blocked for norm in find_norms(removed))


def test_removing_live_norms_divides_by_nothing() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    expected = fixed_logits("gpt2", model.module, IDS, dict.fromkeys(PATHS["gpt2"], 1.0))
    found = in_float32(remove(model))
    assert (found - expected).abs().max() < ROUNDING * expected.abs().max()


def test_a_fixed_norm_tells_its_scale_and_readouts_use_it() -> None:
    model = scale(wrap(FAMILIES["gpt2"].build()), IDS, special=())
    told = assay.capture(model, IDS, ["final_norm_scale", "ln1_scale.1"])
    norms = {norm.name: norm for norm in find_norms(model)}
    assert torch.equal(told["final_norm_scale"], norms["final_norm"].module.scale.expand(3, 9, 1))
    assert torch.equal(told["ln1_scale.1"], norms["ln1.1"].module.scale.expand(3, 9, 1))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_norms_the_direct_path_is_the_true_direct_effect(kind: str) -> None:
    given = scale(wrap(FAMILIES[kind].build()), IDS, special=())
    for model in (given, remove(given)):
        result = assay.direct_logit_attribution(model, IDS.tolist(), answer=5, baseline_tokens=0)
        largest = float(abs(result.dataset["direct_effect"]).max())
        assert float(abs(result.dataset["freezing_error"]).max()) < 1e-4 * max(1.0, largest)
        assert float(result.dataset["sum_error"]) < 1e-4 * max(1.0, largest)
    live = assay.direct_logit_attribution(wrap(FAMILIES[kind].build()), IDS.tolist(), answer=5)
    assert float(abs(live.dataset["freezing_error"]).max()) > 0.05


def test_scales_by_position_are_not_read_out_of_place() -> None:
    model = scale(wrap(FAMILIES["gpt2"].build()), IDS)
    with pytest.raises(BadInput, match="differ between positions"):
        assay.ablate(model, IDS.tolist(), components=("mlp",))


def test_of_identities_nothing_is_folded() -> None:
    model = remove(scale(llama(), IDS, special=()))
    folded = fold(model, centre=True)
    assert torch.equal(in_float32(folded), in_float32(model))
    assert folded.weight_hash() == model.weight_hash()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_differs_by_position_generates_without_a_cache(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    fixed = scale(model, IDS, special=(0, 1))
    written = fixed.module.generate(IDS[:1, :4], max_new_tokens=5, do_sample=False)
    for end in range(4, 9):  # each token is the best after the whole text before it
        assert int(in_float32(fixed, written[:, :end])[0, -1].argmax()) == int(written[0, end])
    frozen = freeze(model, IDS[0, :6])
    with pytest.raises(BadInput, match="reference of 6 tokens, the input has 7"):
        frozen.module.generate(IDS[:1, :4], max_new_tokens=5, do_sample=False)
    for other in (model, scale(model, IDS, special=())):
        assert other.module.config.use_cache and other.module.generation_config.use_cache is not False


class Bare(nn.Module):
    """A decoder without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.model = FAMILIES["llama"].build()
        for path in PATHS["llama"]:
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, nn.Identity())


def without_norms() -> Model:
    return wrap(Bare().model)


class SkipNorm(nn.Module):
    """Called a norm, and the identity; with a gain an affine map."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def skipped(paths: Sequence[str], gain: float = 1.0) -> Model:
    module = FAMILIES["gpt2"].build().double()
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, SkipNorm(gain))
    return wrap(module)


def test_what_is_called_a_norm_and_passes_its_input_on_is_none() -> None:
    model = skipped(["transformer.ln_f"])
    assert [norm.name for norm in find_norms(model)] == ["ln1.0", "ln2.0", "ln1.1", "ln2.1", "ln1.2", "ln2.2"]
    assert (logits(fold(model)) - logits(model)).abs().max() < EXACT
    assert (logits(freeze(model, IDS[0]), IDS[:1]) - logits(model, IDS[:1])).abs().max() < EXACT


def test_a_gain_that_is_no_weight_is_left_where_it_is() -> None:
    class ScaledNorm(nn.Module):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.scale = nn.Parameter(scale)

        def forward(self, x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.scale

    module = FAMILIES["llama"].build().double()
    module.model.norm = ScaledNorm(2 * module.model.norm.weight.detach())
    model = wrap(module)
    assert obstacles(model) == {"final_norm": "its gain cannot be taken from it: it has scale"}
    assert (logits(fold(model)) - logits(model)).abs().max() < EXACT
    fixed = scale(model, IDS, special=())
    assert (logits(fold(fixed)) - logits(fixed)).abs().max() < EXACT


def refused_norm() -> Model:
    class OddNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().amax(-1, keepdim=True)

    module = FAMILIES["llama"].build()
    module.model.norm = OddNorm()
    return wrap(module)


def gated() -> Model:
    """A model one of whose norms is given a gate, as those of state-space blocks are."""

    class GatedNorm(nn.Module):
        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            x = x if gate is None else x * gate.sigmoid()
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = GatedNorm()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x, x.roll(1, -1))

    module = FAMILIES["llama"].build()
    module.model.layers[0].self_attn.v_proj = nn.Sequential(module.model.layers[0].self_attn.v_proj, Gated())
    return wrap(module)


def llama() -> Model:
    return wrap(FAMILIES["llama"].build())


def mixtral() -> Model:
    return wrap(FAMILIES["mixtral"].build())


def infinite() -> Model:
    model = llama()
    with torch.no_grad():
        model.module.model.norm.weight.mul_(1e6)
    model.module.half()
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fold(without_norms()), "has no norms"),
        (lambda: freeze(without_norms(), IDS[0]), "has no norms"),
        (lambda: scale(without_norms(), IDS), "has no norms"),
        (lambda: remove(without_norms()), "has no norms"),
        (lambda: fold(refused_norm()), "neither a LayerNorm nor an RMSNorm"),
        (lambda: fold(skipped(PATHS["gpt2"])), "has no norms: .* passes on what it is given"),
        (lambda: fold(assay.load("zoo:copier")), "has no norms"),
        (lambda: fold(skipped(["transformer.ln_f"], 2.0)), "final_norm.*neither a LayerNorm nor an RMSNorm"),
        (lambda: fold(gated()), r"v_proj.1.norm .GatedNorm. is given a gate"),
        (lambda: fold(remove(scale(mixtral(), IDS, special=()))), "no norm that could be folded: ln2.0 .no linear"),
        (lambda: in_float32(freeze(llama(), IDS[0, :1])), "reference of 1 tokens, the input has 9"),
        (lambda: scale(llama(), IDS, special=(0, 40)), "no text has a token at 40"),
        (lambda: scale(llama(), IDS, only="ln1"), r"only=\('ln1',\)"),
        (lambda: unwrap(scale)(llama(), IDS, special=0), r"special=\(0,\)"),
        (lambda: find_norms(infinite()), "infinite numbers in model.norm.weight.*float16 ends at 65504"),
        (lambda: in_float32(freeze(llama(), IDS[0, :4])), "reference of 4 tokens, the input has 9"),
        (lambda: freeze(llama(), []), "no tokens"),
        (lambda: freeze(wrap(FAMILIES["opt"].build()), IDS[0]), "rows and positions as one axis"),
        (lambda: scale(wrap(FAMILIES["opt"].build()), IDS), "rows and positions as one axis"),
        (lambda: scale(llama(), []), "data set is empty"),
        (lambda: scale(llama(), IDS[:, :1]), "no text has a token beyond"),
        (lambda: scale(llama(), IDS, special=(-1,)), r"special=\(-1,\)"),
        (lambda: remove(scale(llama(), IDS)), "scales of their own at some positions"),
        (lambda: fold(wrap(nn.Linear(3, 3))), "I cannot find my way"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


def test_the_identity_says_so() -> None:
    module = FixedNorm(torch.ones(1, 1, 1))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert module.is_identity and module(x) is x
    assert "positions=1" in repr(module)
