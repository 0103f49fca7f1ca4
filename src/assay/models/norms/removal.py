r"""Removal of norms by fine-tuning: one after the other, while the model is trained, until none looks at its input.

Readers go in the recipe's order (Heimersheim 2024, 2409.13710; Baroni et al. 2025, 2507.02559): what MLPs read, what
queries and keys read, what values read, the final norm, one layer at a time. Each is from then on served by division by
a constant of its own, the running scale of its norm, which stands still from its removal on; first positions and
end-of-text tokens keep a scale of their own until the end. The loss is the next token's, plus

.. math:: w \,\frac1N \sum_t \bigl(\sigma_t - \bar\sigma_{\text{ordinary}}\bigr)^2

for the final norm's scale, which holds the special tokens' norms down. A removal from which the held-out loss does not
recover is undone, and the rest of the norms stay; so is a training that diverges before any. Every step's windows are
drawn by a generator of its own, and the state is written as the training goes on: killed and started again, it ends
with the same bits.

Two faults of the published code are not repeated: there the special scale of position 0 was held in a vector over
hidden units, and so went to unit 0; and a norm without bias was not centred and not scaled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.model import Model
from assay.models.norms.finding import Norm, find_norms
from assay.models.norms.folding import copied_model, renamed
from assay.models.norms.recipe import Event, Recipe
from assay.models.norms.removable import RemovableNorm, Step, make_removable, settle
from assay.models.norms.removal_state import Progressed, StateFolder

SAVE_EVERY = 25
"""Steps after which the held-out loss is noted, and the state written."""
WAIT = 5
"""Steps after which a loss that has not recovered is looked at again."""
DIVERGED = "the training, which diverged"


@dataclass(frozen=True, eq=False)
class Removal:
    """What became of a model.

    Attributes:
        model: the trained copy, named as such: its removed norms divide by a constant, the others are alive.
        removed: the step at which each reader's norm was taken away, in order (``qk of ln1.3``); of a norm only where
            all that reads it has followed.
        constants: what each of these readers' norm divides by, at ordinary tokens.
        stopped: what was undone because the loss did not recover, a removal or ``the training, which diverged``; empty
            where all went well.
        loss_before: held-out loss of the model given, nats a token.
        loss_after: of the copy.
        history: step and held-out loss, whenever it was judged.
    """

    model: Model
    removed: Mapping[str, int]
    constants: Mapping[str, float]
    stopped: str
    loss_before: float
    loss_after: float
    history: tuple[tuple[int, float], ...]


def remove_by_fine_tuning(
    model: Model,
    tokens: Tensor,
    held_out: Tensor,
    *,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Removal:
    """Remove a model's norms while fine-tuning it.

    Args:
        model: a decoder; it is copied, not changed.
        tokens: token ids of the text to train on, (token,).
        held_out: token ids of other text, by which recovery is judged, (token,).
        recipe: what goes when; ``recipe.plain()`` is the fine-tuning to compare with.
        folder: where the state is kept, and found again after a kill; ``None`` to keep none.
        progress: told steps done and steps in all.

    Returns:
        The copy and how it went.

    Raises:
        BadInput: a setting out of range, too little text or none of the model's tokens, a model in half precision or
            without a finite loss, norms that cannot be trained away, or a folder of another fine-tuning.
    """
    recipe = recipe or Recipe()
    recipe.check()
    if recipe.length > (model.context_length or recipe.length):
        raise BadInput(f"length={recipe.length}: {model.source} was built for {model.context_length} tokens")
    if model.dtype not in (torch.float32, torch.float64):
        raise BadInput(f"{model.source} is in {model.dtype}: small steps are lost in it; load it in float32")
    _check_text("tokens", tokens, recipe.length + 1, model)
    _check_text("held_out", held_out, recipe.held_out_rows * recipe.length + 1, model)
    _check_ids("special_tokens", torch.tensor(recipe.special_tokens, dtype=torch.long), model)
    with ExitStack() as stack:
        training = _Training.begin(model, recipe, stack)
        kept = None if folder is None else StateFolder.of(Path(folder), model, recipe, tokens, held_out)
        if kept is not None:
            kept.restore(training.state, training.model.module, training.optimizer)
        training.run(tokens, held_out, kept, progress or (lambda done, of: None))
    settled = settle(training.model, training.norms, training.made, training.special_positions())
    return training.result(model, held_out, settled)


@dataclass(eq=False)
class _Training:
    """A fine-tuning under way."""

    model: Model
    recipe: Recipe
    norms: list[Norm]
    made: dict[str, RemovableNorm]
    step: Step
    events: list[Event]
    optimizer: torch.optim.AdamW
    state: Progressed = field(default_factory=Progressed)

    @classmethod
    def begin(cls, model: Model, recipe: Recipe, stack: ExitStack) -> "_Training":
        """Copy the model and make its norms removable."""
        copied = copied_model(model)
        copied.module.requires_grad_(True)
        norms = [norm for norm in find_norms(copied) if not norm.is_fixed]
        if not norms:
            raise BadInput(f"{model.source} has no norm that is alive: there is nothing to remove")
        step = Step(torch.zeros(1, recipe.length, dtype=torch.bool, device=copied.device))
        made = make_removable(copied, norms, step, stack)
        events = recipe.events({name: own.groups for name, own in made.items()})
        optimizer = torch.optim.AdamW(copied.module.parameters(), weight_decay=recipe.weight_decay, lr=0.0)
        return cls(copied, recipe, norms, made, step, events, optimizer)

    def run(
        self,
        tokens: Tensor,
        held_out: Tensor,
        kept: "StateFolder | None",
        progress: Callable[[int, int], None],
    ) -> None:
        """Train to the last step, removing norms on the way, or until a removal cannot be recovered from."""
        state, recipe = self.state, self.recipe
        self._obey()
        if not state.history:
            if not math.isfinite(loss := self._judge(held_out)):
                raise BadInput(f"the held-out loss of {self.model.source} is {loss}, before any training")
            state.next_at = recipe.start if self.events else recipe.steps
            state.undo = self._weights()
        while state.step < recipe.steps and not state.stopped:
            if state.undo and state.step >= state.next_at:
                self._remove_next(held_out)
                if state.stopped:
                    break
            self._optimise(tokens)
            state.step += 1
            progress(state.step, recipe.steps)
            if state.step % SAVE_EVERY or state.step == recipe.steps:
                continue
            self._judge(held_out)
            if kept is not None:
                kept.save(state, self.model.module, self.optimizer)
        if not state.finished:
            self._finish(held_out)
            if kept is not None:
                kept.save(state, self.model.module, self.optimizer)

    def special_positions(self) -> tuple[int, ...]:
        """Positions whose scale is still kept apart."""
        left = Event("positions", "") in self.events[self.state.done :]
        return self.recipe.special_positions if left else ()

    def result(self, given: Model, held_out: Tensor, settled: Sequence[str]) -> Removal:
        """What became of the model, judged as it will be used."""
        self.optimizer.zero_grad()
        state, done = self.state, "fine-tuned with its norms"
        if self.events:
            count = "" if len(settled) == len(self.made) else f"{len(settled)} of {len(self.made)} "
            done = f"its {count}norms removed by fine-tuning"
        changed = renamed(Model(self.model.module, given.tokenizer, self.model.anatomy, given.source), [done])
        with torch.no_grad():
            after = float(_loss(changed, self._windows(held_out)))
        taken = zip(self.events, state.taken, strict=False)  # those of them that are done
        removed = {event: step for event, step in taken if not event.norm or event.norm in settled}
        constants = {e.name: self.made[e.norm].constant(e.group) for e in removed if e.norm}
        names, history = {event.name: step for event, step in removed.items()}, tuple(state.history)
        return Removal(changed, names, constants, state.stopped, history[0][1], after, history)

    def _remove_next(self, held_out: Tensor) -> None:
        """Take the next thing away if the loss has recovered from the last; wait, or undo that one, if not."""
        state = self.state
        loss = self._judge(held_out)
        if self._lost(loss):
            began = state.taken[-1] if state.done else 0
            gap = self.gap_of(state.done - 1) if state.done else self.recipe.start
            if state.step - began > gap + self.recipe.patience:
                self._undo()
            state.next_at = state.step + WAIT
            return
        state.best = min(state.best, loss)
        state.undo = {}
        if state.done == len(self.events):
            return
        state.undo = self._weights()
        state.taken.append(state.step)
        state.next_at = state.step + self.gap_of(state.done - 1)
        self._obey()

    def gap_of(self, index: int) -> int:
        """Steps in which the loss has to recover from an event."""
        return self.recipe.gap(self.events[index].group)

    def _weights(self) -> dict[str, Tensor]:
        """What to go back to."""
        return {name: tensor.clone() for name, tensor in self.model.module.state_dict().items()}

    def _lost(self, loss: float) -> bool:
        """Whether a loss is beyond the tolerance, or, with nothing to be removed, beyond all numbers."""
        recovered = not self.events or loss <= self.state.best + self.recipe.tolerance
        return not (recovered and math.isfinite(loss))

    def _undo(self) -> None:
        """Go back to before the last removal, or to the model given where there was none, and stop."""
        state = self.state
        state.stopped = self.events[state.done - 1].name if state.done else DIVERGED
        self.model.module.load_state_dict(state.undo)
        state.taken, state.undo = state.taken[:-1], {}
        self._obey()

    def _finish(self, held_out: Tensor) -> None:
        loss = self._judge(held_out)
        if self.state.undo and self._lost(loss):
            self._undo()
            self._judge(held_out)
        if not self.state.stopped and self.state.done < len(self.events):
            self.state.stopped = f"{self.events[self.state.done].name}, for want of steps"
        self.state.undo, self.state.finished = {}, True

    def _obey(self) -> None:
        """Set every norm to what has been taken away so far."""
        gone = self.events[: self.state.done]
        for name, own in self.made.items():
            own.gone = {event.group for event in gone if event.norm == name}

    def _special(self, ids: Tensor, *, all_of_them: bool = False) -> Tensor:
        """Tokens whose scale is still kept apart, or was so at first, (row, pos)."""
        gone = set() if all_of_them else {event.group for event in self.events[: self.state.done]}
        mask = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        if "positions" not in gone:
            mask[:, list(self.recipe.special_positions)] = True
        if "tokens" not in gone and self.recipe.special_tokens:
            mask |= torch.isin(ids, torch.tensor(self.recipe.special_tokens, device=ids.device))
        return mask

    def _optimise(self, tokens: Tensor) -> None:
        recipe, step = self.recipe, self.state.step
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        starts = torch.randint(len(tokens) - recipe.length, (recipe.rows,), generator=generator).tolist()
        ids = torch.stack([tokens[start : start + recipe.length + 1] for start in starts]).to(
            self.model.device
        )
        self.step.momentum = recipe.momentum ** (recipe.rows / 32)
        with torch.enable_grad():
            self.step.special = self._special(ids[:, :-1])
            loss = _loss(self.model, ids) + recipe.auxiliary * self._spread(ids[:, :-1])
            self.optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        self.optimizer.step()

    def _spread(self, ids: Tensor) -> Tensor:
        """Mean squared distance of the final norm's scale from its mean over ordinary tokens."""
        final = self.made.get("final_norm")
        if final is None or final.seen is None or not self.recipe.auxiliary:
            return torch.zeros((), device=self.model.device)
        sigma = final.seen[..., 0]
        ordinary = ~self._special(ids, all_of_them=True)
        return (sigma - sigma[ordinary].mean()).square().mean()

    def _judge(self, held_out: Tensor) -> float:
        """The held-out loss as the model is now, noted."""
        windows = self._windows(held_out)
        self.step.special, self.step.momentum = self._special(windows[:, :-1]), None
        with torch.no_grad():
            loss = float(_loss(self.model, windows))
        self.state.history.append((self.state.step, loss))
        if len(self.state.history) == 1:
            self.state.best = loss
        return loss

    def _windows(self, held_out: Tensor) -> Tensor:
        """Windows of the held-out text, each with its next token, (row, length + 1)."""
        length, rows = self.recipe.length, self.recipe.held_out_rows
        return held_out[: rows * length + 1].unfold(0, length + 1, length).to(self.model.device)


def _check_text(name: str, text: Any, least: int, model: Model) -> None:
    dtype = getattr(text, "dtype", None)
    if dtype != torch.long:
        given = type(text).__name__ if dtype is None else dtype
        raise BadInput(f"{name} is given as {given}: give token ids as a tensor of int64, (token,)")
    if text.ndim != 1 or len(text) < least:
        raise BadInput(f"{name} has the shape {tuple(text.shape)}: give one row of {least} ids or more")
    _check_ids(name, text, model)


def _check_ids(name: str, ids: Tensor, model: Model) -> None:
    outside = ids[(ids < 0) | (ids >= model.parts.vocabulary)]
    if len(outside):
        raise BadInput(
            f"{name} has the id {int(outside[0])}: {model.source} has tokens 0 to {model.parts.vocabulary - 1}"
        )


def _loss(model: Model, ids: Tensor) -> Tensor:
    """Mean loss of the next tokens of windows, (row, length + 1), nats a token."""
    logits = model.module(input_ids=ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
