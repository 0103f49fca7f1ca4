"""What is sampled: a module's weights, a loss, and the data the loss is taken over."""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.landscape.examples import Data, tensors_of
from assay.landscape.losses import AnchorLoss, Loss, OutputLoss, Recomputed, find_loss, next_token, outputs_of
from assay.landscape.masks import described, flattened, mask_of
from assay.landscape.modes import eval_mode, own_mode
from assay.landscape.tokens import require_known, token_rows
from assay.models.entries import Entries, first_read
from assay.models.identity import architecture
from assay.models.model import Model

ROWS, TOKENS = 4096, 1024
"""Examples in one block of a pass over all of the data; of token ids, which make large outputs, so many tokens."""
WORK = 4e10
"""Parameters times examples (or tokens) of a pass over all of the data; where it would be more, some stand for all."""
PRECISE = (torch.float32, torch.float64)
"""In which chains can be walked: in bfloat16 the mean loss is a multiple of 0.016 at best, and small steps are lost."""
_TOO_COARSE = (
    "steps and losses would be lost to rounding. Load the model with dtype float32, or call module.float()."
)
KEPT = 2**28
"""Bytes of the anchor's outputs that are kept; more are computed anew for each batch."""


@dataclass(frozen=True, eq=False)
class Target:
    """A module at its anchor, a loss and data; make it with `target`.

    Attributes:
        module: the network; its present weights are the anchor. It is not changed.
        loss: of module and batch, one value for each example or token.
        data: tensors whose first axis counts the n examples, as the loss reads them.
        mask: which of the d sampled parameters move, (d,) bool; None lets all of them.
        source: what run folders call it.
        named_in_mask: the parameters a mask names, which alone are sampled; None where there is no mask.
        given: the data as they were given, where the loss reads others.
        model: the language model whose module it is, where it is one.
        thorough: whether looks at the anchor go through all of the data, whatever they cost.
        seeds: of what is random in the module, one for each time it is put to work; it then stays in its own mode. In
            eval mode when None.
    """

    module: nn.Module
    loss: Loss
    data: tuple[Tensor, ...]
    mask: Tensor | None
    source: str
    named_in_mask: frozenset[str] | None = None
    given: tuple[Tensor, ...] | None = None
    model: Model | None = None
    thorough: bool = False
    seeds: Iterator[int] | None = None

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.data[0])

    @property
    def d(self) -> int:
        """Number of sampled parameters."""
        return sum(value.numel() for value in self.parameters.values())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """In which precision."""
        return next(iter(self.parameters.values())).dtype

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is sampled: the parameters that require grad, by name, in the module's order.

        A parameter that several parts share is there once. With a mask those it does not name are left out, so
        that one head of a large model costs no more memory than its own matrices.
        """
        return {
            name: value
            for name, value in self.module.named_parameters()
            if value.requires_grad and (self.named_in_mask is None or name in self.named_in_mask)
        }

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector of all of them."""
        places, start = dict[str, slice](), 0
        for name, value in self.parameters.items():
            places[name] = slice(start, start + value.numel())
            start += value.numel()
        return places

    @cached_property
    def entries(self) -> Entries | None:
        """What enters the first block of a language model in which weights move, kept; None where passes are whole.

        What is kept takes no more memory than the module's weights.
        """
        if (
            self.model is None
            or self.model.anatomy is None
            or self.mask is None
            or self.seeds is not None
            or not _are_ids(self.data[0])
        ):
            return None
        moving = [
            self.parameters[name] for name, place in self.places.items() if bool(self.mask[place].any())
        ]
        layer = first_read(self.model, moving)
        if layer == 0:
            return None
        entries = Entries(self.model, layer, sum(value.nbytes for value in self.module.parameters()))
        return entries if entries.serves(self.data[0]) else None

    @property
    def moved(self) -> str:
        """Say what moves; see `assay.landscape.masks.described`."""
        return "everything" if self.mask is None else described(self.named(self.mask))

    @cached_property
    def looked_at(self) -> tuple[Tensor, ...]:
        """The data that a look at the anchor goes through: all, or of a large module evenly spaced examples."""
        inputs = self.data[0]
        each = sum(value.numel() for value in self.module.parameters()) * (
            inputs.shape[1] if _are_ids(inputs) else 1
        )
        count = max(1, min(self.n, int(WORK // each)))
        if self.thorough or count == self.n:
            return self.data
        rows = torch.linspace(0, self.n - 1, count, device=self.device).round().long()
        return tuple(part[rows] for part in self.data)

    @property
    def seen(self) -> int:
        """Number of examples that a look at the anchor goes through."""
        return len(self.looked_at[0])

    def blocks(self) -> Iterator[tuple[Tensor, ...]]:
        """Go through the data that are looked at, `seen` examples, in blocks that fit in memory."""
        rows = rows_at_once(self.data[0])
        return zip(*(part.split(rows) for part in self.looked_at), strict=True)

    @cached_property
    def anchor_loss(self) -> Tensor:
        """Mean loss at the anchor over the data that are looked at, (), float64."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.no_grad(), self.standing().evaluating():
            for number, batch in enumerate(self.blocks()):
                with explained(batch):
                    losses = self.loss(self.module, batch)
                self.require_finite(losses, number * rows_at_once(self.data[0]))
                total += losses.mean() * (len(batch[0]) / self.seen)
        return total

    def require_finite(self, losses: Tensor, before: int) -> None:
        """Refuse losses at the anchor that are not finite, of a block after so many of the examples looked at."""
        bad = ~losses.isfinite().reshape(len(losses), -1).all(1)
        if bool(bad.any()):
            first = before + int(bad.int().argmax())
            example = round(first * (self.n - 1) / max(1, self.seen - 1))
            raise BadInput(
                f"the loss of example {example} is NaN or infinite at the anchor: look at the weights and the data."
            )

    def paired(self, losses: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        """Take the chance of the batches out of losses, where the anchor's loss over all of the data is not known.

        Args:
            losses: of every chain on its batch, (chain,).
            batch: (chain, example, ...).

        Returns:
            What each chain's loss is above that of the anchor on the same batch, plus `anchor_loss`; its mean is that
            of the losses, since a batch is drawn after the place at which it is looked at. As given where the data are
            all looked at, and nothing in the module is random.
        """
        if self.seen == self.n and self.seeds is None:
            return losses
        with torch.no_grad(), self.evaluating():
            own = [
                self.loss(self.module, tuple(part[chain if len(part) > 1 else 0] for part in batch)).mean()
                for chain in range(len(losses))
            ]
        return losses - torch.stack(own) + self.anchor_loss

    def standing(self) -> "Target":
        """Give the same, whose randomness is always the same: to compare one place with another."""
        return self if self.seeds is None else replace(self, seeds=repeat(0))

    def anchor(self) -> Tensor:
        """Copy the present weights into one flat vector, (d,)."""
        return torch.cat([value.detach().flatten() for value in self.parameters.values()])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """View a flat vector (d,) as named parameters."""
        # split, and not one slice for each: its backward is one concatenation
        parts = flat.split([value.numel() for value in self.parameters.values()])
        return {
            name: part.view_as(value)
            for part, (name, value) in zip(parts, self.parameters.items(), strict=True)
        }

    def weight_hash(self) -> str:
        """Hash what decides where chains go: weights, buffers, which of them move, and how the module computes."""
        mask = [] if self.mask is None else [("mask", self.mask)]
        held = digest([*self.module.named_parameters(), *self.module.named_buffers(), *mask])
        parts = [held, architecture(self.module), *self.parameters]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def data_hash(self) -> str:
        """Hash the data."""
        return digest([(str(index), part) for index, part in enumerate(self.given or self.data)])

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Put the module into eval mode for a while, and every part of it back into its own mode after.

        Meanwhile passes begin where weights move; see `entries`. With `seeds` it stays in its own mode.
        """
        own = eval_mode(self.module) if self.seeds is None else own_mode(self.module, next(self.seeds))
        with own, self.entries.begun() if self.entries else nullcontext():
            yield


def target(
    module: nn.Module | Model,
    loss: Loss | str | None,
    data: Data,
    *,
    mask: Mapping[str, Tensor] | Tensor | str | None = None,
    source: str | None = None,
) -> Target:
    """Bring together what is sampled.

    Args:
        module: any network, or a model as `assay.load` gives it; its present weights are the anchor.
        loss: ``loss(module, batch)`` with one value for each example, (example,) or (example, token), or the name
            of one of `assay.landscape.losses`. A language model needs none: the next token's is taken.
        data: a tensor, a tuple of tensors of one length, a ``Dataset`` or a ``DataLoader`` (the examples of its
            sampler, as its ``collate_fn`` gives them; batches are drawn anew). For a loaded language model also a
            file of text or of tokens (:func:`assay.landscape.tokens.token_rows`).
        mask: parameter name -> bool tensor of its shape, true where it moves; parameters not named stay. Or one
            bool vector over all of them (:func:`assay.landscape.masks.flat_mask`), or words
            (:func:`assay.landscape.masks.named_mask`): ``"head.3.5"`` or ``"mlp.3"`` of a loaded language model,
            ``"layers.0.*"`` of any module.
        source: what run folders call it; where the model was loaded from, or the module's class, when not given.

    Raises:
        BadInput: no parameter requires grad, data on another device or of unequal lengths, a mask that does
            not fit, token ids outside the vocabulary, weights that are not finite or in half precision, or a loss that
            is not one finite value for each example, or cannot be taken of the data.
    """
    model = module if isinstance(module, Model) else None
    bare: object = model.module if model else module
    if not isinstance(bare, nn.Module):
        raise BadInput(
            f"the module is a {type(bare).__name__}: expected an nn.Module, or what `assay.load` gives."
        )
    source = source or (model.source if model else type(bare).__name__)
    if loss is None and (model is None or model.anatomy is None):
        raise BadInput(
            f"no loss was given, and {source} is no loaded language model: pass one, such as squared_error."
        )
    mask = mask_of(module, mask)
    if isinstance(data, str | Path):
        data = token_rows(_loaded(model, f"data={str(data)!r}"), data)
    tensors = tensors_of(data)
    if model and _are_ids(tensors[0]):
        require_known(model, tensors[0])
    loss = next_token if loss is None else find_loss(loss)
    made = Target(bare, loss, tensors, None, source, None if mask is None else frozenset(mask), model=model)
    _require(made, mask or {})
    made = replace(made, mask=None if mask is None else flattened(mask, made.parameters))
    if isinstance(loss, AnchorLoss):
        made = _bound(made, loss)
    try_loss(made)
    return made


def _loaded(model: Model | None, what: str) -> Model:
    if model is None:
        raise BadInput(
            f"{what} needs a language model from `assay.load` or `assay.wrap`: a bare module was passed."
        )
    return model


def _require(made: Target, mask: Mapping[str, Tensor]) -> None:
    """Refuse what cannot be sampled, before anything is computed."""
    movable = {name for name, value in made.module.named_parameters() if value.requires_grad}
    if not movable:
        raise BadInput(
            f"no parameter of {type(made.module).__name__} requires grad, so there is nothing to sample. Call "
            "module.requires_grad_(True), or only on the parts to be sampled."
        )
    if unknown := sorted(set(mask) - movable):
        raise BadInput(f"the mask names {unknown}; parameters that can move: {', '.join(sorted(movable))}.")
    if not made.parameters:
        raise BadInput("the mask names no parameter: set it true where weights are to be sampled.")
    if elsewhere := {str(part.device) for part in made.data if part.device != made.device}:
        raise BadInput(
            f"the module is on {made.device}, data on {', '.join(sorted(elsewhere))}: move one to the other."
        )
    if coarse := sorted(
        {str(value.dtype) for value in made.parameters.values() if value.dtype not in PRECISE}
    ):
        raise BadInput(f"weights that move are in {', '.join(coarse)}: {_TOO_COARSE}")
    if not all(bool(value.isfinite().all()) for value in made.module.parameters()):
        raise BadInput("the module's weights are NaN or infinite at the anchor: look at its training.")


def _bound(made: Target, loss: AnchorLoss) -> Target:
    """Give a loss to the anchor its anchor: outputs that are kept, or the weights that give them."""
    inputs = made.data[0]
    with torch.no_grad(), made.evaluating():
        first = outputs_of(made.module, inputs[:1])
        if first.numel() * first.element_size() * made.n > KEPT:
            # chains never write to the module's own weights
            here = {name: value.detach() for name, value in made.module.named_parameters()}
            return replace(made, loss=Recomputed(loss, here))
        # in the blocks in which the loss over all data is taken, so that it is zero there to the last bit
        kept = torch.cat([outputs_of(made.module, part) for part in inputs.split(rows_at_once(inputs))])
    return replace(made, loss=OutputLoss(loss.of), data=(inputs, kept), given=made.data)


def rows_at_once(inputs: Tensor) -> int:
    """Tell how many examples are gone through at once."""
    return max(1, min(ROWS, TOKENS // inputs.shape[1])) if _are_ids(inputs) else ROWS


def _are_ids(inputs: Tensor) -> bool:
    return inputs.ndim == 2 and not inputs.dtype.is_floating_point


def try_loss(made: Target) -> None:
    """Refuse a loss that is not one finite value for each example."""
    few = tuple(part[:2] for part in made.data)
    with torch.no_grad(), made.evaluating(), explained(few):
        values: Any = made.loss(made.module, few)
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.ndim not in (1, 2) or len(values) != len(few[0]):
        raise BadInput(
            f"the loss of {len(few[0])} examples has shape {shape}: expected one value for each "
            'example (or each token of each), before any mean. With torch losses pass reduction="none".'
        )
    if values.dtype not in PRECISE:
        raise BadInput(f"the loss is in {values.dtype}: {_TOO_COARSE}")
    made.require_finite(values, 0)


@contextmanager
def explained(batch: tuple[Tensor, ...]) -> Generator[None]:
    """Say of a loss that cannot be taken what it was called with.

    Args:
        batch: the examples it is taken of.

    Raises:
        BadInput: what the loss raised, and the shapes it was given.
    """
    try:
        yield
    except BadInput:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        shapes = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in batch)
        raise BadInput(
            f"the loss of {len(batch[0])} examples cannot be taken: {str(error).rstrip('.')}. It was called as "
            f"loss(module, batch), where batch is a tuple of {len(batch)}: {shapes}. Do the data have all that it "
            "reads, in the shapes and the range it expects? A loss of outputs and targets, as torch has them, is made "
            "one by `assay.landscape.losses.OutputLoss`."
        ) from error


def digest(parts: Iterable[tuple[str, Tensor]]) -> str:
    """Hash tensors by name: names, shapes, dtypes, bytes."""
    found = hashlib.sha256()
    for name, part in parts:
        found.update(f"{name} {tuple(part.shape)} {part.dtype}\n".encode())
        found.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
