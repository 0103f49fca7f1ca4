r"""Neuron importance: how much each MLP neuron at each token matters to one answer.

.. math:: \mathrm{attribution}_{l,t,n}
    = (a'_{l,t,n} - a_{l,t,n}) \, \frac{\partial \log p(\mathrm{answer})}{\partial a_{l,t,n}}

is attribution patching: to first order, what ablating neuron n of block l at position t (putting :math:`a'` in the
place of its activation a) adds to the answer's log-probability, in nats. Negative: the neuron works for the answer.
The mean of its size over a layer's neurons is the mean layer importance. Source: Nanda, "Attribution Patching", 2023;
Kramár et al., "AtP*", 2403.00745. For the largest attributions, and as many random neurons, the same is computed
exactly, and the agreement of the two is part of the result.

Cost: one forward and one backward pass for all neurons of all layers; for the exact ablations
``2 exact`` partial forwards (:mod:`assay.models.partial`); the first pass again for the untrained twin.

Limits: a first-order estimate is too small where the answer is nearly certain and its log-probability flat, and too
large for neurons whose effect is bounded; look at the agreement. One neuron at a time, those that stand in for each
other look unimportant. Effects below the rounding of the logits (in float32 up to 1e-5 nats) say nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.neurons import neuron_checks
from assay.activations.engine import engine_named, reason_kept
from assay.activations.subject import answer_tokens
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.correlation import spearman
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, default_rows, partial_forward, record
from assay.models.sites import find_port
from assay.models.slopes import frozen
from assay.models.twin import untrained_twin
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Ablation = Literal["zero", "mean"]
GROUPS = ("top", "random")


class Attribution(NamedTuple):
    """One forward and one backward pass.

    Attributes:
        cells: first-order effect of ablating each neuron, nats: one tensor (position, neuron) a layer.
        answer: token ids of the answer.
        log_probability: of the answer, nats; a scalar.
    """

    cells: list[Tensor]
    answer: Tokens
    log_probability: Tensor


class Shared(NamedTuple):
    """What every unit reads.

    Attributes:
        attribution: the first-order effects.
        recording: the run the exact ablations start from.
        chosen: layer, position and neuron of what is ablated: the top ones, then the random ones, (2 exact, 3).
    """

    attribution: Attribution
    recording: Recording
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class NeuronImportance(Measurement):
    """How much each MLP neuron at each token matters to one answer.

    Attributes:
        tokens: token ids of the prompt; the answer follows its last token.
        answer: token ids of the answer; ``None`` for the model's most probable next token.
        top_k: how many neurons of each layer and position are named.
        exact: how many of the largest attributions, and how many random neurons, are ablated exactly.
        ablation: what an ablated neuron's activation becomes: zero, or its mean over the prompt's positions.
        baseline: whether the importances of an untrained twin are measured too.
        seed: of the random neurons, the interval of the agreement, and the twin.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "neuron_importance"
    revision: ClassVar[int] = 2
    tokens: Tokens
    answer: Tokens | None = None
    top_k: int = 10
    exact: int = 64
    ablation: Ablation = "zero"
    baseline: bool = True
    seed: int = 0
    max_rows: int | None = None

    def prepare(self, model: Model) -> Shared:
        """Attribute, record the run, and choose what is ablated exactly."""
        attribution = self._attribute(model, self.answer)
        ids = (*self.tokens, *attribution.answer[:-1])
        recording = record(model, ids, sites=_neurons(model))
        return Shared(attribution, recording, self._choose(attribution.cells))

    def plan(self, model: Model) -> Sequence[Unit]:
        """The attributions with the top neurons' exact ablations, those of random neurons, and the untrained twin.

        Raises:
            BadInput: a setting out of range, or a model whose neurons cannot be seen.
        """
        widths = [_width(model, layer) for layer in range(model.n_layers)]
        if not 1 <= self.top_k <= min(widths):
            raise BadInput(f"top_k={self.top_k}: name between 1 and a layer's {min(widths)} neurons")
        most = sum(widths) * len(self.tokens) // 2
        if not 2 <= self.exact <= most:
            raise BadInput(
                f"exact={self.exact}: a rank correlation needs at least 2, and there are neurons for {most}"
            )
        passes = len(self.tokens) * model.n_layers
        units = [Unit(group, {}, cost=self.exact * passes / 4) for group in GROUPS]
        return [*units, Unit("untrained", {}, cost=4 * passes)] if self.baseline else units

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Reduce the attributions and ablate the top neurons, ablate the random ones, or attribute in the twin."""
        cells, answer, value = shared.attribution
        if unit.name == "untrained":
            twin = untrained_twin(model, seed=self.seed)
            return {"importance": _importance(self._attribute(twin, answer).cells)}
        if unit.name == "random":
            return {"effect": self._ablate(shared, shared.chosen[self.exact :])}
        top = [cell.abs().topk(self.top_k, -1).indices for cell in cells]
        return {
            "importance": _importance(cells),
            "importance_max": torch.stack([cell.abs().amax(-1) for cell in cells]),
            "top_neuron": torch.stack(top),
            "top_attribution": torch.stack(
                [cell.gather(-1, which) for cell, which in zip(cells, top, strict=True)]
            ),
            "chosen": shared.chosen,
            "chosen_attribution": torch.stack([cells[layer][p, n] for layer, p, n in shared.chosen.tolist()]),
            "effect": self._ablate(shared, shared.chosen[: self.exact]),
            "answer": torch.tensor(answer),
            "log_probability": value,
            "fallback": reason_kept(shared.recording.fallback),
        }

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Label the importances, and correlate the attributions with the exact effects."""
        one = pieces["top"]
        effect = torch.cat([pieces[group]["effect"] for group in GROUPS]).double().numpy()
        predicted = one["chosen_attribution"].double().numpy()
        layer, position, neuron = one["chosen"].numpy().T
        agreement = spearman(predicted, effect, interval="bootstrap", rng=np.random.default_rng(self.seed))
        cell, ranked, exact, nats = (
            ("layer", "position"),
            ("layer", "position", "rank"),
            ("exact",),
            {"units": "nats"},
        )
        variables: dict[str, Any] = {
            "p_clean": ((), float(one["log_probability"].exp())),
            "importance": (
                cell,
                one["importance"].numpy(),
                nats | {"long_name": "mean |attribution| of the neurons"},
            ),
            "importance_max": (cell, one["importance_max"].double().numpy(), nats),
            "top_neuron": (ranked, one["top_neuron"].numpy()),
            "top_attribution": (ranked, one["top_attribution"].double().numpy(), nats),
            "exact_layer": (exact, layer),
            "exact_position": (exact, position),
            "exact_neuron": (exact, neuron),
            "exact_effect": (
                exact,
                effect,
                nats | {"long_name": "log-probability after ablation minus before"},
            ),
            "exact_attribution": (exact, predicted, nats),
            "rank_correlation": ((), agreement.value),
            "rank_correlation_low": ((), agreement.low),
            "rank_correlation_high": ((), agreement.high),
        }
        if self.baseline:
            variables["baseline_importance"] = (cell, pieces["untrained"]["importance"].numpy(), nats)
        coords = {
            "layer": np.arange(model.n_layers),
            "position": np.arange(len(self.tokens)),
            "token": ("position", model.token_texts(self.tokens)),
            "rank": np.arange(self.top_k),
            "exact_group": ("exact", np.repeat(GROUPS, self.exact)),
        }
        return xr.Dataset(variables, coords, self._attributes(model, one))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The model knows the answer, neurons matter to it, attribution agrees with ablation, a twin differs."""
        return neuron_checks(dataset)

    def memory(self, model: Model) -> int:
        """The graph of the backward pass, the logits, and the untrained twin's weights."""
        width = max(_width(model, layer) for layer in range(model.n_layers))
        graph = model.n_layers * len(self.tokens) * (6 * width + 16 * model.d_model)
        weights = sum(p.numel() * p.element_size() for p in model.module.parameters()) if self.baseline else 0
        return weights + 4 * (graph + 3 * len(self.tokens) * model.parts.vocabulary)

    def _attributes(self, model: Model, piece: Pieces) -> dict[str, Any]:
        answer = [int(i) for i in piece["answer"]]
        return {
            "model": model.source,
            "metric": "log_probability",
            "answer": "".join(model.token_texts(answer)),
            "answer_tokens": answer,
            "ablation": self.ablation,
            "engine": engine_named([piece["fallback"]]),
        }

    def _attribute(self, model: Model, answer: Tokens | None) -> Attribution:
        """First-order effects of ablating every neuron at every position of the prompt."""
        sites, length = _neurons(model), len(self.tokens)
        with frozen(model.module):
            got = capture(model, (*self.tokens, *(answer or ())[:-1]), [*sites, "logits"], grad=True)
            logits = got["logits"][0, length - 1 :]
            answer = answer or (int(logits[0].argmax()),)
            value = log_probability(logits, answer)
            slopes = torch.autograd.grad(value, [got[site] for site in sites])
        activations = [got[site].detach()[0, :length] for site in sites]
        pairs = zip(activations, slopes, strict=True)
        return Attribution(
            [(self._ablated(a) - a) * slope[0, :length] for a, slope in pairs], answer, value.detach()
        )

    def _ablated(self, activations: Tensor) -> Tensor:
        """What each neuron's activation becomes, (neuron,), from a layer's activations (position, neuron)."""
        return activations.mean(0) if self.ablation == "mean" else torch.zeros_like(activations[0])

    def _choose(self, cells: Sequence[Tensor]) -> Tensor:
        """Layer, position and neuron of the largest attributions, then of as many others drawn at random."""
        ends = torch.tensor([0, *(cell.numel() for cell in cells)]).cumsum(0)
        best = [cell.flatten().abs().topk(min(self.exact, cell.numel())) for cell in cells]
        values = torch.cat([part.values for part in best])
        places = torch.cat([part.indices.cpu() + start for part, start in zip(best, ends, strict=False)])
        chosen = dict.fromkeys(places[values.topk(self.exact).indices.cpu()].tolist())
        generator = torch.Generator().manual_seed(self.seed)
        while len(chosen) < 2 * self.exact:
            chosen[int(torch.randint(int(ends[-1]), (), generator=generator))] = None
        flat = torch.tensor(list(chosen))
        layer = torch.searchsorted(ends, flat, right=True) - 1
        width = torch.tensor([cell.shape[1] for cell in cells])[layer]
        return torch.stack([layer, (flat - ends[layer]) // width, (flat - ends[layer]) % width], 1)

    def _ablate(self, shared: Shared, chosen: Tensor) -> Tensor:
        """What ablating one neuron at a time does to the answer's log-probability, (neuron chosen,)."""
        recording, answer, last = shared.recording, shared.attribution.answer, len(self.tokens) - 1
        variants = []
        for layer, position, neuron in chosen.tolist():
            site = f"mlp_act.{layer}"
            activations = recording.sites[site][0, : last + 1]
            value = activations[position].clone()
            value[neuron] = self._ablated(activations)[neuron]
            variants.append((SiteEdit(site, value, (position,)),))
        clean = log_probability(recording.readout(recording.resid[-1][0, last:]), answer)
        after = partial_forward(
            recording,
            variants,
            lambda logits: log_probability(logits, answer),
            positions=range(last, recording.ids.shape[1]),
            max_rows=self.max_rows or default_rows(recording),
        )
        return after[:, 0] - clean


def neuron_importance(  # noqa: PLR0913 (a promised signature)
    model: Model,
    text: str | Sequence[int],
    answer: str | Sequence[int] | None = None,
    *,
    position: int = -1,
    top_k: int = 10,
    exact: int = 64,
    ablation: Ablation = "zero",
    baseline: bool = True,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find the MLP neurons that matter to an answer, at every layer and token.

    Args:
        model: a decoder from ``load`` or ``wrap``, whose neurons are tensors of its forward pass (no fused experts).
        text: the prompt, as text or token ids.
        answer: the answer with its leading space, of one or several tokens; the model's own by default.
        position: the token the answer follows; the text after it is left out, as it cannot matter.
        top_k: how many neurons of each layer and position are named.
        exact: how many of the largest attributions, and how many random neurons, are ablated exactly.
        ablation: what an ablated neuron's activation becomes: ``zero``, or its ``mean`` over the prompt's positions.
        baseline: whether the importances of an untrained twin are measured too.
        seed: of the random neurons, the interval of the agreement, and the twin.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``importance[layer, position]``, the mean of |attribution| over a layer's neurons
        in nats, and ``importance_max``; ``top_neuron`` and its signed ``top_attribution`` (layer, position, rank);
        ``exact_effect`` beside ``exact_attribution`` for the neurons ablated exactly, by ``exact_group`` (``top`` or
        ``random``), their ``rank_correlation`` with its interval; and ``baseline_importance`` of the untrained twin.

    Raises:
        BadInput: an empty prompt, an answer the tokenizer cannot make, a setting out of range, or a model whose
            neurons cannot be seen.
    """
    tokens = model.tokens(text)
    if not -len(tokens) <= position < len(tokens):
        raise BadInput(
            f"position={position}: the text has {len(tokens)} tokens, positions 0 to {len(tokens) - 1}"
        )
    prompt = tokens[: position % len(tokens) + 1]
    measurement = NeuronImportance(
        tokens=prompt,
        answer=None if answer is None else answer_tokens(model, text if prompt == tokens else prompt, answer),
        top_k=top_k,
        exact=exact,
        ablation=ablation,
        baseline=baseline,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)


def log_probability(logits: Tensor, answer: Tokens) -> Tensor:
    """Log-probability of an answer, summed over its tokens in float64, for ablations change it by little.

    Args:
        logits: (..., answer token, vocabulary).
        answer: token ids.

    Returns:
        Nats, (...).
    """
    chosen = torch.tensor(answer, device=logits.device).expand(logits.shape[:-1])[..., None]
    return logits.double().log_softmax(-1).gather(-1, chosen)[..., 0].sum(-1)


def _neurons(model: Model) -> list[str]:
    return [f"mlp_act.{layer}" for layer in range(model.n_layers)]


def _width(model: Model, layer: int) -> int:
    """Number of neurons of a layer; where they cannot be seen, the site's own ``BadInput``."""
    down: Any = find_port(model.parts, model.module, f"mlp_act.{layer}").module
    return (
        down.in_features if hasattr(down, "in_features") else len(down.weight)
    )  # GPT-2 keeps its weight (in, out)


def _importance(cells: Sequence[Tensor]) -> Tensor:
    return torch.stack([cell.abs().double().mean(-1) for cell in cells])
