"""The state of a fine-tuning under way: kept in a folder, complete at any moment, found again after a kill."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.identity import architecture
from assay.models.model import Model
from assay.models.norms.recipe import Recipe

RECORD = "state.json"


@dataclass
class Progressed:
    """How far a fine-tuning has come.

    Attributes:
        step: optimisation steps done.
        taken: the step of each event done.
        next_at: the step at which the next event is due.
        best: the lowest held-out loss from which a removal began.
        stopped: what was undone; empty where nothing was.
        finished: whether there is nothing left to do.
        history: step and held-out loss, whenever it was judged.
        undo: the weights before the last event, as long as the loss has not recovered from it; at first those given.
    """

    step: int = 0
    taken: list[int] = field(default_factory=list)
    next_at: int = 0
    best: float = float("inf")
    stopped: str = ""
    finished: bool = False
    history: list[tuple[int, float]] = field(default_factory=list)
    undo: dict[str, Tensor] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many events are done."""
        return len(self.taken)


@dataclass(frozen=True)
class StateFolder:
    """Where the state is kept: a record that names one file of tensors, replaced as one.

    Attributes:
        path: the folder.
        identity: of model, data and recipe.
    """

    path: Path
    identity: str

    @classmethod
    def of(cls, path: Path, model: Model, recipe: Recipe, tokens: Tensor, held_out: Tensor) -> "StateFolder":
        """The folder of one fine-tuning.

        Raises:
            BadInput: it holds the state of another one, or a damaged one, or is a file.
        """
        parts = [model.weight_hash(), architecture(model.module)]
        parts += [json.dumps(dataclasses.asdict(recipe), sort_keys=True)]
        parts += [
            hashlib.sha256(text.cpu().contiguous().numpy().tobytes()).hexdigest()
            for text in (tokens, held_out)
        ]
        folder = cls(path, hashlib.sha256("".join(parts).encode()).hexdigest())
        record = folder._record()
        if record is not None and record["identity"] != folder.identity:
            raise BadInput(
                f"{path} holds the state of another fine-tuning: of another model, text or recipe. Use another folder, "
                "or delete this one"
            )
        return folder

    def save(self, state: Progressed, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state; what was there before stays valid until this is complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        name = f"step-{state.step:06d}{'-end' if state.finished else ''}.safetensors"
        tensors = {f"weight/{key}": value for key, value in module.state_dict().items()}
        tensors |= {f"undo/{key}": value for key, value in state.undo.items()}
        moments: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
        tensors |= {
            f"optimizer/{index}/{key}": value
            for index, entry in moments.items()
            for key, value in entry.items()
        }
        save_file(
            {key: value.detach().contiguous().clone() for key, value in tensors.items()}, self.path / name
        )
        record = {"identity": self.identity, "tensors": name, **_plain(state)}
        partial = self.path / f"{RECORD}.partial"
        partial.write_text(json.dumps(record))
        os.replace(partial, self.path / RECORD)
        for other in self.path.glob("step-*.safetensors"):
            if other.name != name:
                other.unlink()

    def restore(self, state: Progressed, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Set everything to the state that is kept, if one is.

        Raises:
            BadInput: its tensors are not there, or cut short.
        """
        record = self._record()
        if record is None:
            return
        try:
            tensors = load_file(self.path / record["tensors"])
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from error
        for name in _plain(state):
            setattr(state, name, record[name])
        state.history = [(int(step), float(loss)) for step, loss in record["history"]]
        state.undo = _under("undo/", tensors)
        module.load_state_dict(_under("weight/", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def _record(self) -> dict[str, Any] | None:
        if self.path.is_file():
            raise BadInput(f"{self.path} is a file: the state is kept in a folder; give another path")
        if not (self.path / RECORD).exists():
            return None
        try:
            found = json.loads((self.path / RECORD).read_text())
            return {name: found[name] for name in ("identity", "tensors", *_plain(Progressed()))}
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> BadInput:
        return BadInput(f"the state in {self.path} is damaged ({error}): delete the folder and begin anew")


def _plain(state: Progressed) -> dict[str, Any]:
    names = (f.name for f in dataclasses.fields(state) if f.name != "undo")
    return {name: getattr(state, name) for name in names}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
