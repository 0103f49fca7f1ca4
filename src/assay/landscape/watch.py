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

import torch
from safetensors.torch import save
from torch import nn

from assay.errors import BadInput
from assay.landscape.checkpoints import LIST, listed_files, named_once
from assay.runs.files import write_atomically

if TYPE_CHECKING:
    from transformers import TrainerCallback


class Recorder:
    """Saves a module's weights as training goes on; make it with `watch`.

    A file appears whole or not at all, and the list of files after it, so that a killed training leaves a folder that
    can be read. Training goes forward: with each step that is saved, the list loses those from there on. So of a folder
    that held another training, or a later end of this one, nothing is mixed in; files are overwritten, not deleted.
    """

    def __init__(self, module: nn.Module, folder: Path, every: int) -> None:
        self._module, self._folder, self._every = module, folder, every
        self._files = listed_files(folder)

    def __call__(self, step: int) -> Path | None:
        """Save the weights if this step is one to be kept.

        Args:
            step: number of updates so far.

        Returns:
            The file, or None where the step is not kept.
        """
        return self.save(step) if _whole("step", step, 0) % self._every == 0 else None

    def save(self, step: int) -> Path:
        """Save the weights of this step, whether or not it is one to be kept.

        Raises:
            BadInput: the step is no whole number from 0 on.
        """
        name = f"step-{_whole('step', step, 0):09d}.safetensors"
        state, names = self._module.state_dict(), named_once(self._module)
        # copies, for a buffer may be a view of a weight
        kept = {
            each: state[each].detach().cpu().clone(memory_format=torch.contiguous_format)
            for each in dict.fromkeys(names.values())
        }
        path, content = self._folder / name, save(kept)
        write_atomically(path, content)
        self._files = {each: size for each, size in self._files.items() if each < name} | {name: len(content)}
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
        module: what is trained; of one that is compiled or in parallel, what is inside.
        folder: where the files go; it is made when missing. One that is there is gone on with from the first step
            that is saved; what it held from there on is no longer on its list.
        every: steps between checkpoints.

    Returns:
        A function of the step, to be called before each update; ``for_trainer()`` makes a callback of it.

    Raises:
        BadInput: ``every`` is no whole number above 0, what is watched is no module, the folder cannot be made, or
            its list is damaged.
    """
    given: Any = module
    if not isinstance(given, nn.Module):
        raise BadInput(f"{type(given).__name__} was passed to be watched: pass the module that is trained.")
    target, every = Path(folder), _whole("every", every, 1)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadInput(
            f"{str(error.filename)!r} is a file: pass the folder that checkpoints go to."
        ) from error
    return Recorder(_inside(module), target, every)


def _inside(module: nn.Module) -> nn.Module:
    """Give the module that `torch.compile` or one for several devices is wrapped around: its names are the user's."""
    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner: Any = module.module if parallel else getattr(module, "_orig_mod", None)
    return module if inner is None else _inside(inner)


def _whole(name: str, given: Any, least: int) -> int:
    if not hasattr(given, "__index__") or int(given) < least:
        raise BadInput(f"{name}={given!r}: expected a whole number, {least} or more.")
    return int(given)
