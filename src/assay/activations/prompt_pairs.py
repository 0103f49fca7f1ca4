"""Pairs of prompts: text to token ids of one length, the two runs of a pair, and what patching one into the other does.

:class:`PairRuns` knows nothing of units, intervals or datasets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from assay.activations.divergence import kl_divergence, log_probabilities
from assay.activations.indifferent import indifferent_copy
from assay.activations.subject import answer_tokens
from assay.errors import BadInput
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, partial_forward, record

Prompts: TypeAlias = "str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]"
Metric = Literal["log_probability", "probability", "logit_difference", "kl_from_clean"]
Direction = Literal["denoise", "noise"]
Word = TypeVar("Word", bound=str)
NEEDS: dict[Metric, tuple[str, ...]] = {
    "log_probability": ("answer",),
    "probability": ("answer",),
    "logit_difference": ("answer", "foil"),
    "kl_from_clean": (),
}
"""What each metric cannot do without."""


@dataclass(frozen=True, eq=False)
class Gauge:
    """What is measured of logits at the last position.

    Attributes:
        metrics: which numbers.
        answer: token id of the answer; -1 where no metric needs one.
        foil: token id the logit difference is taken against; -1 where none needs one.
        final: the clean run's log-probabilities, (vocabulary,).
    """

    metrics: tuple[Metric, ...]
    answer: int
    foil: int
    final: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Measure.

        Args:
            logits: (..., vocabulary).

        Returns:
            (..., metric): the answer's log-probability and probability, its logit minus the foil's, and
            KL(clean || patched) in nats.
        """
        logs = log_probabilities(logits)
        answer = logs[..., self.answer]
        found = {
            "log_probability": answer,
            "probability": answer.exp(),
            "logit_difference": logits[..., self.answer].to(logs) - logits[..., self.foil].to(logs),
            "kl_from_clean": kl_divergence(self.final, logs),
        }
        return torch.stack([found[metric] for metric in self.metrics], -1)


@dataclass(frozen=True, eq=False)
class PairRuns:
    """The runs of one pair of prompts, one row each.

    Attributes:
        clean: the run on the clean prompt.
        corrupted: the run on the corrupted prompt.
        direction: ``denoise`` patches clean values into the corrupted run, ``noise`` the other way round.
        gauge: what is measured at the last position.
    """

    clean: Recording
    corrupted: Recording
    direction: Direction
    gauge: Gauge

    @property
    def base(self) -> Recording:
        """The run that is patched."""
        return self.corrupted if self.direction == "denoise" else self.clean

    @property
    def source(self) -> Recording:
        """The run that values come from."""
        return self.clean if self.direction == "denoise" else self.corrupted

    def of_run(self, run: Recording) -> Tensor:
        """The metrics of a run itself, (metric,)."""
        return self.gauge(run.readout(run.resid[-1][:, -1]))[0]

    def indifferent(self, model: Model, seed: int) -> Tensor:
        """Token ids of a copy of the base prompt between which and it there is nothing to find, (1, pos).

        Args:
            model: the decoder.
            seed: of the copy's tokens.
        """
        base, source = self.base.ids, self.source.ids
        return indifferent_copy(model, base, source, self.gauge, seed * 1_000_003)

    def patched(
        self, source: Recording, places: Sequence[tuple[str, int | None]], position: int, max_rows: int | None
    ) -> Tensor:
        """The metrics of the base run with one place of another run put in.

        Args:
            source: the run that values come from; it has recorded the sites.
            places: site and head, each patched alone.
            position: where.
            max_rows: most rows in one pass; ``None`` for what memory allows.

        Returns:
            (place, metric).
        """
        variants = []
        for site, head in places:
            value = source.sites[site][:, [position]]
            value = value if head is None else value[:, :, head]
            variants.append((SiteEdit(site, value, (position,), head),))
        return partial_forward(self.base, variants, self.gauge, max_rows=max_rows)[:, 0, 0]


def pair_runs(
    model: Model,
    pair: tuple[Tokens, Tokens],
    sites: Sequence[str],
    *,
    direction: Direction,
    metrics: tuple[Metric, ...],
    answer: int,
    foil: int,
    both: bool = False,
) -> PairRuns:
    """Run both prompts of a pair.

    Args:
        model: a decoder.
        pair: the clean and the corrupted prompt's token ids.
        sites: what the source run keeps.
        direction: which of the two is the source.
        metrics: what is measured.
        answer: token id of the answer, or -1.
        foil: token id of the foil, or -1.
        both: keep the sites of the run that is patched too.

    Returns:
        The runs.
    """
    denoise = direction == "denoise"
    clean = record(model, torch.tensor([pair[0]]), sites=sites if denoise or both else ())
    corrupted = record(model, torch.tensor([pair[1]]), sites=sites if not denoise or both else ())
    final = log_probabilities(clean.readout(clean.resid[-1][:, -1])[0])
    return PairRuns(clean, corrupted, direction, Gauge(metrics, answer, foil, final))


def words_of(given: Sequence[Word]) -> tuple[Word, ...]:
    """One word or several, as several: a bare word would be taken letter by letter.

    Args:
        given: a word, or some: names of components, of edges, of metrics.

    Returns:
        The words.
    """
    return (given,) if isinstance(given, str) else tuple(given)  # type: ignore[return-value]


def prompts_of(model: Model, given: Prompts, *, to_cut: bool = False) -> tuple[Tokens, ...]:
    """Token ids of one or several prompts.

    Args:
        model: gives the tokenizer.
        given: a text, several texts, token ids, or several prompts of token ids.
        to_cut: they are to be cut up, and may be longer than the context.

    Returns:
        The ids of each prompt.

    Raises:
        BadInput: no prompt, or an empty one.
    """
    if len(given) == 0:
        raise BadInput("no prompt was given: the list is empty")
    if isinstance(given, str) or all(isinstance(item, int) for item in given):
        return (model.tokens(given, to_cut=to_cut),)  # type: ignore[arg-type]
    return tuple(model.tokens(prompt, to_cut=to_cut) for prompt in given)  # type: ignore[arg-type]


def single_tokens(
    model: Model, prompts: Prompts, given: str | int | Sequence[str] | Sequence[int] | None, what: str
) -> Tokens:
    """The one token that answers each prompt.

    Args:
        model: gives the tokenizer.
        prompts: the clean prompts, as they were given.
        given: one answer for all, or one a prompt, as text with its leading space or as a token id.
        what: ``answer`` or ``foil``, for messages.

    Returns:
        One token id a prompt; empty where nothing was given.

    Raises:
        BadInput: another number of answers than prompts, or an answer of several tokens.
    """
    if given is None:
        return ()
    several = not isinstance(prompts, str) and not all(isinstance(item, int) for item in prompts)
    listed = list(prompts) if several else [prompts]
    answers = [given] * len(listed) if isinstance(given, str | int) else list(given)
    if len(answers) != len(listed):
        raise BadInput(
            f"{len(answers)} values of {what} for {len(listed)} pairs: give one for all, or one each"
        )
    found: list[int] = []
    for prompt, one in zip(listed, answers, strict=True):
        ids = answer_tokens(model, prompt, one) if isinstance(one, str) else model.tokens([one])  # type: ignore[arg-type]
        if len(ids) > 1:
            raise BadInput(
                f"the {what} {one!r} is {len(ids)} tokens, {model.token_texts(ids)}; the metric reads one "
                "position: give a single token"
            )
        found += ids
    return tuple(found)


def check_pairs(clean: Sequence[Tokens], corrupted: Sequence[Tokens]) -> None:
    """Refuse prompts whose positions cannot be paired.

    Args:
        clean: token ids of the clean prompts.
        corrupted: token ids of the corrupted prompts.

    Raises:
        BadInput: not as many of one as of the other, or different lengths.
    """
    if len(clean) != len(corrupted) or not clean:
        raise BadInput(f"{len(clean)} clean and {len(corrupted)} corrupted prompts: they come in pairs")
    lengths = sorted({len(row) for row in (*clean, *corrupted)})
    if len(lengths) > 1:
        raise BadInput(
            f"the prompts have {lengths} tokens; positions are paired, so that all need one length. Choose words of "
            "as many tokens (`model.tokens(text)` shows them)"
        )


def check_metrics(metrics: Sequence[Metric], pairs: int, given: Mapping[str, Tokens]) -> None:
    """Refuse metrics that cannot be measured with what was given.

    Args:
        metrics: what is measured.
        pairs: number of pairs.
        given: token ids under ``answer`` and ``foil``, empty for none.

    Raises:
        BadInput: no metric, one twice, one that needs an answer or a foil that is not there, or not one each.
    """
    if not metrics or len(set(metrics)) < len(metrics):
        raise BadInput(f"metrics={tuple(metrics)}: choose from {', '.join(NEEDS)}, each once")
    for what, ids in given.items():
        if ids and len(ids) != pairs:
            raise BadInput(f"{len(ids)} values of {what} for {pairs} pairs: give one each")
        needy = [metric for metric in metrics if what in NEEDS[metric]]
        if needy and not ids:
            raise BadInput(f"{', '.join(needy)} needs {what}=, and none was given")


def measurable(given: set[str]) -> tuple[Metric, ...]:
    """The metrics that can be measured.

    Args:
        given: what there is of ``answer`` and ``foil``.

    Returns:
        Their names.
    """
    return tuple(metric for metric, needed in NEEDS.items() if given.issuperset(needed))


def best_metric(answers: Sequence[int], foils: Sequence[int]) -> Metric:
    """The metric that is taken where none is asked for: logit difference, log-probability, or KL.

    Args:
        answers: token ids of the answers, empty for none.
        foils: token ids of the foils, empty for none.
    """
    if answers:
        return "logit_difference" if foils else "log_probability"
    return "kl_from_clean"
