"""The recipe of removal by fine-tuning: which norm goes when, and how the model is trained meanwhile."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from assay.errors import BadInput

Group = Literal["mlp", "qk", "v", "other", "final", "tokens", "positions"]
ORDER: tuple[Group, ...] = ("mlp", "qk", "v", "other", "final", "tokens", "positions")

SEEDS = 2**40
"""Each step's generator has a seed of its own, made of this one and the step; it has to fit in 63 bits."""


class Event(NamedTuple):
    """Something that is taken away.

    Attributes:
        group: of the recipe's order: whose norm goes, or which special case of all norms ends.
        norm: name of the norm; empty for a special case.
    """

    group: Group
    norm: str

    @property
    def name(self) -> str:
        """What a person reads: ``qk of ln1.3``."""
        return f"{self.group} of {self.norm}" if self.norm else f"special {self.group}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How norms are removed by fine-tuning; defaults after Baroni et al. 2025, 2507.02559, for GPT-2 small.

    Attributes:
        steps: optimisation steps in all.
        rows: windows of text in a step.
        length: tokens of a window.
        learning_rate: after the warmup.
        final_learning_rate: at the last step, reached along a cosine.
        warmup: steps over which the learning rate rises from zero.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        order: what goes first: what MLPs read, what queries and keys read, what values read (and whatever cannot be
            told apart from them), any other norms, the final one; then special tokens and special positions lose the
            scales of their own. Empty for plain fine-tuning.
        start: the step of the first removal.
        gaps: steps after each removal, one for each group of the order, in which the loss has to recover.
        auxiliary: weight of the penalty on the spread of the last norm's scale over tokens.
        tolerance: nats a token by which the held-out loss may be above the best so far, and still has recovered.
        patience: steps beyond its gap that a removal is given to recover, before it is undone and the rest left.
        special_positions: positions whose scale is kept apart until the end.
        special_tokens: tokens whose scale is kept apart, likewise (the end of a text).
        momentum: of the running scale, for each step of 32 windows; of fewer, its root.
        held_out_rows: windows of the held-out text on which recovery is judged.
        seed: of the windows.
    """

    steps: int = 300
    rows: int = 8
    length: int = 64
    learning_rate: float = 6e-4
    final_learning_rate: float = 3e-4
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    order: tuple[Group, ...] = ORDER
    start: int = 20
    gaps: tuple[int, ...] = (2, 2, 3, 3, 2, 10, 10)
    auxiliary: float = 0.1
    tolerance: float = 0.1
    patience: int = 40
    special_positions: tuple[int, ...] = (0,)
    special_tokens: tuple[int, ...] = ()
    momentum: float = 0.9
    held_out_rows: int = 16
    seed: int = 0

    def plain(self) -> "Recipe":
        """The same training with every norm left alive: what a removal is compared with."""
        return dataclasses.replace(self, order=(), gaps=(), auxiliary=0.0)

    def rate(self, step: int) -> float:
        """The learning rate: a linear warmup, then a cosine."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * 0.5 * (
            1 + math.cos(math.pi * share)
        )

    def events(self, groups: Mapping[str, Sequence[Group]]) -> list[Event]:
        """What is taken away, in order.

        Args:
            groups: of what reads each norm, by its name, in the order of the forward pass.
        """
        specials = {"tokens": self.special_tokens, "positions": self.special_positions}
        found: list[Event] = []
        for group in self.order:
            found += [Event(group, norm) for norm, read in groups.items() if group in read]
            found += [Event(group, "")] if specials.get(group) else []
        return found

    def gap(self, group: Group) -> int:
        """Steps after a removal of a group."""
        return self.gaps[self.order.index(group)]

    def check(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            BadInput: naming the setting.
        """
        positive = (
            "steps",
            "rows",
            "length",
            "learning_rate",
            "clip",
            "patience",
            "held_out_rows",
            "tolerance",
        )
        for name in ("steps", "rows", "length", "warmup", "start", "patience", "held_out_rows", "seed"):
            if not isinstance(getattr(self, name), int):
                raise BadInput(f"{name}={getattr(self, name)}: give a whole number")
        for name in positive:
            if not getattr(self, name) > 0:
                raise BadInput(f"{name}={getattr(self, name)}: give a positive number")
        for name in ("final_learning_rate", "warmup", "weight_decay", "start", "auxiliary", "seed"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"{name}={getattr(self, name)}: give 0 or more")
        if self.seed >= SEEDS:
            raise BadInput(f"seed={self.seed}: give less than {SEEDS}")
        if len(set(self.order)) < len(self.order) or len(self.gaps) != len(self.order):
            raise BadInput(
                f"order={self.order} and gaps={self.gaps}: name each group once, with a gap for each"
            )
        if self.order and set(self.order) != set(ORDER):
            missing = sorted(set(ORDER) - set(self.order))
            raise BadInput(
                f"order={self.order} leaves out {', '.join(missing)}: a group that a model does not have costs "
                "nothing, so name all, or none for plain fine-tuning"
            )
        if any(gap < 1 for gap in self.gaps) or not 0 <= self.momentum < 1:
            raise BadInput("gaps must be at least 1 step each, momentum between 0 and 1")
        if any(not 0 <= position < self.length for position in self.special_positions):
            raise BadInput(f"special_positions={self.special_positions}: a window has {self.length} tokens")
