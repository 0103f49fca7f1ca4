r"""Causal trace: which states, restored to their clean values, bring back an answer that a corrupted subject destroyed.

The clean run answers with probability :math:`p`. In the corrupted run the subject's embeddings are disturbed,
and the answer falls to :math:`p_*`. Restoring the clean value of one state in the corrupted run gives
:math:`p_{*,\mathrm{clean}\,h}`. The total effect is :math:`TE = p - p_*`, the indirect effect of the state
:math:`IE = p_{*,\mathrm{clean}\,h} - p_*`. Source: Meng, Bau, Andonian, Belinkov, "Locating and Editing
Factual Associations in GPT", 2022; replacement of the subject: Zhang and Nanda, 2309.16042.

Kinds of restoration, each at one position: ``state``, the residual stream after a block; ``mlp`` and
``attn``, what a window of blocks' MLPs or attentions write; ``state_mlp_severed`` and ``state_attn_severed``,
the state with the later MLPs or attentions at that position held at their corrupted values.

Every noise sample is paired: all cells see the same noise. Standard errors and intervals are over samples.

Cost: exact partial forwards (:mod:`assay.models.partial`), about
S (T-b)^2 L^2 / 4 block-tokens a kind, for T tokens of which the subject's first is b.

Limits: probability hides components that push the answer down, and Gaussian noise takes the model out of its
distribution; look at the other metrics, and at ``replace_with``. Tracing finds where information passes; it
does not say where an edit works best (Hase et al., 2301.04213).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.trace import trace_checks
from assay.activations.engine import engine_named, reason_kept
from assay.activations.restoration import (
    KINDS,
    METRICS,
    Kind,
    Restoration,
    embedding_scale,
    restoration,
    window_of,
)
from assay.activations.subject import answer_tokens, subject_positions, with_replacement
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.edits import at
from assay.models.model import Model, Tokens
from assay.models.twin import untrained_twin
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result


@dataclass(frozen=True, kw_only=True)
class CausalTrace(Measurement):
    """Which states bring back an answer that a corrupted subject destroyed.

    Attributes:
        tokens: token ids of the prompt.
        subject: positions of the subject's tokens.
        answer: token ids of the answer; ``None`` for the clean run's most probable token.
        replacements: prompts with another subject, one a sample, instead of noise.
        foil: token the logit difference is taken against; ``None`` for the corrupted runs' most probable
            other one.
        noise: standard deviation of the noise, in units of ``sigma``.
        sigma: standard deviation of an embedding entry; ``None`` to estimate it over a list of subjects.
        noise_samples: number of noise samples.
        kinds: what is restored.
        window: how many blocks' MLPs or attentions are restored together.
        baseline_samples: samples of the same trace on an untrained twin; 0 for none.
        seed: of the noise and of the twin.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "causal_trace"
    tokens: Tokens
    subject: tuple[int, ...]
    answer: Tokens | None = None
    replacements: tuple[Tokens, ...] = ()
    foil: int | None = None
    noise: float = 3.0
    sigma: float | None = None
    noise_samples: int = 10
    kinds: tuple[Kind, ...] = KINDS
    window: int = 10
    baseline_samples: int = 1
    seed: int = 0
    max_rows: int | None = None

    @property
    def first(self) -> int:
        """The first position that can matter: the subject's first token."""
        return min(self.subject)

    @property
    def samples(self) -> int:
        """Number of corrupted runs."""
        return len(self.replacements) or self.noise_samples

    def prepare(self, model: Model) -> Restoration:
        """Run the clean and the corrupted rows once."""
        return self._record(model, self.samples, self.answer, self.foil)

    def plan(self, model: Model) -> Sequence[Unit]:
        """The runs themselves, every kind and position from the subject on, and the untrained twin.

        Raises:
            BadInput: a setting out of range, or an unknown kind.
        """
        self._validate(model)
        length, layers = len(self.tokens), model.n_layers
        units = [
            Unit(
                f"{kind}-position-{p:05d}",
                {"kind": kind, "position": p},
                cost=(length - p) * layers * self.samples,
            )
            for kind in self.kinds
            for p in range(self.first, length)
        ]
        block = sum(parameter.numel() for parameter in model.parts.blocks[0].module.parameters())
        unembedded = (1 + self.samples) * model.parts.vocabulary * model.d_model / block  # in block-tokens
        units.insert(
            0, Unit("runs", {}, cost=unembedded / (layers / 2))
        )  # a restored layer passes half the blocks
        if self.baseline_samples:
            cost = sum(unit.cost for unit in units) * self.baseline_samples / self.samples
            units.append(Unit("untrained", {}, cost=cost))
        return units

    def measure(self, model: Model, unit: Unit, shared: Restoration) -> Pieces:
        """Restore every layer at one position, measure the runs themselves, or trace the untrained twin."""
        if "position" in unit.detail:
            return {"restored": shared.of_cells(unit.detail["kind"], unit.detail["position"], self.max_rows)}
        if unit.name == "runs":
            return {
                "clean": shared.of_run(shared.clean)[0],
                "corrupted": shared.of_run(shared.corrupted),
                "foil": torch.tensor(shared.foil),
                "answer": torch.tensor(shared.answer),
                "fallback": reason_kept(shared.corrupted.fallback or shared.clean.fallback),
            }
        twin = untrained_twin(model, seed=self.seed)
        other = self._record(twin, min(self.baseline_samples, self.samples), shared.answer, shared.foil)
        corrupted, positions = other.of_run(other.corrupted), range(self.first, len(self.tokens))
        cells = [
            [other.of_cells(kind, p, self.max_rows) - corrupted for p in positions] for kind in self.kinds
        ]
        effect = torch.stack([torch.stack(row, 1) for row in cells])[..., 0]  # kind, layer, position, sample
        return {"effect": effect.mean(-1), "total": (other.of_run(other.clean) - corrupted)[:, 0].mean()}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take effects and intervals; cells before the subject are filled with the corrupted run they equal."""
        length, layers = len(self.tokens), model.n_layers
        one = pieces["runs"]
        clean, corrupted = one["clean"].double().numpy(), one["corrupted"].double().numpy()
        restored = np.broadcast_to(corrupted, (len(self.kinds), layers, length, *corrupted.shape)).copy()
        for index, kind in enumerate(self.kinds):
            for p in range(self.first, length):
                restored[index, :, p] = pieces[f"{kind}-position-{p:05d}"]["restored"].double().numpy()
        cell, cells = ("kind", "layer", "position"), ("metric", "kind", "layer", "position")
        effect = np.moveaxis(restored - corrupted, (-2, -1), (0, 1))  # sample, metric, kind, layer, position
        mean, stderr, low, high = mean_interval(effect)
        total, total_stderr, total_low, total_high = mean_interval(clean - corrupted)
        level, level_stderr, _, _ = mean_interval(corrupted)
        point, point_stderr, _, _ = mean_interval(np.moveaxis(restored, (-2, -1), (0, 1)))
        few = {"allow_nan": True} if self.samples == 1 else {}  # one sample has no standard error
        variables: dict[str, Any] = {
            "p_clean": ((), clean[0]),
            "p_corrupted": ((), level[0]),
            "p_corrupted_stderr": ((), level_stderr[0], few),
            "p_corrupted_sample": (("sample",), corrupted[:, 0]),
            "p_restored": (cell, point[0]),
            "p_restored_stderr": (cell, point_stderr[0], few),
            "total_effect": ((), total[0]),
            "total_effect_stderr": ((), total_stderr[0], few),
            "total_effect_low": ((), total_low[0], few),
            "total_effect_high": ((), total_high[0], few),
            "indirect_effect": (cell, mean[0]),
            "indirect_effect_stderr": (cell, stderr[0], few),
            "indirect_effect_low": (cell, low[0], few),
            "indirect_effect_high": (cell, high[0], few),
            "metric_clean": (("metric",), clean),
            "metric_corrupted": (("metric",), level),
            "metric_total_effect": (("metric",), total),
            "metric_total_effect_stderr": (("metric",), total_stderr, few),
            "metric_restored": (cells, point),
            "metric_effect": (cells, mean),
            "metric_effect_stderr": (cells, stderr, few),
        }
        if self.baseline_samples:
            variables |= self._baseline(pieces["untrained"], layers, length)
        return xr.Dataset(variables, self._coordinates(model, layers), self._attributes(model, one))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The corruption destroys the answer, the twin finds less than the trace, the invariants hold."""
        return trace_checks(dataset)

    def memory(self, model: Model) -> int:
        """The rows of one pass, the recorded runs, and the untrained twin's weights."""
        rows = self.samples * (model.n_layers if self.max_rows is None else self.max_rows // self.samples)
        wide = 16 * model.d_model * len(self.tokens) * rows
        weights = (
            sum(p.numel() * p.element_size() for p in model.module.parameters())
            if self.baseline_samples
            else 0
        )
        return weights + 4 * (
            wide + 8 * model.n_layers * len(self.tokens) * model.d_model * (1 + self.samples)
        )

    def _validate(self, model: Model) -> None:
        length, vocabulary = len(self.tokens), model.parts.vocabulary
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise BadInput(
                f"kinds={self.kinds}: choose from state, mlp, attn, state_mlp_severed, state_attn_severed, "
                "each kind once"
            )
        if not 1 <= self.window <= model.n_layers:
            raise BadInput(
                f"window={self.window}: restore between 1 and the model's {model.n_layers} blocks together"
            )
        if self.samples < 1 or self.baseline_samples < 0:
            raise BadInput("noise_samples must be at least 1, baseline_samples at least 0")
        if self.max_rows is not None and self.max_rows < self.samples:
            raise BadInput(f"max_rows={self.max_rows} does not hold the {self.samples} samples of one cell")
        for name, scale in (("noise", self.noise), ("sigma", self.sigma)):
            if not self.replacements and scale is not None and not scale > 0:
                raise BadInput(f"{name}={scale}: the noise needs a positive scale to corrupt anything")
        if not self.subject or not all(0 <= p < length for p in self.subject):
            raise BadInput(f"subject={self.subject}: positions must lie in the prompt's 0 to {length - 1}")
        model.tokens((*self.tokens, *(self.answer or ())[:-1]))  # together they fit into the context
        if self.foil is not None and not 0 <= self.foil < vocabulary:
            raise BadInput(f"foil={self.foil}: the vocabulary has {vocabulary} tokens, from 0")
        if self.answer is not None and self.foil == self.answer[0]:
            raise BadInput(f"foil={self.foil} is the answer itself: there is no difference of logits to see")
        for other in self.replacements:
            self._validate_replacement(other)

    def _validate_replacement(self, other: Tokens) -> None:
        if len(other) != len(self.tokens):
            raise BadInput("every replacement prompt needs as many tokens as the prompt")
        changed = {p for p, (a, b) in enumerate(zip(self.tokens, other, strict=True)) if a != b}
        if not changed or not changed <= set(self.subject):
            raise BadInput(
                f"a replacement changes positions {sorted(changed)}; it must change some of the subject's "
                f"{self.subject} and none outside the subject"
            )

    def _record(self, model: Model, samples: int, answer: Tokens | None, foil: int | None) -> Restoration:
        others = self.replacements[:samples] or (self.tokens,) * samples
        noise = at(self._noise(model, samples), positions=self.subject)
        edits = {} if self.replacements else {"embed": noise}
        rows = (self.tokens, *others)
        return restoration(model, rows, edits, answer=answer, foil=foil, kinds=self.kinds, window=self.window)

    def _noise(self, model: Model, samples: int) -> Callable[[Tensor], Tensor]:
        sigma = self.sigma if self.sigma is not None else embedding_scale(model)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(samples, len(self.subject), model.parts.embed_width, generator=generator)
        return lambda embedded: embedded + self.noise * sigma * noise.to(embedded)

    def _baseline(self, piece: Pieces, layers: int, length: int) -> dict[str, Any]:
        effect = np.zeros((len(self.kinds), layers, length))
        effect[:, :, self.first :] = piece["effect"].double().numpy()
        return {
            "baseline_indirect_effect": (("kind", "layer", "position"), effect),
            "baseline_total_effect": ((), float(piece["total"])),
        }

    def _coordinates(self, model: Model, layers: int) -> dict[str, Any]:
        windows = np.array([window_of(layer, layers, self.window) for layer in range(layers)])
        return {
            "kind": list(self.kinds),
            "metric": list(METRICS),
            "layer": np.arange(layers),
            "window_start": ("layer", windows[:, 0]),
            "window_stop": ("layer", windows[:, 1]),
            "position": np.arange(len(self.tokens)),
            "token": ("position", model.token_texts(self.tokens)),
            "is_subject": ("position", np.isin(np.arange(len(self.tokens)), self.subject)),
        }

    def _attributes(self, model: Model, piece: Pieces) -> dict[str, Any]:
        answer = [int(i) for i in piece["answer"]]
        corruption = "replacement" if self.replacements else f"noise of {self.noise} sigma"
        return {
            "model": model.source,
            "subject": "".join(model.token_texts([self.tokens[p] for p in self.subject])).strip(),
            "answer": "".join(model.token_texts(answer)),
            "answer_tokens": answer,
            "foil": model.token_texts([int(piece["foil"])])[0],
            "corruption": corruption,
            "window": self.window,
            "engine": engine_named([piece["fallback"]]),
        }


def causal_trace(  # noqa: PLR0913 (a promised signature)
    model: Model,
    prompt: str | Sequence[int],
    subject: str | slice | Sequence[int],
    answer: str | Sequence[int] | None = None,
    *,
    replace_with: str | Sequence[str] | None = None,
    noise: float = 3.0,
    noise_samples: int = 10,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    seed: int = 0,
    sigma: float | None = None,
    foil: str | int | None = None,
    occurrence: int | None = None,
    baseline_samples: int = 1,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find which states bring back an answer that a corrupted subject destroyed.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        prompt: the prompt, as text or token ids.
        subject: the subject as it stands in the prompt (every occurrence), or token positions.
        answer: the answer with its leading space, of one or several tokens; the model's own by default.
        replace_with: another subject, or several, with as many tokens: replacement instead of noise.
        noise: standard deviation of the noise in units of ``sigma``.
        noise_samples: number of noise samples.
        kinds: ``state``, ``mlp``, ``attn``, ``state_mlp_severed``, ``state_attn_severed``.
        window: blocks restored together, for ``mlp`` and ``attn``.
        seed: of the noise and of the untrained twin.
        sigma: standard deviation of an embedding entry; estimated over a list of subjects by default.
        foil: what the logit difference is taken against; the corrupted runs' most probable other token by
            default.
        occurrence: which occurrence of the subject; all by default.
        baseline_samples: samples of the trace of an untrained twin; 0 for none.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``p_clean``, ``p_corrupted``, ``p_restored[kind, layer, position]``,
        ``indirect_effect`` and its ``_stderr``, ``_low``, ``_high``; ``total_effect`` likewise; every metric
        (probability, log_probability, logit_difference, kl_from_clean in nats) as ``metric_*``; and
        ``baseline_indirect_effect`` of the untrained twin.

    Raises:
        BadInput: a subject that is not in the prompt, an answer the tokenizer cannot make, a replacement of
            another length, or a setting out of range.
    """
    tokens = model.tokens(prompt)
    others = [replace_with] if isinstance(replace_with, str) else list(replace_with or ())
    if others and not (isinstance(prompt, str) and isinstance(subject, str)):
        raise BadInput("replace_with needs the prompt and the subject as text")
    measurement = CausalTrace(
        tokens=tokens,
        subject=subject_positions(model, prompt, subject, occurrence),
        answer=None if answer is None else answer_tokens(model, prompt, answer),
        replacements=tuple(
            with_replacement(model, str(prompt), str(subject), other, occurrence) for other in others
        ),
        foil=answer_tokens(model, prompt, foil)[0] if isinstance(foil, str) else foil,
        noise=noise,
        sigma=sigma,
        noise_samples=noise_samples,
        kinds=tuple(kinds),
        window=min(window, model.n_layers) if window == 10 else window,  # the default, on shallow models
        baseline_samples=baseline_samples,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)
