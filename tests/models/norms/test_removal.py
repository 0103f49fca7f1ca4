"""Removal by fine-tuning: served apart as by hand, recovering, stopping, resuming, written and read back, refused."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import assay
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.models.norms.finding import find_norms
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.folding import copied_model
from assay.models.norms.recipe import Event, Recipe
from assay.models.norms.removable import RemovableNorm, Step, make_removable, settle
from assay.models.norms.removal import remove_by_fine_tuning
from assay.models.norms.removal_state import StateFolder
from families import FAMILIES
from small_gpt2 import python_text, small_gpt2

IDS = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(0))
QUICK = Recipe(
    steps=44, rows=4, length=16, held_out_rows=8, warmup=2, start=2, gaps=(2, 2, 2, 2, 2, 2, 2), tolerance=0.3
)


def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.module(input_ids=ids).logits


def removable(kind: str, stack: ExitStack) -> tuple[Model, dict[str, RemovableNorm]]:
    model = copied_model(wrap(FAMILIES[kind].build()))
    step = Step(torch.zeros(IDS.shape, dtype=torch.bool), momentum=0.0)
    step.special[:, 0] = True
    return model, make_removable(model, find_norms(model), step, stack)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gpt_neox", "stablelm", "opt", "olmo"])
def test_a_living_removable_norm_changes_nothing_and_follows_the_scale(kind: str) -> None:
    before = wrap(FAMILIES[kind].build())
    with ExitStack() as stack:
        model, made = removable(kind, stack)
        assert (logits(model) - logits(before)).abs().max() < 2e-5
        own = made["ln2.1"]
        sigma = assay.capture(before, IDS, ["ln2_scale.1"])["ln2_scale.1"]
        assert own.constant("mlp") == pytest.approx(float(sigma[:, 1:].mean()), rel=1e-5)
        assert float(own.special) == pytest.approx(float(sigma[:, 0].mean()), rel=1e-5)
        own.step.momentum = 0.75
        logits(model, IDS[:, :1].expand(2, 9))
        assert own.constant("mlp") != pytest.approx(float(sigma[:, 1:].mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("gpt2", {"ln1.0": ("qk", "v"), "ln2.0": ("mlp",), "final_norm": ("final",)}),
        ("gptj", {"ln1.0": ("mlp", "qk", "v"), "final_norm": ("final",)}),
        ("falcon", {"ln1.0": ("mlp", "qk", "v")}),
        ("gpt_neox", {"ln1.0": ("qk", "v"), "ln2.0": ("mlp",)}),
        ("deepseek_v2", {"ln1.0": ("v",), "ln2.0": ("mlp",), "kv_a_layernorm.0": ("other",)}),
        ("olmo2", {"q_norm.0": ("other",), "post_mlp.0": ("other",), "final_norm": ("final",)}),
        ("mixtral", {"ln1.0": ("qk", "v"), "ln2.0": ("mlp",)}),
    ],
)
def test_readers_of_a_norm_are_told_apart(kind: str, groups: dict[str, tuple[str, ...]]) -> None:
    with ExitStack() as stack:
        _, made = removable(kind, stack)
        assert {name: made[name].groups for name in groups} == groups


def by_hand(module: nn.Module, layer: int, scales: Mapping[str, Tensor | None]) -> Tensor:
    """GPT-2 whose queries and keys in one block read a norm with one scale, its values with another; None: alive."""
    block = module.transformer.h[layer]
    stream: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor]) -> None:
        stream.append(args[0])

    def mix(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = stream[0] - stream[0].mean(-1, keepdim=True)
        made = output.clone()
        for group, part in {"qk": slice(0, 64), "v": slice(64, 96)}.items():
            if scales[group] is not None:
                fixed = x / scales[group] * block.ln_1.weight + block.ln_1.bias
                made[..., part] = (fixed @ block.attn.c_attn.weight + block.attn.c_attn.bias)[..., part]
        return made

    hooks = [block.ln_1.register_forward_pre_hook(keep), block.attn.c_attn.register_forward_hook(mix)]
    with torch.no_grad():
        found = module(input_ids=IDS).logits
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("gone", [("qk",), ("v",), ("qk", "v")])
def test_each_reader_is_served_its_own_constant_as_by_hand(gone: Sequence[str]) -> None:
    given: dict[str, Tensor | None] = {"qk": None, "v": None}
    with ExitStack() as stack:
        model, made = removable("gpt2", stack)
        logits(model)
        own = made["ln1.1"]
        own.step.momentum = None
        own.constants.copy_(own.constants * torch.tensor([0.8, 1.3]))
        own.gone = set(gone)
        for group in gone:
            scale = torch.full((1, 9, 1), own.constant(group))
            scale[:, 0] = float(own.special) * own.constant(group) / own.constant("v")
            given[group] = scale
        expected = by_hand(FAMILIES["gpt2"].build(), 1, given)
        assert (logits(model) - expected).abs().max() < 2e-5
    for other in ({**given, gone[0]: None}, {**given, gone[0]: 1.2 * given[gone[0]]}):  # type: ignore[operator]
        assert (by_hand(FAMILIES["gpt2"].build(), 1, other) - expected).abs().max() > 1e-2


def test_a_constant_stands_still_from_its_own_removal_on() -> None:
    with ExitStack() as stack:
        model, made = removable("llama", stack)
        own = made["ln1.0"]
        seen = []
        for gone in (set(), {"qk"}, {"qk", "v"}):
            own.gone = gone
            ids = IDS + 3 * len(seen)
            logits(model, ids)
            sigma = assay.capture(wrap(FAMILIES["llama"].build()), ids, ["ln1_scale.0"])["ln1_scale.0"]
            seen.append([float(sigma[:, 1:].mean()), float(sigma[:, 0].mean())])
        assert own.constant("qk") == pytest.approx(seen[0][0], rel=1e-5)
        assert own.constant("v") == pytest.approx(seen[1][0], rel=1e-5)
        assert float(own.special) == pytest.approx(seen[1][1], rel=1e-5)
        assert seen[2] != pytest.approx(seen[1], rel=1e-3)


def test_separate_projections_are_served_apart_too() -> None:
    with ExitStack() as stack:
        model, made = removable("llama", stack)
        logits(model)
        made["ln1.0"].step.momentum = None
        alive = assay.capture(model, IDS, ["q.0", "k.0", "v.0"])
        made["ln1.0"].gone = {"qk"}
        apart = assay.capture(model, IDS, ["q.0", "k.0", "v.0"])
        made["ln1.0"].gone = {"qk", "v"}
        gone = assay.capture(model, IDS, ["q.0", "k.0", "v.0"])
    torch.testing.assert_close(apart["q.0"], gone["q.0"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart["k.0"], gone["k.0"], atol=1e-5, rtol=1e-5)
    assert torch.equal(apart["v.0"], alive["v.0"])
    assert (gone["v.0"] - alive["v.0"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "special"),
    [
        ("gpt2", ()), ("gpt2", (0,)), ("gemma", ()), ("qwen3", (0,)), ("gptj", (0,)), ("gpt_neox", ()),
        ("falcon", ()), ("stablelm", (0,)), ("mpt", ()), ("opt", ()), ("opt", (0,)), ("olmo2", ()),
        ("olmo", (0,)),
    ],
)  # fmt: skip
def test_what_is_settled_is_what_was_trained(kind: str, special: Sequence[int]) -> None:
    generator = torch.Generator().manual_seed(4)
    with ExitStack() as stack:
        model, made = removable(kind, stack)
        logits(model)
        for own in made.values():
            own.step.momentum = None
            own.constants.copy_(own.constants * (0.7 + torch.rand(len(own.groups), generator=generator)))
            own.gone = set() if special and own.axis < 0 else set(own.groups)
            own.step.special[:, 0] = bool(special)
        expected = logits(model)
    settled = settle(model, find_norms(wrap(FAMILIES[kind].build())), made, special)
    left = [norm.name for norm in find_norms(model) if not isinstance(norm.module, FixedNorm)]
    assert left == ([name for name, own in made.items() if own.axis < 0] if special else [])
    assert sorted([*settled, *left]) == sorted(made)
    assert (logits(model) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_what_one_reader_still_reads_alive_is_given_back_to_the_norm() -> None:
    with ExitStack() as stack:
        model, made = removable("gpt2", stack)
        logits(model)
        made["ln1.0"].gone, made["ln2.0"].gone = {"v"}, {"mlp"}
    assert settle(model, find_norms(wrap(FAMILIES["gpt2"].build())), made, ()) == ["ln2.0"]
    assert isinstance(model.module.transformer.h[0].ln_1, nn.LayerNorm)


def test_special_tokens_that_never_came_have_the_ordinary_constant() -> None:
    with ExitStack() as stack:
        model, made = removable("gpt2", stack)
        made["ln2.0"].step.special[:] = False
        logits(model)
        made["ln2.0"].gone = {"mlp"}
        expected = logits(model)
        made["ln2.0"].step.special[:, 3] = True
        assert torch.equal(logits(model), expected)


def test_the_order_is_that_of_the_recipe() -> None:
    with ExitStack() as stack:
        _, made = removable("gemma3", stack)
        groups = {name: own.groups for name, own in made.items()}
    events = Recipe(special_tokens=(2,)).events(groups)
    assert list(dict.fromkeys(event.group for event in events)) == list(Recipe().order)
    assert events[:2] == [Event("mlp", "ln2.0"), Event("mlp", "ln2.1")]
    assert len(events) == 4 + 4 + 4 + 16 + 1 + 2
    first = Recipe(order=("v", *(g for g in Recipe().order if g != "v"))).events(groups)
    assert first[0] == Event("v", "ln1.0")
    assert Recipe().plain().events(groups) == []


def test_steps_are_those_that_were_published() -> None:
    """MLPs from 200 on, queries and keys 440, values 680, final 1040, end of text 1060, first 1160."""
    groups = {
        f"{name}.{i}": read for i in range(12) for name, read in (("ln1", ("qk", "v")), ("ln2", ("mlp",)))
    }
    recipe = Recipe(
        steps=2000, start=200, gaps=(20, 20, 30, 30, 20, 100, 100), special_tokens=(50256,), warmup=100
    )
    events = recipe.events({**groups, "final_norm": ("final",)})  # type: ignore[dict-item]
    first: dict[str, int] = {}
    step = recipe.start
    for event in events:  # each as early as the gap after the one before allows
        first.setdefault(event.group, step)
        step += recipe.gap(event.group)
    assert first == {"mlp": 200, "qk": 440, "v": 680, "final": 1040, "tokens": 1060, "positions": 1160}


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = Recipe(steps=101, warmup=20, learning_rate=1.0, final_learning_rate=0.2)
    assert [recipe.rate(step) for step in (0, 9, 20)] == pytest.approx([0.05, 0.5, 1.0])
    assert recipe.rate(60) == pytest.approx(0.6)
    assert recipe.rate(100) == pytest.approx(0.2)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return small_gpt2(30, layers=2, width=32)


def fine_tuned(model: Model, recipe: Recipe = QUICK, **options: Any) -> assay.norms.Removal:
    text, held_out = python_text()
    return remove_by_fine_tuning(model, text, held_out, recipe=recipe, **options)


@pytest.fixture(scope="module")
def removal(tiny: Model) -> assay.norms.Removal:
    return fine_tuned(tiny)


def test_norms_go_and_the_loss_recovers(tiny: Model, removal: assay.norms.Removal) -> None:
    assert removal.stopped == ""
    assert removal.removed == {
        "mlp of ln2.0": 2, "mlp of ln2.1": 4, "qk of ln1.0": 6, "qk of ln1.1": 8, "v of ln1.0": 10, "v of ln1.1": 12,
        "final of final_norm": 14, "special positions": 16,
    }  # fmt: skip
    assert all(norm.is_fixed for norm in find_norms(removal.model))
    assert set(removal.constants) == {name for name in removal.removed if "special" not in name}
    assert removal.constants["qk of ln1.0"] != removal.constants["v of ln1.0"]
    scale = removal.model.module.transformer.h[0].ln_1.scale
    assert removal.constants["v of ln1.0"] == pytest.approx(float(scale))
    assert removal.model.source == "GPT2LMHeadModel, its norms removed by fine-tuning"
    assert not any(norm.is_fixed for norm in find_norms(tiny))
    assert removal.loss_after < removal.loss_before + QUICK.tolerance
    _, held_out = python_text()
    rows = held_out[: 8 * 16 + 1].unfold(0, 17, 16)
    found = logits(removal.model, rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None])
    assert removal.loss_after == pytest.approx(-float(found.mean()), abs=1e-5)


def test_it_is_written_read_back_and_norm_free(removal: assay.norms.Removal, tmp_path: Path) -> None:
    assay.norms.export(removal.model, tmp_path)
    ids = python_text()[1][:32].view(2, 16)
    expected = logits(removal.model, ids)
    for norms in ("kept", "identity"):
        loaded = assay.load(tmp_path, norms=norms)
        assert (logits(loaded, ids) - expected).abs().max() < 2e-5 * expected.abs().max()
        found = assay.direct_logit_attribution(loaded, ids.tolist(), answer=5, foil=6).dataset
        assert float(abs(found["freezing_error"]).max()) < 1e-4
    assert all(norm.is_identity for norm in find_norms(loaded))


class Killed(Exception):
    """Stands for the end of a process."""


def killed_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, of: int) -> None:
        assert of == QUICK.steps
        if done == step:
            raise Killed

    return progress


def test_killed_and_started_again_it_ends_with_the_same_bits(
    tiny: Model, removal: assay.norms.Removal, tmp_path: Path
) -> None:
    for step in (26, 43):  # after the state of step 25 was written; then again, further on
        with pytest.raises(Killed):
            fine_tuned(tiny, folder=tmp_path, progress=killed_at(step))
    resumed = fine_tuned(tiny, folder=tmp_path)
    assert resumed.history == removal.history
    assert resumed.model.weight_hash() == removal.model.weight_hash()
    read = fine_tuned(tiny, folder=tmp_path, progress=killed_at(1))  # nothing is left to do
    assert read.model.weight_hash() == removal.model.weight_hash()
    with pytest.raises(BadInput, match="state of another fine-tuning"):
        fine_tuned(tiny, dataclasses.replace(QUICK, seed=1), folder=tmp_path)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    model = wrap(FAMILIES["gpt2"].build())
    recipe = dataclasses.replace(QUICK, steps=1, start=1)
    ids = torch.randint(3, 101, (200,), generator=torch.Generator().manual_seed(2))
    remove_by_fine_tuning(model, ids, ids, recipe=recipe, folder=tmp_path)
    record, tensors = tmp_path / "state.json", next(tmp_path.glob("*.safetensors"))
    whole, cut = record.read_text(), tensors.read_bytes()[:1000]
    for damaged in ("{", "{}", "[]"):
        record.write_text(damaged)
        with pytest.raises(BadInput, match="is damaged"):
            remove_by_fine_tuning(model, ids, ids, recipe=recipe, folder=tmp_path)
    record.write_text(whole)
    for damage in (lambda: tensors.write_bytes(cut), tensors.unlink):
        damage()
        with pytest.raises(BadInput, match="is damaged"):
            remove_by_fine_tuning(model, ids, ids, recipe=recipe, folder=tmp_path)
    with pytest.raises(BadInput, match="state.json is a file"):
        remove_by_fine_tuning(model, ids, ids, recipe=recipe, folder=record)


def test_a_state_belongs_to_a_configuration_too(tmp_path: Path) -> None:
    def identity(epsilon: float) -> str:
        model = wrap(FAMILIES["gpt2"].build())
        model.module.config.layer_norm_epsilon = epsilon
        return StateFolder.of(tmp_path, model, QUICK, IDS, IDS).identity

    assert identity(1e-5) == identity(1e-5)
    assert identity(1e-5) != identity(1e12)


def test_a_removal_without_recovery_is_undone() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    ids = torch.randint(3, 101, (400,), generator=torch.Generator().manual_seed(2))
    recipe = dataclasses.replace(
        QUICK, tolerance=1e-5, patience=3, learning_rate=1e-9, final_learning_rate=1e-9
    )
    found = remove_by_fine_tuning(model, ids, ids, recipe=recipe)
    losses = [loss for _, loss in found.history]
    assert losses[2] > losses[0] + 0.01  # without the norm
    assert found.stopped == "mlp of ln2.0" and found.removed == {}
    assert found.loss_after == pytest.approx(found.loss_before, abs=1e-5)
    assert not any(norm.is_fixed for norm in find_norms(found.model))
    assert found.model.source.endswith("its 0 of 7 norms removed by fine-tuning")


@pytest.mark.parametrize(
    "recipe", [dataclasses.replace(QUICK, start=8), QUICK.plain()], ids=["removal", "plain"]
)
def test_a_training_that_diverges_is_undone(recipe: Recipe) -> None:
    model = wrap(FAMILIES["gpt2"].build())
    ids = torch.randint(3, 101, (400,), generator=torch.Generator().manual_seed(2))
    wild = dataclasses.replace(recipe, learning_rate=1e30, final_learning_rate=1e30, patience=2)
    found = remove_by_fine_tuning(model, ids, ids, recipe=wild)
    assert found.stopped == "the training, which diverged" and found.removed == {}
    assert found.loss_after == pytest.approx(found.loss_before, abs=1e-5)
    assert (logits(found.model) - logits(model)).abs().max() < 2e-5


def test_no_norm_goes_before_the_loss_is_back() -> None:
    """A first removal whose snapshot is worse than the model given would be held to that."""
    model = wrap(FAMILIES["gpt2"].build())
    ids = torch.randint(3, 101, (400,), generator=torch.Generator().manual_seed(2))
    recipe = dataclasses.replace(QUICK, tolerance=0.05, start=3, patience=1, learning_rate=0.3, warmup=0)
    found = remove_by_fine_tuning(model, ids[:100], ids[200:], recipe=recipe)
    assert max(loss for step, loss in found.history if step) > found.loss_before + 0.05
    assert found.stopped == "the training, which diverged"
    assert found.loss_after == pytest.approx(found.loss_before, abs=1e-5)


def test_without_steps_enough_it_says_what_is_left(tiny: Model) -> None:
    found = fine_tuned(tiny, dataclasses.replace(QUICK, steps=8))
    assert found.stopped.endswith("for want of steps")
    assert sum(norm.is_fixed for norm in find_norms(found.model)) == 2
    assert all(norm.module.by_position for norm in find_norms(found.model) if norm.is_fixed)


def test_queries_and_keys_without_their_values_are_given_back_to_the_norm(tiny: Model) -> None:
    found = fine_tuned(tiny, dataclasses.replace(QUICK, steps=9))
    assert found.stopped == "v of ln1.0, for want of steps"
    assert list(found.removed) == ["mlp of ln2.0", "mlp of ln2.1"]
    _, held_out = python_text()
    rows = held_out[: 8 * 16 + 1].unfold(0, 17, 16)
    after = logits(found.model, rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None])
    assert found.loss_after == pytest.approx(-float(after.mean()), abs=1e-5)


def test_plain_fine_tuning_leaves_the_norms(tiny: Model) -> None:
    found = fine_tuned(tiny, QUICK.plain())
    assert found.removed == {} and found.stopped == ""
    assert found.loss_after < found.loss_before
    assert found.model.source == "GPT2LMHeadModel, fine-tuned with its norms"
    assert not any(norm.is_fixed for norm in find_norms(found.model))


def test_rms_norms_go_too() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        model = wrap(LlamaForCausalLM(config))
    recipe = dataclasses.replace(QUICK, special_tokens=(10,), special_positions=(0, 1), momentum=0.5)
    found = fine_tuned(model, recipe)
    assert found.stopped == "" and list(found.removed)[-2:] == ["special tokens", "special positions"]
    assert all(norm.is_fixed for norm in find_norms(found.model))
    assert found.loss_after < found.loss_before


@pytest.mark.slow
def test_a_trained_model_loses_its_norms_within_a_twentieth_of_a_nat(tmp_path: Path) -> None:
    model = small_gpt2(600)
    recipe = Recipe(steps=200, rows=16, held_out_rows=128, gaps=(4, 4, 4, 4, 4, 4, 10))
    plain, removal = (fine_tuned(model, r) for r in (recipe.plain(), recipe))
    assert removal.stopped == ""
    assert removal.loss_before < 2.2
    assert abs(removal.loss_after - plain.loss_after) < 0.05
    assay.norms.export(removal.model, tmp_path)
    _, held_out = python_text()
    rows = held_out[: 128 * 64 + 1].unfold(0, 65, 64)
    loaded = assay.load(tmp_path, norms="identity")
    found = logits(loaded, rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None])
    assert -float(found.mean()) == pytest.approx(removal.loss_after, abs=1e-4)
    attributed = assay.direct_logit_attribution(loaded, rows[:8, :-1].tolist()).dataset
    assert float(abs(attributed["freezing_error"]).max()) < 1e-4
    alive = assay.direct_logit_attribution(plain.model, rows[:8, :-1].tolist()).dataset
    assert float(abs(alive["freezing_error"]).max()) > 0.1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 12.5}, "steps=12.5: give a whole number"),
        ({"seed": 2**62}, "seed=4611686018427387904: give less"),
        ({"special_tokens": (500,)}, "special_tokens has the id 500: .* has tokens 0 to 127"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"auxiliary": -1.0}, "auxiliary=-1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"gaps": (1,)}, "with a gap for each"),
        ({"order": ("mlp",), "gaps": (2,)}, "leaves out final"),
        ({"gaps": (0,) * 7}, "gaps must be at least 1"),
        ({"momentum": 1.0}, "momentum between"),
        ({"special_positions": (16,)}, "a window has 16 tokens"),
        ({"length": 65}, "was built for 64 tokens"),
        ({"held_out_rows": 4000}, "held_out has the shape"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tiny: Model, changed: dict[str, Any], message: str) -> None:
    recipe = copy.copy(QUICK)
    for name, value in changed.items():
        object.__setattr__(recipe, name, value)  # past the types, which are checked in tests only
    with pytest.raises(BadInput, match=message):
        fine_tuned(tiny, recipe)


TEXT = torch.arange(400).remainder(101)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.tolist(), "tokens is given as list: give token ids"),
        (TEXT.float(), "tokens is given as torch.float32: give token ids"),
        (TEXT + 1, "tokens has the id 101: GPT2LMHeadModel has tokens 0 to 100"),
        (TEXT - 1, "tokens has the id -1"),
    ],
)
def test_what_is_no_text_of_the_model_is_refused(text: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        unwrap(remove_by_fine_tuning)(wrap(FAMILIES["gpt2"].build()), text, TEXT, recipe=QUICK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(BadInput, match=f"in {dtype}: small steps are lost"):
        remove_by_fine_tuning(wrap(FAMILIES["gpt2"].build().to(dtype)), TEXT, TEXT, recipe=QUICK)


def test_a_model_without_a_finite_loss_is_refused() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    with torch.no_grad():
        model.module.transformer.wte.weight[3] = torch.nan
    with pytest.raises(BadInput, match="held-out loss of GPT2LMHeadModel is nan"):
        remove_by_fine_tuning(model, TEXT, TEXT, recipe=QUICK)


def test_models_without_living_norms_are_refused(removal: assay.norms.Removal) -> None:
    with pytest.raises(BadInput, match="no norm that is alive"):
        fine_tuned(removal.model)


def test_a_norm_with_other_parameters_is_refused_with_their_names() -> None:
    class TemperedNorm(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.root, self.temperature = nn.Parameter(weight.abs().sqrt()), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            gain = self.root.square() * self.temperature
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain

    module = FAMILIES["llama"].build()
    module.model.norm = TemperedNorm(module.model.norm.weight)
    with pytest.raises(BadInput, match="final_norm .TemperedNorm. .* parameters named root, temperature"):
        remove_by_fine_tuning(wrap(module), TEXT, TEXT, recipe=QUICK)
