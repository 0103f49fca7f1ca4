"""Trainings of one's own, watched by one line: a loop in plain PyTorch, and the Trainer of Hugging Face."""

from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from assay.errors import BadInput
from assay.landscape.checkpoints import course
from assay.landscape.losses import next_token, squared_error
from assay.landscape.trajectory import trajectory
from assay.landscape.watch import Recorder, watch
from assay.zoo.training import linear

QUICK: dict[str, Any] = {
    "step_size": 1e-5,
    "chains": 2,
    "draws": 8,
    "burn_in": 2,
    "batch_size": 4,
    "window": 1,
}


def test_a_loop_in_plain_pytorch(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    module = nn.Sequential(linear(3, 8, generator=source), nn.Tanh(), linear(8, 2, generator=source))
    data = (torch.randn(40, 3, generator=source), torch.randn(40, 2, generator=source))
    updates, losses = torch.optim.Adam(module.parameters(), lr=0.05), dict[int, float]()
    recorder = watch(module, tmp_path, every=5)
    for step in range(16):
        recorder(step)
        loss = squared_error(module, data).mean()
        losses[step] = loss.item()
        updates.zero_grad()
        loss.backward()
        updates.step()
    for folder in (tmp_path, str(tmp_path)):
        found = trajectory(module, squared_error, data, folder, **QUICK).dataset
        assert found["step"].to_numpy().tolist() == [0, 5, 10, 15]
        assert found["loss"].to_numpy() == pytest.approx([losses[step] for step in (0, 5, 10, 15)], rel=1e-5)
    assert losses[15] < 0.9 * losses[0]


def test_a_second_training_into_the_same_folder_is_not_mixed_with_the_first(tmp_path: Path) -> None:
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    first, second = (linear(3, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    for step in (0, 10, 20, 30):
        watch(first, tmp_path, every=10).save(step)
    again = watch(second, tmp_path, every=10)
    again(10)  # gone on with, from there on
    made = course(second, squared_error, (inputs, inputs[:, :2]), tmp_path)
    assert made.steps == (0, 10)
    again(20)
    again(0)  # anew
    assert course(second, squared_error, (inputs, inputs[:, :2]), tmp_path).steps == (0,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, as it is compiled
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_compiled_or_parallel_is_saved_by_the_names_of_the_user(tmp_path: Path, wrap: Any) -> None:
    module = linear(3, 2, generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    watch(wrap(module), tmp_path, every=1).save(7)
    assert course(module, squared_error, (inputs, inputs[:, :2]), tmp_path).steps == (7,)


class Peculiar(nn.Module):
    """A buffer that is a view of a weight, and something beside tensors."""

    view: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("view", self.inner.weight.detach()[0])

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"seen": 3}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs)


def test_views_are_saved_and_what_is_no_tensor_is_left_out(tmp_path: Path) -> None:
    module = Peculiar()
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    watch(module, tmp_path, every=1).save(7)
    there = course(module, squared_error, (inputs, inputs[:, :2]), tmp_path)
    here = course(module, squared_error, (inputs, inputs[:, :2]), {7: module.state_dict()})
    assert there.weight_hash() == here.weight_hash()


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    module = linear(3, 2, generator=torch.Generator().manual_seed(0))
    wrong: list[Any] = [None, 0, "5", 2.0]
    watching: Any = unwrap(watch)  # tests hold types that users pass by
    for every in wrong:
        with pytest.raises(BadInput, match="every="):
            watching(module, tmp_path, every=every)
    for step in (5.0, -5, "5"):
        recorder: Any = watch(module, tmp_path, every=5)
        calls: list[Any] = [unwrap(Recorder.__call__), unwrap(Recorder.save)]
        for call in calls:
            with pytest.raises(BadInput, match="step="):
                call(recorder, step)
    with pytest.raises(BadInput, match="NoneType was passed"):
        watching(None, tmp_path, every=1)
    for folder in ("file", "file/below"):
        with pytest.raises(BadInput, match=f"{folder}' is a file"):
            watch(module, tmp_path / folder, every=1)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Token ids as Hugging Face's trainer reads them."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[number], "labels": self.ids[number]}


def test_the_trainer_of_hugging_face(make_tiny_llama, tmp_path: Path) -> None:
    model = make_tiny_llama(tie_word_embeddings=True)
    ids = torch.randint(0, 40, (12, 10), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    settings = TrainingArguments(
        output_dir=str(tmp_path / "own"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        Trainer(
            model.module,
            settings,
            train_dataset=Rows(ids),
            callbacks=[watch(model.module, tmp_path / "watched", every=2).for_trainer()],
        ).train()
    watched = trajectory(model, None, ids, tmp_path / "watched", sampled="kl_to_anchor", **QUICK).dataset
    assert watched["step"].to_numpy().tolist() == [0, 2, 4, 6]
    with torch.no_grad():
        model.module.eval()
        last = next_token(model.module, (ids,)).mean().item()
        model.module.load_state_dict(before)
        first = next_token(model.module, (ids,)).mean().item()
    assert float(watched["loss"][0]) == pytest.approx(first, rel=1e-5)
    assert float(watched["loss"][-1]) == pytest.approx(last, rel=1e-5)
    assert last < 0.9 * first
    assert bool(watched["at_minimum"].all())
    assert float(watched["llc"].min()) > 0
    # what the trainer saves by itself is read too, and is the same
    own = trajectory(model, None, ids, tmp_path / "own", sampled="kl_to_anchor", **QUICK).dataset
    assert own["step"].to_numpy().tolist() == [2, 4, 6]
    for name in ("loss", "llc"):
        assert_close(torch.tensor(own[name].to_numpy()), torch.tensor(watched[name][1:].to_numpy()))
