"""What every measurement of pairs of prompts is given, and what it makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from assay.activations.circuits.node_scores import Contrast, contrast
from assay.activations.prompt_pairs import (
    Direction,
    Gauge,
    Metric,
    Prompts,
    check_metrics,
    check_pairs,
    prompts_of,
    single_tokens,
)
from assay.errors import BadInput
from assay.models.model import Model, Tokens
from assay.runs.measurement import Measurement

Answer = str | int | Sequence[str] | Sequence[int] | None


@dataclass(frozen=True, kw_only=True)
class Paired(Measurement):
    """A measurement of pairs of prompts.

    Attributes:
        clean: token ids of the clean prompts, one a pair.
        corrupted: token ids of the corrupted prompts, as many and as long.
        answers: token id of the answer, one a pair; empty where no metric needs one.
        foils: token the logit difference is taken against, one a pair; empty where no metric needs one.
        seed: of all that is drawn, 0 or more.
    """

    clean: tuple[Tokens, ...]
    corrupted: tuple[Tokens, ...]
    answers: Tokens = ()
    foils: Tokens = ()
    seed: int = 0

    @property
    def length(self) -> int:
        """Number of tokens of every prompt."""
        return len(self.clean[0])

    @property
    def few(self) -> dict[str, bool]:
        """What a standard error may be: one pair has none."""
        return {"allow_nan": True} if len(self.clean) == 1 else {}

    def pair(self, index: int) -> tuple[Tokens, Tokens]:
        """The clean and the corrupted prompt of a pair."""
        return self.clean[index], self.corrupted[index]

    def told_apart(self, index: int) -> tuple[int, int]:
        """A pair's answer and foil, -1 where there is none."""
        return self.answers[index] if self.answers else -1, self.foils[index] if self.foils else -1

    def contrast(
        self, model: Model, names: Sequence[str], index: int, *, direction: Direction, metric: Metric
    ) -> Contrast:
        """Run the source prompt of a pair, for slopes.

        Args:
            model: a decoder.
            names: of the sites that are kept.
            index: which pair.
            direction: which prompt is the source.
            metric: what is measured.
        """

        def gauge(final: Tensor) -> Gauge:
            return Gauge((metric,), *self.told_apart(index), final)

        return contrast(model, self.pair(index), names, direction=direction, gauge=gauge)

    def described(self, model: Model) -> dict[str, Any]:
        """Attributes of a dataset: the model, the number of pairs, and the first of them in words."""
        return {
            "model": model.source,
            "pairs": len(self.clean),
            "answer": model.token_texts(self.answers[:1])[0] if self.answers else "",
            "foil": model.token_texts(self.foils[:1])[0] if self.foils else "",
        }

    def check_settings(self, metrics: Sequence[Metric]) -> None:
        """Refuse prompts that do not pair, and metrics that cannot be measured.

        Args:
            metrics: what is measured.

        Raises:
            BadInput: different lengths or numbers of prompts, a metric without its answer or foil, or a negative seed.
        """
        if self.seed < 0:
            raise BadInput(f"seed={self.seed}: give 0 or more")
        check_pairs(self.clean, self.corrupted)
        check_metrics(metrics, len(self.clean), {"answer": self.answers, "foil": self.foils})


class Given(TypedDict):
    """The settings of :class:`Paired`."""

    clean: tuple[Tokens, ...]
    corrupted: tuple[Tokens, ...]
    answers: Tokens
    foils: Tokens


def paired(model: Model, clean: Prompts, corrupted: Prompts, answer: Answer, foil: Answer) -> Given:
    """Read prompts, answers and foils as a verb is given them.

    Args:
        model: gives the tokenizer.
        clean: a prompt, or several, as text or token ids.
        corrupted: likewise.
        answer: for all pairs, or one each.
        foil: likewise.

    Returns:
        The settings.

    Raises:
        BadInput: no prompt, or an answer that is no single token.
    """
    return {
        "clean": prompts_of(model, clean),
        "corrupted": prompts_of(model, corrupted),
        "answers": single_tokens(model, clean, answer, "answer"),
        "foils": single_tokens(model, clean, foil, "foil"),
    }
