"""Checkpoints: a module at many steps of its training, in memory or as safetensors in a folder.

A folder holds a file for each step, whose name ends in the step (``step-000500.safetensors``), or a folder for each,
as Hugging Face's trainer leaves them (``checkpoint-500/model.safetensors``). Where `assay.watch` wrote it, its list
says which files belong to it.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.anchored import Group
from assay.landscape.gradients import LARGE, is_mapped, is_stack
from assay.landscape.losses import (
    AnchorLoss,
    Loss,
    OutputLoss,
    find_loss,
    outputs_of,
    squared_distance_to_anchor,
    squared_error,
)
from assay.landscape.target import Data, Target, digest, target, try_loss
from assay.models.model import Model

State = Mapping[str, Tensor]
Source = str | Path | Mapping[int, State | str | Path]
"""Where one run's checkpoints are: a folder, or step -> weights by name (or the file of them)."""
LIST = "checkpoints.json"
"""What `assay.watch` lists its files in: {"files": {name: bytes}}."""
_EXTRA = "_extra_state"  # what a module keeps beside tensors; no part of a checkpoint
KEPT = 2**25
"""Bytes of the outputs of one checkpoint up to which several are walked together in a loss to the anchor."""
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)(\d+)$")  # of loss-0.25, 25 is no step


@dataclass(frozen=True, eq=False)
class Course:
    """A module on its way through training, in one run or in several; make it with `course`.

    Attributes:
        plain: the module at the first checkpoint, the loss whose curve is drawn, and the data.
        sampled: the loss that is sampled, as it was given; None where it is the same.
        target: what is sampled, at the first checkpoint.
        steps: of training, ascending; those of every run.
        runs: for each run, the checkpoint of each step: a file, or weights.
        digest: hash of all weights, and of what is sampled.
        together: whether checkpoints differ in sampled weights alone and can be batched, so that they walk together.
    """

    plain: Target
    sampled: Loss | None
    target: Target
    steps: tuple[int, ...]
    runs: tuple[tuple[Path | State, ...], ...]
    digest: str
    together: bool

    @property
    def module(self) -> nn.Module:
        """The architecture, with the weights of the first checkpoint."""
        return self.plain.module

    @property
    def source(self) -> str:
        """What run folders call it."""
        return self.plain.source

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.plain.device

    @property
    def dtype(self) -> torch.dtype:
        """In which precision."""
        return self.plain.dtype

    def weight_hash(self) -> str:
        """Hash of the weights of every checkpoint, and of what is sampled and how it computes."""
        return self.digest

    def group(self, run: int, places: Sequence[int]) -> Group:
        """Give the checkpoints of a run at some steps (by their places), ready to be walked as one.

        Where they cannot be walked together there has to be one place; buffers are then taken along.
        """
        compared = isinstance(self.sampled, AnchorLoss)
        if self.together:
            rows = [
                torch.cat([weights[name].flatten() for name in self.plain.parameters])
                for weights in (self._weights(run, place) for place in places)
            ]
            return Group(self.plain, self.target, torch.stack(rows).to(self.device), compared)
        (place,) = places
        module, model = _loaded(self.plain.module, self.plain.model, self._weights(run, place))
        plain = replace(self.plain, module=module, model=model)
        return Group(plain, _alone(plain, self.sampled), None, compared)

    def _weights(self, run: int, place: int) -> State:
        return _fitted(self.plain.module, self.runs[run][place], self.steps[place])


def course(
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    checkpoints: Source | Sequence[Source],
    *,
    sampled: Loss | str | None = None,
    mask: Mapping[str, Tensor] | Tensor | str | None = None,
    source: str | None = None,
) -> Course:
    """Bring together a module and its checkpoints; every one of them is read once, and judged.

    Args:
        module: the architecture; its own weights play no part, and are left as they are.
        loss: whose curve is drawn, as `assay.landscape.target.target` takes it, and so ``data`` and ``mask``.
        data: see there.
        checkpoints: a folder, or step -> weights by name; several of these for several runs of the same steps.
        sampled: the loss that is sampled, where it is another one.
        mask: see there.
        source: what run folders call it; the module's class when not given.

    Raises:
        BadInput: a folder without checkpoints, a file that is missing, truncated or does not fit the module,
            weights that are not finite, runs of different steps, a loss to the anchor as the curve, or losses that
            are not one value for each example.
    """
    bare = module.module if isinstance(module, Model) else module
    assert isinstance(bare, nn.Module)
    if loss is not None and isinstance(find_loss(loss), AnchorLoss):
        raise BadInput(
            "a loss to the anchor is zero at every checkpoint, so it has no curve: pass the training loss, and this "
            "one as sampled=..."
        )
    runs = [_listed(each) for each in _separate(checkpoints)]
    steps = tuple(runs[0])
    for number, run in enumerate(runs[1:], start=1):
        if tuple(run) != steps:
            odd = sorted(set(run) ^ set(steps))[:5]
            raise BadInput(
                f"run {number} and run 0 differ in steps, for one in {odd}: all runs need the same."
            )
    model = module if isinstance(module, Model) else None
    first, there = _loaded(bare, model, _fitted(bare, runs[0][steps[0]], steps[0]))
    plain = target(there or first, loss, data, mask=mask, source=source)
    found = None if sampled is None else find_loss(sampled)
    if found is not None and not isinstance(found, AnchorLoss):  # one to the anchor is taken of outputs
        try_loss(replace(plain, loss=found))
    hashed, alike = _survey(plain, runs)
    together = alike and _walk_together(plain, found)
    made = _shared(plain, found) if together else _alone(plain, found)
    return Course(plain, found, made, steps, tuple(tuple(run.values()) for run in runs), hashed, together)


def _survey(plain: Target, runs: Sequence[Mapping[int, Path | State]]) -> tuple[str, bool]:
    """Read every checkpoint: give the hash of all, and whether they differ in sampled weights alone."""
    hashes, together = [plain.weight_hash()], True  # what is sampled, and how it computes
    before = plain.module.state_dict()
    rest = {name for name in named_once(plain.module).values() if name not in plain.parameters}
    for run in runs:
        for step, place in run.items():
            weights = _fitted(plain.module, place, step)
            together = together and all(torch.equal(weights[name], before[name]) for name in rest)
            hashes.append(digest((f"{step} {name}", value) for name, value in weights.items()))
    return hashlib.sha256("".join(hashes).encode()).hexdigest(), together


def _alone(plain: Target, loss: Loss | None) -> Target:
    """Give what is sampled at the weights of `plain`, where it is the only checkpoint."""
    if not isinstance(loss, AnchorLoss):
        return plain if loss is None else replace(plain, loss=loss)
    mask = None if plain.mask is None else plain.named(plain.mask)
    return target(plain.model or plain.module, loss, plain.data, mask=mask, source=plain.source)


def _shared(plain: Target, loss: Loss | None) -> Target:
    """Give what is sampled where checkpoints are walked together; examples are numbered for losses to the anchor."""
    if not isinstance(loss, AnchorLoss):
        return _alone(plain, loss)
    numbers = torch.arange(plain.n, device=plain.device)
    given = plain.given or plain.data
    made = replace(plain, loss=OutputLoss(loss.of), data=(plain.data[0], numbers), given=given)
    # the same of a stack's outputs, and differentiated by hand
    by_hand = loss is squared_distance_to_anchor and is_stack(made)
    return replace(made, loss=squared_error) if by_hand else made


def _walk_together(plain: Target, loss: Loss | None) -> bool:
    """Tell whether chains at several weights can be batched, with what they are compared with in memory."""
    if plain.d >= LARGE or not is_mapped(plain):
        return False
    if not isinstance(loss, AnchorLoss):
        return loss is None or is_mapped(_alone(plain, loss))
    with torch.no_grad(), plain.evaluating():
        first = outputs_of(plain.module, plain.data[0][:1])
    return first.nbytes * plain.n <= KEPT


_EXPECTED = "pass a folder, or a dictionary from step to weights"


def _separate(checkpoints: Source | Sequence[Source]) -> Sequence[Source]:
    given: Any = checkpoints
    one = isinstance(given, str | Path | Mapping)
    runs: list[Any] = [given] if one or not isinstance(given, Iterable) else list(given)
    if odd := [each for each in runs if not isinstance(each, str | Path | Mapping)]:
        raise BadInput(
            f"checkpoints={type(odd[0]).__name__}: {_EXPECTED}, or a list of these, one for each run."
        )
    if not runs:
        raise BadInput(f"no checkpoints were given: {_EXPECTED}.")
    return runs


def _listed(source: Source) -> dict[int, Path | State]:
    """Find the checkpoint of each step, in order."""
    if isinstance(source, Mapping):
        found: list[tuple[int, Path | State]] = [
            (step, Path(place) if isinstance(place, str) else place) for step, place in source.items()
        ]
        called = "the dictionary of checkpoints"
    else:
        folder = Path(source)
        called = f"the folder {str(folder)!r}"
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise BadInput(f"{str(folder)!r} {what}: pass the folder that holds the checkpoints.")
        found = [(_step(path), path) for path in _watched(folder) or _files(folder)]
    if not found:
        raise BadInput(
            f"{called} holds no checkpoint. Expected a file for each step, such as step-000500.safetensors, or a "
            "folder for each, such as checkpoint-500/model.safetensors."
        )
    steps = [step for step, _ in found]
    if odd := [step for step in steps if not hasattr(step, "__index__") or step < 0]:
        raise BadInput(f"{called} has {odd[0]!r} for a step: expected whole numbers from 0 on.")
    if len(set(steps)) < len(steps):
        twice = next(step for step in steps if steps.count(step) > 1)
        raise BadInput(f"{called} holds step {twice} more than once: keep one file for each step.")
    return dict(sorted(found, key=lambda pair: pair[0]))


def _files(folder: Path) -> list[Path]:
    """List a folder's own files, or where it has none, what Hugging Face's trainer left in folders of it."""
    whole = sorted(folder.glob("*.safetensors"))
    flat = [path for path in whole if _NUMBER.search(path.stem)]
    if flat and (odd := [path.name for path in whole if path not in flat]):
        raise BadInput(
            f"{odd[:5]} in {str(folder)!r} end in no step, and {len(flat)} others do: give them names such as "
            "step-000500.safetensors, or take them out."
        )
    if flat:
        return flat
    folders = [path for path in folder.iterdir() if path.is_dir() and _NUMBER.search(path.name)]
    files = [path / "model.safetensors" for path in folders]
    if missing := sorted(str(path) for path in files if not path.exists()):
        raise BadInput(
            f"the checkpoint {missing[0]!r} is missing, as training was killed while it was saved, or saved it in "
            "parts or in another format. Take that folder out, or save it anew as one safetensors file."
        )
    return files


def _step(path: Path) -> int:
    named = _NUMBER.search(path.stem) or _NUMBER.search(path.parent.name)
    assert named is not None  # `_files` gives no others
    return int(named[1])


def _watched(folder: Path) -> list[Path]:
    """List the files that a folder's list names; refuse one that is missing, or holds part of one."""
    files = listed_files(folder)
    for name, size in files.items():
        path = folder / name
        if not path.exists():
            raise BadInput(
                f"the checkpoint {str(path)!r} is missing: {LIST} names it. Copy it again, or take its line out."
            )
        if path.stat().st_size != size:
            raise BadInput(
                f"the checkpoint {str(path)!r} has {path.stat().st_size} bytes, not the {size} it was written with: "
                "it is truncated or was changed. Copy it again, or take its line and file out."
            )
    return [folder / name for name in files if _NUMBER.search(Path(name).stem)]


def listed_files(folder: Path) -> dict[str, int]:
    """Read the list that `assay.watch` keeps in a folder, name -> bytes; there are none where it keeps no list.

    Raises:
        BadInput: the list is damaged.
    """
    index = folder / LIST
    if not index.exists():
        return {}
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["files"]
        return {str(name): int(size) for name, size in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"the list {str(index)!r} cannot be read: {error}. Delete it to take what is there."
        ) from error


def _fitted(module: nn.Module, place: Path | State, step: int) -> dict[str, Tensor]:
    """Read one checkpoint under the module's own names, or say what does not fit."""
    called = f"the checkpoint {str(place)!r}" if isinstance(place, Path) else f"the checkpoint of step {step}"
    if isinstance(place, Path):
        try:
            place = load_file(place)
        except (SafetensorError, OSError) as error:
            raise BadInput(
                f"{called} cannot be read, most often as it is truncated: {error}. Copy it again."
            ) from error
    given: Any = place
    if not isinstance(given, Mapping):
        raise BadInput(
            f"{called} is {type(given).__name__}: pass weights by name, as module.state_dict() gives them."
        )
    kept = {name: value for name, value in given.items() if not str(name).endswith(_EXTRA)}
    if odd := [name for name, value in kept.items() if not isinstance(value, Tensor)]:
        raise BadInput(
            f"{called} has no tensor for {odd[:5]}: pass weights as module.state_dict() gives them."
        )
    place = cast("dict[str, Tensor]", kept)
    own, names = dict(module.state_dict()), named_once(module)
    if unknown := sorted(set(place) - set(names)):
        raise BadInput(f"{called} names {unknown[:5]}, which the module lacks: was it another architecture?")
    weights = {names[name]: value for name, value in place.items()}
    if missing := sorted(set(names.values()) - set(weights)):
        raise BadInput(
            f"{called} lacks {missing[:5]}: a checkpoint holds all of the module's weights and buffers."
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise BadInput(
                f"{called} has {name} of shape {tuple(value.shape)}, the module {tuple(own[name].shape)}: was it "
                "another width?"
            )
        if not bool(value.isfinite().all()):
            raise BadInput(f"{called} is NaN or infinite in {name}: training diverged; leave it out.")
    return {name: weights[name].to(own[name]) for name in own if name in weights}  # in the module's order


def named_once(module: nn.Module) -> dict[str, str]:
    """Give each name of the module's tensors the first name of the same one: tied weights have several."""
    first: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {
        name: first.setdefault(id(value), name) for name, value in state.items() if isinstance(value, Tensor)
    }


def _loaded(module: nn.Module, model: Model | None, weights: State) -> tuple[nn.Module, Model | None]:
    """Copy a module with other weights, and the model it is of: the parts that its anatomy names are the copy's."""
    copied, anatomy = copy.deepcopy((module, None if model is None else model.anatomy))
    copied.load_state_dict(weights, strict=False)
    return copied, None if model is None else replace(model, module=copied, anatomy=anatomy)
