"""Watching a training loop of one's own: checkpoints as safetensors in a folder, from one line.

::

    recorder = assay.watch(module, "checkpoints", every=100)
    for step in range(steps):
        recorder(step)
        ...

    Trainer(..., callbacks=[assay.watch(model, "checkpoints", every=100).for_trainer()])
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import nn

from assay.errors import BadInput
from assay.landscape.checkpoints import LIST, named_once
from assay.runs.files import write_atomically

if TYPE_CHECKING:
    from transformers import TrainerCallback


class Recorder:
    """Saves a module's weights as training goes on; make it with `watch`.

    A file appears whole or not at all, and the list of files after it, so that a killed training leaves a folder that
    can be read. A step that is there already is written anew.
    """

    def __init__(self, module: nn.Module, folder: Path, every: int) -> None:
        self._module, self._folder, self._every = module, folder, every
        folder.mkdir(parents=True, exist_ok=True)
        index = folder / LIST
        self._files: dict[str, int] = (
            json.loads(index.read_text(encoding="utf-8"))["files"] if index.exists() else {}
        )

    def __call__(self, step: int) -> Path | None:
        """Save the weights if this step is one to be kept.

        Args:
            step: number of updates so far.

        Returns:
            The file, or None where the step is not kept.
        """
        return self.save(step) if step % self._every == 0 else None

    def save(self, step: int) -> Path:
        """Save the weights of this step, whether or not it is one to be kept."""
        state, names = self._module.state_dict(), named_once(self._module)
        kept = {name: state[name].detach().cpu().contiguous() for name in dict.fromkeys(names.values())}
        path, content = self._folder / f"step-{step:09d}.safetensors", save(kept)
        write_atomically(path, content)
        self._files[path.name] = len(content)
        write_atomically(self._folder / LIST, json.dumps({"files": self._files}, indent=1).encode())
        return path

    def for_trainer(self) -> "TrainerCallback":
        """Give a callback for the Trainer of Hugging Face, which saves at the beginning and after its steps."""
        from transformers import TrainerCallback

        recorder = self

        class Watching(TrainerCallback):
            """Saves the weights of the watched module."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                recorder(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                recorder(state.global_step)

        return Watching()


def watch(module: nn.Module, folder: str | Path, *, every: int) -> Recorder:
    """Watch a training loop: save the module's weights at every so many steps.

    Args:
        module: what is trained.
        folder: where the files go; it is made when missing, and continued when not.
        every: steps between checkpoints.

    Returns:
        A function of the step, to be called before each update; ``for_trainer()`` makes a callback of it.

    Raises:
        BadInput: when ``every`` is not above 0, or the folder is a file.
    """
    target = Path(folder)
    if every < 1:
        raise BadInput(f"every={every}: keep every step (1), or every so many.")
    if target.exists() and not target.is_dir():
        raise BadInput(f"{str(target)!r} is a file: pass the folder that checkpoints go to.")
    return Recorder(module, target, every)
