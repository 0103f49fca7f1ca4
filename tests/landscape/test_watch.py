"""Trainings of one's own, watched by one line: a loop in plain PyTorch, and the Trainer of Hugging Face."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from assay.landscape.losses import next_token, squared_error
from assay.landscape.trajectory import trajectory
from assay.landscape.watch import watch
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
