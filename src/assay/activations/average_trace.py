r"""Average causal trace: where, over many facts, a restored state brings back the answer.

For each fact that the model answers right, a causal trace (:mod:`assay.activations.causal_trace`) gives the indirect
effect of every layer and position. Positions become roles: first, middle and last token of the subject, the next
token after it, those further on, and the last token of the prompt. With :math:`IE_f(k, r, l)` the mean effect over
the tokens of role r in fact f, for restoration k at layer l,

.. math:: AIE(k, r, l) = \frac{1}{|F_r|} \sum_{f \in F_r} IE_f(k, r, l)

over the facts :math:`F_r` that have such a token; the average total effect likewise. Intervals are Student's over
facts, which vary far more than noise samples of one fact. A subject of one token has a last token only, one of two
has no middle. Source: Meng, Bau, Andonian, Belinkov, "Locating and Editing Factual Associations in GPT", 2022,
figures 1 and 2.

Cost: that of one causal trace a fact.

Limits: the facts are those the model knows, so an average speaks of successful recall alone; and subjects of one
list share their kinds of names. The baseline is the same average over a few facts in an untrained twin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.causal_trace import CausalTrace
from assay.activations.material import Fact, facts_of
from assay.activations.material import facts as shipped_facts
from assay.activations.restoration import KINDS, Kind, embedding_scale
from assay.activations.subject import answer_tokens, subject_positions
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.model import Model
from assay.models.twin import untrained_twin
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

ROLES = ("first_subject", "middle_subject", "last_subject", "next", "further", "last")
ENOUGH = 30
"""Facts from which the mean's interval may be trusted, whatever the distribution of effects."""
BASELINE = 0.1


@dataclass(frozen=True, kw_only=True)
class AverageTrace(Measurement):
    """Where, over many facts, a restored state brings back the answer.

    Attributes:
        facts: subject, prompt and answer of each fact; the answer with its leading space.
        kinds: what is restored.
        noise: standard deviation of the noise, in units of an embedding entry's over a list of subjects.
        noise_samples: noise samples a fact.
        window: how many blocks' MLPs or attentions are restored together.
        baseline_facts: facts, spread over the list, that are also traced in an untrained twin; 0 for none.
        seed: of the noise, another for each fact, and of the twin.
    """

    name: ClassVar[str] = "average_trace"
    facts: tuple[tuple[str, str, str], ...]
    kinds: tuple[Kind, ...] = KINDS
    noise: float = 3.0
    noise_samples: int = 4
    window: int = 10
    baseline_facts: int = 3
    seed: int = 0

    def prepare(self, model: Model) -> float:
        """The spread of embedding entries, which scales the noise of every fact."""
        return embedding_scale(model)

    def plan(self, model: Model) -> Sequence[Unit]:
        """One unit a fact, and the untrained twin.

        Raises:
            BadInput: no facts, a subject that is not in its prompt, or a setting out of range.
        """
        if not self.facts:
            raise BadInput("no facts were given: pass some, or leave them out for those that come with Assay")
        if self.baseline_facts < 0:
            raise BadInput(f"baseline_facts={self.baseline_facts}: expected 0 or more")
        traces = [self._trace(model, index) for index in range(len(self.facts))]
        for trace in traces:
            roles(trace.subject, len(trace.tokens))  # refuses a subject that stands in several places
        costs = [sum(unit.cost for unit in trace.plan(model)) for trace in traces]
        units = [Unit(f"fact-{i:04d}", {"fact": i}, cost=cost) for i, cost in enumerate(costs)]
        if self.baseline_facts:
            chosen = spread(len(self.facts), self.baseline_facts)
            units.append(Unit("untrained", {"facts": chosen}, cost=sum(costs[i] for i in chosen)))
        return units

    def measure(self, model: Model, unit: Unit, shared: float) -> Pieces:
        """Trace one fact, if the model answers it right, or some facts in the untrained twin."""
        if "fact" in unit.detail:
            return self._traced(model, unit.detail["fact"], shared, only_known=True)
        twin = untrained_twin(model, seed=self.seed)
        traced = [self._traced(twin, i, shared, only_known=False) for i in unit.detail["facts"]]
        return {name: torch.stack([one[name] for one in traced]) for name in ("effect", "total")}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Average over the facts that count, role by role."""
        measured = [piece for name, piece in pieces.items() if name != "untrained"]
        known = np.array([bool(piece["known"]) for piece in measured])
        effect = np.stack([piece["effect"].double().numpy() for piece in measured])[known]
        total = np.stack([piece["total"].double().numpy() for piece in measured])
        counts = np.isfinite(effect[:, 0, :, 0]).sum(
            0
        )  # a role's effect is NaN in a fact without such a token
        parts = ("", "_stderr", "_low", "_high")
        cell, few = ("kind", "role", "layer"), {"allow_nan": True}
        over_roles = [_over_facts(effect[:, :, role]) for role in range(len(ROLES))]
        averages = np.stack([np.stack(role) for role in over_roles], 2)  # part, kind, role, layer
        totals = _over_facts(total[known])
        variables: dict[str, Any] = {
            **{f"average_indirect_effect{part}": (cell, averages[i], few) for i, part in enumerate(parts)},
            **{f"average_total_effect{part}": ((), float(totals[i]), few) for i, part in enumerate(parts)},
            "n_facts": (("role",), counts),
            "n_known": ((), int(known.sum())),
            "n_not_known": ((), int((~known).sum())),
            "known": (("fact",), known),
            "total_effect": (("fact",), total, few),
        }
        if self.baseline_facts:
            other = pieces["untrained"]
            roles = [_over_facts(other["effect"].double().numpy()[:, :, r])[0] for r in range(len(ROLES))]
            variables["baseline_average_indirect_effect"] = (cell, np.stack(roles, 1), few)
            variables["baseline_average_total_effect"] = ((), float(other["total"].double().mean()))
        coords = {
            "kind": list(self.kinds),
            "role": list(ROLES),
            "layer": np.arange(model.n_layers),
            "fact": np.arange(len(self.facts)),
            "prompt": ("fact", [prompt for _, prompt, _ in self.facts]),
            "answer": ("fact", [answer for _, _, answer in self.facts]),
        }
        attributes = {"model": model.source, "noise": self.noise, "window": self.window}
        return xr.Dataset(variables, coords, attributes)

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Enough facts count, corruption destroys them, and the untrained twin shows none of it."""
        return [
            _facts(dataset),
            _corrupted(dataset),
            *([_baseline(dataset)] if "baseline_average_indirect_effect" in dataset else []),
        ]

    def memory(self, model: Model) -> int:
        """That of the longest fact's trace, and the twin's weights."""
        longest = max(range(len(self.facts)), key=lambda i: len(self._trace(model, i).tokens))
        weights = sum(p.numel() * p.element_size() for p in model.module.parameters())
        return self._trace(model, longest).memory(model) + (weights if self.baseline_facts else 0)

    def _trace(self, model: Model, index: int, sigma: float | None = None) -> CausalTrace:
        subject, prompt, answer = self.facts[index]
        return CausalTrace(
            tokens=model.tokens(prompt),
            subject=subject_positions(model, prompt, subject),
            answer=answer_tokens(model, prompt, answer),
            noise=self.noise,
            sigma=sigma,
            noise_samples=self.noise_samples,
            kinds=self.kinds,
            window=self.window,
            baseline_samples=0,
            seed=self.seed * 1_000_003 + index,
        )

    def _traced(self, model: Model, index: int, sigma: float, *, only_known: bool) -> Pieces:
        """Whether a fact is known, its total effect, and its effects by role, (kind, role, layer)."""
        trace = self._trace(model, index, sigma)
        runs = trace.prepare(model)
        known = runs.final.argmax(-1).tolist() == list(runs.answer)
        effect = torch.full((len(self.kinds), len(ROLES), model.n_layers), torch.nan)
        if only_known and not known:
            return {"known": torch.tensor(False), "effect": effect, "total": torch.tensor(torch.nan)}
        corrupted = runs.of_run(runs.corrupted)[:, 0]
        places = roles(trace.subject, len(trace.tokens))
        for k, kind in enumerate(self.kinds):
            for role, positions in enumerate(places.values()):
                if positions:
                    cells = [self._effect(runs.of_cells(kind, p, None), corrupted) for p in positions]
                    effect[k, role] = torch.stack(cells).mean(0)
        total = runs.of_run(runs.clean)[0, 0] - corrupted.mean()
        return {"known": torch.tensor(known), "effect": effect, "total": total}

    @staticmethod
    def _effect(restored: Tensor, corrupted: Tensor) -> Tensor:
        """The effect on the probability at each layer, averaged over the samples, (layer,)."""
        return (restored[..., 0] - corrupted).mean(-1).cpu()


def roles(subject: Sequence[int], length: int) -> dict[str, list[int]]:
    """Sort the positions from the subject on by role.

    Args:
        subject: positions of the subject's tokens, ascending.
        length: tokens of the prompt.

    Returns:
        Role to positions; a subject of one token has a last one only, and a prompt that ends with its subject
        has nothing after it.

    Raises:
        BadInput: the subject stands in several places.
    """
    first, end = subject[0], subject[-1] + 1
    if list(subject) != list(range(first, end)):
        raise BadInput(
            f"the subject stands at positions {tuple(subject)}: for token roles it has to stand in one place"
        )
    found = {
        "first_subject": [first] if end - first > 1 else [],
        "middle_subject": list(range(first + 1, end - 1)),
        "last_subject": [end - 1],
        "next": [end] if end < length - 1 else [],
        "further": list(range(end + 1, length - 1)),
        "last": [length - 1] if end < length else [],
    }
    return {role: found[role] for role in ROLES}


def average_causal_trace(  # noqa: PLR0913 (a promised signature)
    model: Model,
    facts: str | Sequence[Fact] | None = None,
    *,
    kinds: Sequence[Kind] = KINDS,
    noise: float = 3.0,
    noise_samples: int = 4,
    window: int = 10,
    seed: int = 0,
    max_facts: int | None = None,
    baseline_facts: int = 3,
    **run: Unpack[RunOptions],
) -> Result:
    """Find where, over many facts, a restored state brings back the answer.

    Args:
        model: a decoder with its tokenizer.
        facts: subjects, prompts and answers, or a JSON list of such objects as text; by default those that come
            with Assay, which SmolLM2 knows.
        kinds: ``state``, ``mlp``, ``attn``, ``state_mlp_severed``, ``state_attn_severed``.
        noise: standard deviation of the noise, in units of an embedding entry's over a list of subjects.
        noise_samples: noise samples a fact.
        window: blocks restored together, for ``mlp`` and ``attn``; no more than there are, by default.
        seed: of the noise and of the untrained twin.
        max_facts: how many facts, spread over the list; all by default.
        baseline_facts: facts also traced in an untrained twin; 0 for none.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``average_indirect_effect[kind, role, layer]`` and ``average_total_effect``
        with ``_stderr``, ``_low``, ``_high`` over facts; ``n_facts[role]``, ``n_known`` and ``n_not_known``;
        ``known`` and ``total_effect`` of each fact; and the average in the twin as ``baseline_*``.

    Raises:
        BadInput: no facts, a text that is not a list of facts, a subject that is not in its prompt or stands in
            several places, an answer the tokenizer cannot make, or a setting out of range.
    """
    given = facts_of(facts) if isinstance(facts, str) else facts
    chosen = list(shipped_facts() if given is None else given)
    if max_facts is not None:
        if max_facts < 1:
            raise BadInput(f"max_facts={max_facts}: expected 1 or more")
        chosen = [chosen[i] for i in spread(len(chosen), max_facts)]
    measurement = AverageTrace(
        facts=tuple((fact.subject, fact.prompt, fact.answer) for fact in chosen),
        kinds=tuple(kinds),
        noise=noise,
        noise_samples=noise_samples,
        window=min(window, model.n_layers) if window == 10 else window,
        baseline_facts=baseline_facts,
        seed=seed,
    )
    return perform(measurement, model, **run)


def spread(length: int, count: int) -> list[int]:
    """Indices of at most ``count`` items spread evenly over a list, so that each part of it is heard."""
    count = min(length, count)
    return [index * length // count for index in range(count)]


def _over_facts(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, standard error and interval over the facts whose values are not NaN; NaN where there are too few."""
    having = values[np.isfinite(values).all(axis=tuple(range(1, values.ndim)))]
    if len(having):
        return mean_interval(having)
    return tuple(np.full(values.shape[1:], np.nan) for _ in range(4))


def _facts(dataset: xr.Dataset) -> Check:
    known, missed = int(dataset["n_known"]), int(dataset["n_not_known"])
    message = f"{known} facts count; {missed} of {known + missed} were left out, as the model answers them otherwise."
    if known >= ENOUGH:
        return Check("F101", "few facts", "pass", known, message)
    remedy = "Give more facts that this model knows: the intervals rest on too few to be trusted."
    return Check("F101", "few facts", "warn" if known > 1 else "fail", known, message, remedy)


def _corrupted(dataset: xr.Dataset) -> Check:
    total, low = float(dataset["average_total_effect"]), float(dataset["average_total_effect_low"])
    message = f"Corrupting the subjects takes {total:.3g} from the answers' probability on average (from {low:.3g})."
    if total > 0 and not low <= 0:
        return Check("F102", "corruption changes nothing", "pass", total, message)
    remedy = "Raise the noise: there is no effect to locate."
    return Check("F102", "corruption changes nothing", "fail", total, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    largest = float(np.abs(dataset["average_indirect_effect"]).max())
    baseline = float(np.abs(dataset["baseline_average_indirect_effect"]).max())
    share = baseline / largest if largest > 0 else np.inf
    message = f"The largest average in the untrained twin is {baseline:.2g}, {share:.1%} of the largest here."
    if share <= BASELINE:
        return Check("F103", "an untrained twin shows the same", "pass", share, message)
    remedy = "What is seen is no more than the architecture gives with random weights; do not read it."
    return Check("F103", "an untrained twin shows the same", "warn", share, message, remedy)
