r"""Norm report: what becomes of a model when its norms are folded, frozen, fixed or removed, and which of it is exact.

Each way makes a copy of the model (:mod:`assay.norms`) and runs it on a data set. With :math:`p` the model's and
:math:`q` the copy's distribution after each of the T tokens of an input :math:`x`,

.. math:: \mathrm{KL} = \frac1T \sum_t \mathrm{KL}\bigl(p_t \,\|\, q_t\bigr), \qquad
          \Delta\mathrm{loss} = \frac{1}{T-1} \sum_{t<T} \log\frac{p_t(x_{t+1})}{q_t(x_{t+1})}

and the largest difference of any logit, in the model's own dtype and in float64: what is exact differs by rounding, and
so by eight orders less in float64. Losses come with their quantiles over tokens, since a mean can be made by a few of
them (GPT-2 XL without LayerNorm has a mean of 130 nats on the Pile, and a median of 1.1; Baroni et al. 2025,
2507.02559). The scales themselves are given for every norm and position: a first token whose norm is a hundred times
the others' needs a scale of its own. The baseline gives each norm the fixed scale of another one.

Cost: for each way a copy of the weights and two forwards an input; in float64 twice the weights again.

Limits: fixed scales are means over the same inputs they are judged on; with few inputs that flatters them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple, Unpack, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from assay.activations.checks.norms import norm_checks
from assay.activations.data_set import check_inputs, inputs_of
from assay.activations.divergence import kl_divergence, log_probabilities
from assay.activations.effects import PARTS
from assay.activations.prompt_pairs import Prompts
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.estimates.checks import Check
from assay.estimates.estimate import Floats, mean_interval
from assay.models.anatomy import text_config
from assay.models.gauges import KeepFloat64
from assay.models.model import Model, Tokens
from assay.models.norms.finding import Norm, configured_epsilons, find_norms
from assay.models.norms.fixing import frozen_at_each, norm_scales, remove, scale, several
from assay.models.norms.folding import copied_model, fold, obstacles_of
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Way = Literal["fold", "freeze", "freeze_elsewhere", "scale", "scale_all", "remove"]
WAYS: tuple[Way, ...] = ("fold", "freeze", "freeze_elsewhere", "scale", "scale_all", "remove")
ALONE = "scale_only_"
"""Before the kind of norm that alone is given fixed scales."""
METRICS = ("kl_from_original", "loss_difference", "top1_agreement")
QUANTILES = (0.5, 0.9, 0.99, 1.0)
EXACT = 1e-6
"""What is exact differs in float64 by less than this share of the largest logit."""
UNKNOWN = {"allow_nan": True}


class Compared(NamedTuple):
    """A changed model beside the original on one input.

    Attributes:
        metrics: KL, loss difference and agreement, (metric,).
        loss: of the changed model at each token but the last, (pos - 1,).
        difference: the largest difference of a logit.
    """

    metrics: Tensor
    loss: Tensor
    difference: Tensor


@dataclass(frozen=True, kw_only=True)
class NormReport(Measurement):
    """What becomes of a model when its norms are folded, frozen, fixed or removed.

    Attributes:
        inputs: token ids of the data set, all of one length.
        ways: what is done to the norms.
        special: positions that ``scale`` gives a scale of their own.
        float64_inputs: inputs that are compared in float64 too; 0 for none, without which nothing is called exact.
        by_kind: whether the norms of each kind alone (``ln1``, ``ln2``, ...) are given fixed scales too.
        baseline: whether norms are given the scales of others too.
        resamples: of the bootstrap.
        seed: of bootstrap and baseline.
    """

    name: ClassVar[str] = "norm_report"
    inputs: tuple[Tokens, ...]
    ways: tuple[Way, ...] = WAYS
    special: tuple[int, ...] = (0,)
    float64_inputs: int = 1
    by_kind: bool = True
    baseline: bool = True
    resamples: int = 2000
    seed: int = 0

    def plan(self, model: Model) -> Sequence[Unit]:
        """The model as it is, then each way, then the baseline.

        Raises:
            BadInput: a setting out of range, or a model without norms.
        """
        self._validate()
        names = ["original", *self._ways(find_norms(model)), *(["baseline"] if self.baseline else [])]
        return [Unit(name, {}, cost=1 + (name != "original")) for name in names]

    def measure(self, model: Model, unit: Unit, shared: None) -> Pieces:
        """Take the scales of the model as it is, or compare it with a changed copy."""
        if unit.name == "original":
            return self._original(model)
        compared = [
            _compare(_logits(model, row), _logits(changed, row), row)
            for changed, row in self._changed(model, unit.name)
        ]
        return {
            "metrics": torch.stack([one.metrics for one in compared]),
            "loss": torch.stack([one.loss for one in compared]),
            "difference": torch.stack([one.difference for one in compared]),
            "float64": self._in_float64(model, unit.name),
        }

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs, quantiles over tokens, and their intervals."""
        norms = find_norms(model)
        original, ways = pieces["original"], self._ways(norms)
        metrics = np.stack([pieces[way]["metrics"].double().numpy() for way in ways])  # way, input, metric
        loss = np.stack(
            [original["loss"].double().numpy(), *(pieces[way]["loss"].double().numpy() for way in ways)]
        )
        difference = np.array([float(pieces[way]["difference"].max()) for way in ways])
        in_float64 = np.array([float(pieces[way]["float64"]) for way in ways])
        largest = float(original["largest_logit"])
        variables: dict[str, Any] = {
            "logit_difference": (("way", "precision"), np.stack([difference, in_float64], 1), UNKNOWN),
            "exact": ("way", in_float64 < EXACT * largest),
            "largest_logit": ((), largest),
            "rounding": ((), float(original["rounding"]), UNKNOWN),
            "norm_epsilon": ("norm", original["epsilon"].numpy()),
            "configured_epsilon": ((), float(original["configured"]), UNKNOWN),
            "largest_norm_weight": ((), float(original["largest_weight"])),
        }
        for index, metric in enumerate(METRICS):
            for part, values in zip(PARTS, self._intervals(metrics[..., index]), strict=True):
                variables[metric + part] = ("way", values, UNKNOWN)
        for part, values in zip(PARTS, self._quantiles(loss), strict=True):
            variables[f"loss_quantile{part}"] = (("model", "quantile"), values, UNKNOWN)
        for part, values in zip(PARTS, self._intervals(loss.mean(-1)), strict=True):
            variables[f"loss{part}"] = ("model", values, UNKNOWN)
        scales = original["scales"].double().numpy()  # input, norm, position
        for part, values in zip(PARTS, mean_interval(scales), strict=True):
            variables[f"norm_scale{part}"] = (("norm", "position"), values, UNKNOWN if part else {})
        if self.baseline:
            other = pieces["baseline"]["metrics"].double().numpy()
            for index, metric in enumerate(METRICS):
                variables[f"baseline_{metric}"] = ((), float(other[:, index].mean()), UNKNOWN)
        coordinates = {
            "way": ways,
            "precision": ["own", "float64"],
            "model": ["original", *ways],
            "quantile": list(QUANTILES),
            "norm": [norm.name for norm in norms],
            "position": np.arange(len(self.inputs[0])),
            "layer": ("norm", [_layer(norm) for norm in norms]),
        }
        return xr.Dataset(variables, coordinates, self._attributes(model, norms))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Exact ways are exact, epsilon is the configured one, fixed scales do, and not by a few tokens' leave."""
        return norm_checks(dataset)

    def memory(self, model: Model) -> int:
        """A copy of the weights, one in float64, and the logits of an input."""
        weights = sum(p.numel() for p in model.module.parameters())
        logits = 4 * len(self.inputs[0]) * model.parts.vocabulary
        return weights * (4 + (16 if self.float64_inputs else 0)) + 4 * logits

    def _ways(self, norms: Sequence[Norm]) -> list[str]:
        """The ways asked for, and fixed scales for each kind of norm alone where there are several."""
        kinds = list(dict.fromkeys(norm.kind for norm in norms))
        alone = [f"{ALONE}{kind}" for kind in kinds] if self.by_kind and len(kinds) > 1 else []
        return [*self.ways, *alone]

    def _original(self, model: Model) -> Pieces:
        norms = find_norms(model)
        scales, losses, largest = [], [], []
        for row in self.inputs:
            by_norm = [
                _by_position(norm, s) for norm, s in zip(norms, norm_scales(model, norms, row), strict=True)
            ]
            scales.append(torch.stack(by_norm))
            logits = _logits(model, row)
            losses.append(_loss(logits, row))
            largest.append(logits.abs().max())
        told = configured_epsilons(vars(text_config(model.module)) if text_config(model.module) else {})
        weights = [p.detach().abs().max() for norm in norms for p in norm.module.parameters()]
        return {
            "scales": torch.stack(scales),
            "loss": torch.stack(losses),
            "largest_logit": torch.stack(largest).max(),
            "rounding": self._in_float64(model, "original"),
            "epsilon": torch.tensor([norm.epsilon for norm in norms], dtype=torch.float64),
            "configured": torch.tensor(next(iter(told.values()), torch.nan), dtype=torch.float64),
            "largest_weight": torch.stack(weights).max() if weights else torch.tensor(1.0),
        }

    def _changed(self, model: Model, way: str) -> Iterator[tuple[Model, Tokens]]:
        """Each input with the changed model that runs it."""
        if way.startswith("freeze"):
            shift = int(way == "freeze_elsewhere")
            references = [*self.inputs[len(self.inputs) - shift :], *self.inputs[: len(self.inputs) - shift]]
            yield from zip(frozen_at_each(model, references), self.inputs, strict=True)
            return
        kind = way.removeprefix(ALONE)
        changed = {
            "fold": lambda: fold(model, centre=True),
            "scale": lambda: scale(model, self.inputs, special=self.special),
            "scale_all": lambda: scale(model, self.inputs, special=()),
            "remove": lambda: remove(model),
            "baseline": lambda: scale(model, self.inputs, special=self.special, seed=self.seed),
        }.get(way, lambda: scale(model, self.inputs, special=self.special, only=[kind]))()
        for row in self.inputs:
            yield changed, row

    def _in_float64(self, model: Model, way: str) -> Tensor:
        """The largest difference of a logit in float64; of ``original``, from the model in its own dtype.

        NaN where it is not asked for, or the module's code does not run in float64.
        """
        if not self.float64_inputs or way == "baseline":
            return torch.tensor(torch.nan, dtype=torch.float64)
        doubled = copied_model(model)
        doubled.module.double()
        if isinstance(doubled.module, PreTrainedModel):  # the grouped kernel of mixtures knows no float64
            doubled.module.set_experts_implementation("eager")
        rows = self.inputs[: self.float64_inputs]
        others = [_logits(model, row) for row in rows] if way == "original" else []
        try:
            with KeepFloat64():
                exact = [_logits(doubled, row) for row in rows]
                if way != "original":
                    changed = islice(self._changed(doubled, way), len(rows))
                    others = [_logits(copied, row) for copied, row in changed]
        except RuntimeError:  # code of the module's own that insists on a dtype
            return torch.tensor(torch.nan, dtype=torch.float64)
        return torch.stack([(a - b).abs().max() for a, b in zip(exact, others, strict=True)]).max()

    def _intervals(self, samples: Floats) -> tuple[Floats, ...]:
        """Means over inputs, and their intervals: (way, input) to (way,) each."""
        if samples.shape[1] == 1:
            return mean_interval(samples, axis=1)
        return bootstrap(samples.T, np.random.default_rng(self.seed), resamples=self.resamples)

    def _quantiles(self, loss: Floats) -> tuple[Floats, ...]:
        """Quantiles over the tokens of all inputs, inputs resampled: (model, input, token) to (model, quantile)."""

        def over_tokens(rows: Floats) -> Floats:
            flat = np.moveaxis(rows, 0, 1).reshape(rows.shape[1], -1)
            return np.quantile(flat, QUANTILES, axis=1).T

        rows = np.moveaxis(loss, 1, 0)
        if len(rows) == 1:
            unknown = np.full((len(loss), len(QUANTILES)), np.nan)
            return over_tokens(rows), unknown, unknown.copy(), unknown.copy()
        generator = np.random.default_rng(self.seed)
        return bootstrap(rows, generator, over_tokens, resamples=self.resamples, kind="percentile")

    def _attributes(self, model: Model, norms: Sequence[Norm]) -> dict[str, Any]:
        return {
            "model": model.source,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "special": list(self.special),
            "kind": "LayerNorm" if any(norm.centring for norm in norms) else "RMSNorm",
            "fixed_norms": sum(norm.is_fixed for norm in norms),
            "without_positions": [norm.name for norm in norms if norm.axis < 0],
        }

    def _validate(self) -> None:
        check_inputs(self.inputs)
        if not self.ways or len(set(self.ways)) < len(self.ways):
            raise BadInput(f"ways={self.ways}: name some of {', '.join(WAYS)}, each once")
        last = len(self.inputs[0]) - 1
        if any(not 0 <= position < last for position in self.special):
            raise BadInput(f"special={self.special}: there are positions 0 to {last}, some ordinary")
        if "freeze_elsewhere" in self.ways and len(self.inputs) < 2:
            raise BadInput("freeze_elsewhere takes the scales of another input, and there is one input only")
        if self.resamples < 2 or self.seed < 0 or self.float64_inputs < 0:
            raise BadInput("resamples must be at least 2, seed and float64_inputs at least 0")


def norm_report(  # noqa: PLR0913 (a measurement's settings)
    model: Model,
    texts: Prompts,
    *,
    ways: Sequence[Way] | None = None,
    special: Sequence[int] | None = None,
    length: int | None = None,
    max_inputs: int | None = None,
    float64_inputs: int = 1,
    by_kind: bool = True,
    baseline: bool = True,
    resamples: int = 2000,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what becomes of a model when its norms are folded, frozen, fixed or removed, and which of it is exact.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        ways: what is done to the norms of a copy, by default all that model and inputs allow: ``fold`` (gains, biases
            and centring into the linear layers that read them), ``freeze`` (scales held at those of the input itself),
            ``freeze_elsewhere`` (at those of another input), ``scale`` (one constant a norm, special positions apart),
            ``scale_all`` (none apart), ``remove``.
        special: positions that ``scale`` gives a scale of their own; the first by default, none where norms are given
            rows and positions as one axis (OPT).
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: the first so many inputs; all by default.
        float64_inputs: inputs that are compared in float64 too; 0 for none, without which nothing is called exact.
        by_kind: whether the norms of each kind alone (``ln1``, ``ln2``, ...) are given fixed scales too.
        baseline: whether norms are given the scales of others too.
        resamples: of the bootstrap.
        seed: of bootstrap and baseline.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``logit_difference[way, precision]`` (in the model's ``own`` dtype and ``float64``)
        and ``exact[way]``; ``kl_from_original``, ``loss_difference`` and ``top1_agreement`` of each way; ``loss`` and
        ``loss_quantile`` of the original and of each way; ``norm_scale[norm, position]``; ``norm_epsilon``; and
        ``baseline_kl_from_original``. Means and quantiles come with ``_stderr``, ``_low`` and ``_high`` over inputs.

    Raises:
        BadInput: a model without norms, an empty data set, inputs of different lengths, or a setting out of range.
    """
    inputs, norms = inputs_of(model, texts, length, max_inputs), find_norms(model)
    first = (0,) if all(norm.axis >= 0 for norm in norms) else ()
    measurement = NormReport(
        inputs=inputs,
        ways=_possible(model, norms, len(inputs)) if ways is None else several("ways", ways),
        special=first if special is None else several("special", special),
        float64_inputs=float64_inputs,
        by_kind=by_kind,
        baseline=baseline,
        resamples=resamples,
        seed=seed,
    )
    return perform(measurement, model, **run)


def _possible(model: Model, norms: Sequence[Norm], inputs: int) -> tuple[Way, ...]:
    """The ways that can be gone with a model of these norms, and so many inputs."""
    refused: set[Way] = set() if inputs > 1 else {"freeze_elsewhere"}
    if any(norm.axis < 0 for norm in norms):
        refused |= {"freeze", "freeze_elsewhere", "scale_all"}
    if any(norm.by_position for norm in norms):
        refused |= {"remove"}
    left = [norm for norm in norms if not norm.is_identity]
    if left and len(obstacles_of(model, left)) == len(left):
        refused |= {"fold"}
    return tuple(way for way in WAYS if way not in refused)


def _logits(model: Model, row: Tokens) -> Tensor:
    """Logits of one input, (pos, vocabulary)."""
    with torch.no_grad():
        output = model.module(input_ids=torch.tensor([row], device=model.device))
    return cast("Tensor", output if isinstance(output, Tensor) else output.logits)[0]


def _compare(original: Tensor, changed: Tensor, row: Tokens) -> Compared:
    loss = _loss(changed, row)
    kl = kl_divergence(*(log_probabilities(logits.double()) for logits in (original, changed))).mean()
    agreement = (original.argmax(-1) == changed.argmax(-1)).double().mean()
    metrics = torch.stack([kl, (loss - _loss(original, row)).mean(), agreement])
    difference = (original.double() - changed.double()).abs().max()
    broken = ~changed.isfinite().all()
    return Compared(
        metrics.masked_fill(broken, torch.nan),
        loss.masked_fill(broken, torch.nan),
        difference.masked_fill(broken, torch.nan),
    )


def _loss(logits: Tensor, row: Tokens) -> Tensor:
    """Negative log-probability of each next token, (pos - 1,), nats."""
    following = torch.tensor(row[1:], device=logits.device)[:, None]
    return -logits[:-1].double().log_softmax(-1).gather(-1, following)[:, 0]


def _by_position(norm: Norm, scales: Tensor) -> Tensor:
    """What a norm divides by at each position, heads and the like averaged, (pos,)."""
    return scales.movedim(max(norm.axis, 0), 0).flatten(1).mean(1)


def _layer(norm: Norm) -> int:
    layer = norm.name.rpartition(".")[2]
    return int(layer) if layer.isdigit() else -1
