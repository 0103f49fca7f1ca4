from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from assay.errors import BadInput
from assay.landscape import checkpoints
from assay.landscape.checkpoints import LIST, Course, course
from assay.landscape.losses import PRESETS, AnchorLoss, next_token, squared_error
from assay.landscape.masks import named_mask
from assay.landscape.trajectory import trajectory
from assay.landscape.watch import watch
from assay.zoo.training import linear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0) -> nn.Sequential:
    source = generator(seed)
    return nn.Sequential(linear(3, 4, generator=source), nn.Tanh(), linear(4, 2, generator=source))


DATA = (torch.randn(20, 3, generator=generator(1)), torch.randn(20, 2, generator=generator(2)))


def states(count: int = 3) -> dict[int, dict[str, torch.Tensor]]:
    return {100 * step: network(step).state_dict() for step in range(count)}


def rows(made: Course, places: list[int]) -> torch.Tensor:
    anchors = made.group(0, places).anchors
    assert anchors is not None
    return anchors


def written(folder: Path, name: str = "step-{:06d}.safetensors") -> Path:
    for step, state in states().items():
        path = folder / name.format(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path)
    return folder


@pytest.mark.parametrize(
    "name", ["step-{:06d}.safetensors", "{}.safetensors", "checkpoint-{}/model.safetensors"]
)
def test_a_folder_and_memory_give_the_same(tmp_path: Path, name: str) -> None:
    here = course(network(9), squared_error, DATA, written(tmp_path, name))
    there = course(network(8), squared_error, DATA, states())
    assert here.steps == there.steps == (0, 100, 200)
    assert here.weight_hash() == there.weight_hash()
    assert here.together
    anchors = rows(here, [0, 2])
    assert anchors.shape == (2, 26)
    assert_close(anchors, rows(there, [0, 2]), rtol=0, atol=0)
    assert_close(anchors[1], torch.cat([value.flatten() for value in states()[200].values()]), rtol=0, atol=0)
    other = states()
    other[100]["0.bias"] = other[100]["0.bias"] + 1
    assert course(network(), squared_error, DATA, other).weight_hash() != here.weight_hash()


def test_steps_are_put_in_order(tmp_path: Path) -> None:
    shuffled = {step: states()[step] for step in (200, 0, 100)}
    for step, state in shuffled.items():
        save_file(state, tmp_path / f"{step}.safetensors")
    for source in (shuffled, tmp_path):
        made = course(network(), squared_error, DATA, source)
        assert made.steps == (0, 100, 200)
        assert_close(rows(made, [0, 1, 2]), rows(course(network(), squared_error, DATA, states()), [0, 1, 2]))


def test_the_module_is_left_as_it_is_and_its_own_weights_play_no_part() -> None:
    module = network(7)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = course(module, squared_error, DATA, states())
    assert made.weight_hash() == course(network(6), squared_error, DATA, states()).weight_hash()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_masks_of_equal_size_over_other_parameters_are_other_courses() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    weights, data = {0: module.state_dict()}, (torch.randn(9, 3, generator=generator()),) * 2
    first, last = (
        course(module, squared_error, data, weights, mask=name) for name in ("0.weight", "2.weight")
    )
    assert first.plain.d == last.plain.d
    assert first.weight_hash() != last.weight_hash()
    assert first.weight_hash() == course(module, squared_error, data, weights, mask="0.w*").weight_hash()


@pytest.mark.parametrize("words", ["mlp.1", "head.1.2"])
def test_parts_of_a_language_model_are_those_of_each_checkpoint(make_tiny_llama, words: str) -> None:
    model = make_tiny_llama()
    ids = torch.randint(0, 40, (6, 8), generator=generator())
    first = {name: value.clone() for name, value in model.module.state_dict().items()}
    states = {0: first, 1: {name: 1.1 * value for name, value in first.items()}}
    made = course(model, None, ids, states, mask=words)
    for place in (0, 1):
        plain = made.group(0, [place]).plain
        assert set(plain.parameters) == set(named_mask(model, words))
        # passes begin at the block in which weights move, of this very checkpoint
        assert plain.entries is not None and plain.model is not None
        assert plain.model.parts.blocks[1].module in [*plain.module.modules()]
        model.module.load_state_dict(states[place])
        own = next_token(model.module, (ids,)).mean().item()
        assert plain.anchor_loss.item() == pytest.approx(own, rel=1e-5)
    few: dict[str, Any] = {"chains": 2, "draws": 8, "burn_in": 2, "batch_size": 3, "window": 1}
    found = trajectory(model, None, ids, states, mask=words, sampled="kl_to_anchor", step_size=1e-4, **few)
    assert found.dataset["loss"].to_numpy()[-1] == pytest.approx(own, rel=1e-5)
    assert float(found.dataset["llc"].min()) > 0
    assert found.dataset.attrs["parameters"] == sum(
        int(part.sum()) for part in named_mask(model, words).values()
    )


def test_checkpoints_that_differ_in_buffers_are_not_walked_together() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = {name: value.clone() for name, value in module.state_dict().items()}
    second = {**first, "1.running_mean": first["1.running_mean"] + 1}
    assert course(module, squared_error, DATA, {0: first, 1: first}).together
    made = course(module, squared_error, DATA, {0: first, 1: second})
    assert not made.together
    for place, state in enumerate((first, second)):
        group = made.group(0, [place])
        assert group.anchors is None
        assert_close(group.plain.module.get_buffer("1.running_mean"), state["1.running_mean"])


def test_tied_weights_may_be_there_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(inputs))[:, :2]

    weight = torch.eye(3)
    made = course(
        Tied(), squared_error, DATA, {0: {"second.weight": weight}, 1: {"first.weight": 2 * weight}}
    )
    assert_close(rows(made, [0, 1]), torch.stack([weight.flatten(), 2 * weight.flatten()]))


class Rotating(nn.Module):
    """No stack: its outputs are tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = network(seed)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.stack([inputs, inputs.roll(1, -1)], 1))


@pytest.mark.parametrize("make", [network, Rotating], ids=["stack", "other"])
@pytest.mark.parametrize("name", ["squared_distance_to_anchor", "kl_to_anchor"])
def test_each_chain_is_compared_with_the_outputs_of_its_own_anchor(make, name: str) -> None:
    modules = {step: make(step) for step in range(3)}
    made = course(
        make(0), _own, DATA, {step: module.state_dict() for step, module in modules.items()}, sampled=name
    )
    assert made.together
    group, preset = made.group(0, [1, 2]), PRESETS[name]
    assert group.anchors is not None and isinstance(preset, AnchorLoss)
    anchors = group.anchors.repeat_interleave(2, 0)
    places = anchors + 0.1 * torch.randn(4, 26, generator=generator(5))
    drawn = torch.randint(20, (4, 6), generator=generator(6))
    for numbers in (drawn, drawn[:1]):
        inputs = DATA[0][numbers]
        losses, slopes = group.gradient(2)(places, (inputs, numbers))
        for chain, step in enumerate((1, 1, 2, 2)):
            mine = inputs[min(chain, len(inputs) - 1)]
            before, moved = modules[step](mine).detach(), make(0)
            torch.nn.utils.vector_to_parameters(places[chain], moved.parameters())
            value = preset.of(moved(mine), before).mean()
            expected = torch.autograd.grad(value, list(moved.parameters()))
            assert_close(losses[chain], value.detach(), rtol=1e-4, atol=1e-6)
            assert_close(slopes[chain], torch.cat([s.flatten() for s in expected]), rtol=1e-3, atol=1e-5)
    assert_close(group.gradient(1)(group.anchors, (inputs, numbers))[0], torch.zeros(2), rtol=0, atol=1e-6)
    assert group.baseline().tolist() == group.downhill(9.0, 1.0).tolist() == [0, 0]


def _own(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0]).square().flatten(1).sum(1)


@pytest.mark.parametrize("limit", ["LARGE", "KEPT"])
def test_what_is_too_large_to_be_batched_is_walked_alone_and_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    settings: dict[str, Any] = {"chains": 3, "draws": 12, "burn_in": 3, "batch_size": 5, "window": 1}
    settings |= {"step_size": 1e-3, "sampled": "squared_distance_to_anchor"}
    together = trajectory(network(), squared_error, DATA, states(), **settings).dataset
    monkeypatch.setattr(checkpoints, limit, 10)
    assert not course(network(), squared_error, DATA, states(), sampled=settings["sampled"]).together
    alone = trajectory(network(), squared_error, DATA, states(), **settings).dataset
    for name in ("llc", "llc_stderr", "loss", "llc_bias", "downhill"):
        assert_close(
            torch.from_numpy(alone[name].to_numpy()),
            torch.from_numpy(together[name].to_numpy()),
            rtol=1e-3,
            atol=1e-4,
        )


def test_what_is_watched_can_be_read_and_is_never_half_there(tmp_path: Path) -> None:
    module = network()
    recorder = watch(module, tmp_path / "run", every=5)
    for step in range(11):
        kept = recorder(step)
        assert (kept is not None) == (step % 5 == 0)
        with torch.no_grad():
            module[0].bias += 1
    made = course(network(3), squared_error, DATA, tmp_path / "run")
    assert made.steps == (0, 5, 10)
    first, second = rows(made, [0, 1])
    assert_close(second[12:16] - first[12:16], torch.full((4,), 5.0))
    again = watch(module, tmp_path / "run", every=1)  # a training that goes on
    again.save(11)
    assert course(network(), squared_error, DATA, tmp_path / "run").steps == (0, 5, 10, 11)


def truncate(folder: Path) -> None:
    path = folder / "step-000100.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    truncate(written(tmp_path))
    with pytest.raises(BadInput, match=r"step-000100.safetensors.*truncated"):
        course(network(), squared_error, DATA, tmp_path)


def test_a_file_that_is_missing_from_what_was_watched_is_named(tmp_path: Path) -> None:
    recorder = watch(network(), tmp_path, every=1)
    for step in range(3):
        recorder(step)
    (tmp_path / "step-000000001.safetensors").unlink()
    with pytest.raises(BadInput, match=r"step-000000001.safetensors' is missing"):
        course(network(), squared_error, DATA, tmp_path)
    recorder.save(1)
    recorder.save(2)
    path = tmp_path / "step-000000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"step-000000002.*truncated"):
        course(network(), squared_error, DATA, tmp_path)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"files": ["a"]}', '{"files": {"a": null}}', '{"files": {"a']
)
def test_a_damaged_list_is_refused_by_readers_and_writers(tmp_path: Path, content: str) -> None:
    (tmp_path / LIST).write_text(content)
    with pytest.raises(BadInput, match=r"checkpoints.json' cannot be read"):
        course(network(), squared_error, DATA, tmp_path)
    with pytest.raises(BadInput, match=r"checkpoints.json' cannot be read"):
        watch(network(), tmp_path, every=1)


def test_files_in_a_dictionary_are_read(tmp_path: Path) -> None:
    files = sorted(written(tmp_path).glob("*.safetensors"))
    made = course(network(), squared_error, DATA, {0: files[0], 100: str(files[1]), 200: states()[200]})
    assert made.weight_hash() == course(network(), squared_error, DATA, states()).weight_hash()


@pytest.mark.parametrize("name", ["step-10-final", "loss-0.25"])
def test_a_file_without_a_step_among_others_is_named(tmp_path: Path, name: str) -> None:
    save_file(states()[0], written(tmp_path) / f"{name}.safetensors")
    with pytest.raises(BadInput, match=rf"'{name}.safetensors'.* end in no step"):
        course(network(), squared_error, DATA, tmp_path)


def test_what_the_trainer_saved_last_stands_beside_its_folders(tmp_path: Path) -> None:
    save_file(states()[0], written(tmp_path, "checkpoint-{}/model.safetensors") / "model.safetensors")
    assert course(network(), squared_error, DATA, tmp_path).steps == (0, 100, 200)


def _mean(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return squared_error(module, batch).mean()


def _broken(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0]) - batch[7]


@pytest.mark.parametrize(
    ("sampled", "message"),
    [(_mean, "expected one value for each example"), (_broken, "cannot be taken")],
)
@pytest.mark.parametrize("limit", [10, 2**25])
def test_the_sampled_loss_is_tried_as_the_other_is(
    monkeypatch: pytest.MonkeyPatch, limit: int, sampled: Any, message: str
) -> None:
    monkeypatch.setattr(checkpoints, "LARGE", limit)
    with pytest.raises(BadInput, match=message):
        course(network(), squared_error, DATA, states(), sampled=sampled)


def test_files_that_the_list_of_what_was_watched_does_not_name_are_left_out(tmp_path: Path) -> None:
    recorder = watch(network(), tmp_path, every=1)
    recorder(0)
    recorder(1)
    save_file(states()[100], tmp_path / "final-2.safetensors")
    assert course(network(), squared_error, DATA, tmp_path).steps == (0, 1)
    (tmp_path / LIST).unlink()
    assert course(network(), squared_error, DATA, tmp_path).steps == (0, 1, 2)


def changed(name: str, value: torch.Tensor | None) -> dict[int, dict[str, torch.Tensor]]:
    made = states()
    made[100] = {key: part for key, part in made[100].items() if key != name}
    if value is not None:
        made[100][name] = value
    return made


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ({}, "no checkpoint"),
        ([], "no checkpoints were given"),
        (changed("0.bias", None), "lacks .*0.bias"),
        (changed("3.bias", torch.zeros(2)), "names .*3.bias"),
        (changed("0.bias", torch.zeros(5)), "shape"),
        (changed("0.bias", torch.full((4,), torch.nan)), "NaN or infinite in 0.bias"),
        ([states(3), states(2)], "differ in steps"),
        ({-1: states()[100]}, "-1 for a step"),
        ({0: "nowhere.safetensors"}, "nowhere.safetensors' cannot be read"),
    ],
)
def test_bad_input(checkpoints, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        course(network(), squared_error, DATA, checkpoints)


@pytest.mark.parametrize(
    ("given", "message"), [(None, "NoneType"), (5, "int"), ([5], "int"), ([network()], "Sequential")]
)
def test_what_is_no_checkpoint_is_refused(given: Any, message: str) -> None:
    separate: Any = unwrap(checkpoints._separate)  # tests hold types that users pass by
    with pytest.raises(BadInput, match=f"{message}: pass a folder"):
        separate(given)


def test_what_are_no_weights_is_refused() -> None:
    fitted: Any = unwrap(checkpoints._fitted)
    with pytest.raises(BadInput, match="step 3 is Sequential"):
        fitted(network(), network(), 3)
    with pytest.raises(BadInput, match=r"no tensor for .*0.weight"):
        fitted(network(), {name: value.numpy() for name, value in states()[0].items()}, 3)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        course(network(), squared_error, DATA, tmp_path / "nowhere")
    with pytest.raises(BadInput, match="holds no checkpoint"):
        course(network(), squared_error, DATA, tmp_path)
    (tmp_path / "parts" / "checkpoint-100").mkdir(parents=True)
    written(tmp_path / "parts", "checkpoint-{}/model.safetensors")
    (tmp_path / "parts" / "checkpoint-300").mkdir()
    with pytest.raises(BadInput, match=r"checkpoint-300/model.safetensors' is missing"):
        course(network(), squared_error, DATA, tmp_path / "parts")
    written(tmp_path)
    save_file(states()[0], tmp_path / "other-100.safetensors")
    with pytest.raises(BadInput, match=r"other-100.safetensors' is a file"):
        course(network(), squared_error, DATA, tmp_path / "other-100.safetensors")
    with pytest.raises(BadInput, match="step 100 more than once"):
        course(network(), squared_error, DATA, tmp_path)
    with pytest.raises(BadInput, match="every=0"):
        watch(network(), tmp_path, every=0)
    with pytest.raises(BadInput, match="is a file"):
        watch(network(), tmp_path / "other-100.safetensors", every=1)


def test_a_loss_to_the_anchor_has_no_curve() -> None:
    with pytest.raises(BadInput, match="sampled="):
        course(network(), "squared_distance_to_anchor", DATA, states())
