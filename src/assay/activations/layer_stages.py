r"""Stages of inference: what a model would say after each layer, and the neurons that raise or lower single tokens.

After each layer, the stream read out as if it were the last: the entropy of what it would say, KL(final || layer), and
the share of positions at which the most probable token is already the final one. And in each layer the share of
prediction and suppression neurons: a neuron's output weights, their mean taken out where the final norm does, through
its weight and the unembedding, add to each token's logit; where these additions have a heavy tail (kurtosis above 10),
the neuron speaks of few tokens, and raises them (skewness above 0: a prediction neuron) or lowers them (a suppression
neuron).

Lad, Gurnee and Tegmark 2024 (2406.19384) tell four stages by these curves: detokenization, feature engineering (both
without a guess), prediction ensembling (prediction neurons, falling entropy), residual sharpening (suppression neurons,
the last layers). Kurtosis and skewness as in Gurnee et al. 2024 (2401.12181).

The baseline of the curves is an untrained twin's. That of the neurons is the same neurons with their output weights in
another order: what is heavy about the weights and about the unembedding alone is still there, and where they meet is
not. (Random directions and a twin's neurons would show nothing whatever the unembedding: sums over many coordinates of
Gaussian weights are nearly Gaussian.)

Cost: one forward an input, one unembedding a layer and position that is read; the neurons once, by matrix products.

Limits: a lens reads early layers in the last layer's coordinates; kurtosis is told by the weights alone, whether a
neuron is ever active or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.stages import stages_checks
from assay.activations.clean_run import CleanRun
from assay.activations.data_set import check_inputs, check_scan, inputs_of, positions_read
from assay.activations.depth.output_moments import output_moments
from assay.activations.divergence import kl_divergence, log_probabilities
from assay.activations.effects import PARTS
from assay.activations.prompt_pairs import Prompts
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval, proportion
from assay.models.model import Model, Tokens
from assay.models.partial import record
from assay.models.twin import untrained_twin
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

CURVES = ("entropy", "kl_to_final", "top1_agreement")
"""What is read after each layer."""
KURTOSIS = 10.0
"""Above it a neuron speaks of few tokens."""
ROWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class LayerStages(Measurement):
    """What a model would say after each layer, and which layers raise or lower single tokens.

    Attributes:
        inputs: token ids of the data set, all of one length.
        neurons: tell prediction and suppression neurons; needs MLPs with neurons that write straight into the stream.
        read: positions read of each input at most, evenly spread; ``None`` for all.
        baseline_inputs: inputs that an untrained twin reads too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of the twin, the order of output weights and the bootstrap.
    """

    name: ClassVar[str] = "layer_stages"
    revision: ClassVar[int] = 3
    inputs: tuple[Tokens, ...]
    neurons: bool = True
    read: int | None = 16
    baseline_inputs: int = 2
    resamples: int = 2000
    seed: int = 0

    def plan(self, model: Model) -> Sequence[Unit]:
        """One unit an input; one an input of the twin; one of the neurons, and one of their baseline.

        Raises:
            BadInput: inputs of different lengths, neurons that do not write straight into the stream, or a setting out
                of range.
        """
        check_inputs(self.inputs)
        check_scan(
            seed=self.seed, resamples=self.resamples, baseline_inputs=self.baseline_inputs, max_rows=None
        )
        self._positions(len(self.inputs[0]))
        units = [Unit(f"input-{i:05d}", {"input": i, "twin": False}) for i in range(len(self.inputs))]
        few = range(min(self.baseline_inputs, len(self.inputs)))
        units += [Unit(f"twin-{i:05d}", {"input": i, "twin": True}) for i in few]
        if self.neurons:
            require_neurons(model)
            units += [
                Unit(name, {"shuffled": name != "neurons"}, cost=10.0) for name in ("neurons", "shuffled")
            ]
        return units

    def prepare(self, model: Model) -> Model | None:
        """Make the untrained twin."""
        return untrained_twin(model, seed=self.seed) if self.baseline_inputs else None

    def measure(self, model: Model, unit: Unit, shared: Model | None) -> Pieces:
        """Read one input after every layer, or the neurons' output weights."""
        if "shuffled" in unit.detail:
            kurtosis, skewness = output_moments(model, seed=self.seed if unit.detail["shuffled"] else None)
            return {"kurtosis": kurtosis, "skewness": skewness}
        studied = shared if unit.detail["twin"] else model
        assert studied is not None  # twins are planned only where one is made
        return {"curves": self._curves(studied, self.inputs[unit.detail["input"]])}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs and shares of neurons, with their intervals."""
        curves, twin = (
            [piece["curves"] for name, piece in pieces.items() if name.startswith(kind)]
            for kind in ("input", "twin")
        )
        samples = torch.stack(curves).double().numpy()  # input, curve, layer
        dims, one = ("curve", "layer"), len(samples) == 1
        rng = np.random.default_rng(self.seed)
        intervals = mean_interval(samples) if one else bootstrap(samples, rng, resamples=self.resamples)
        variables: dict[str, Any] = {
            f"stage{part}": (dims, values, {"allow_nan": True} if part and one else {})
            for part, values in zip(PARTS, intervals, strict=True)
        }
        variables["stage_by_input"] = (("input", *dims), samples)
        if twin:
            variables["baseline_stage"] = (dims, torch.stack(twin).double().mean(0).numpy())
        if self.neurons:
            variables |= _neuron_variables("neuron_share", pieces["neurons"])
            variables |= _neuron_variables("baseline_neuron_share", pieces["shuffled"])
        coordinates = {
            "curve": list(CURVES),
            "layer": np.arange(model.n_layers),
            "input": np.arange(len(samples)),
            "kind": ["prediction", "suppression"],
        }
        attributes = {
            "model": model.source,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "baseline_inputs": min(self.baseline_inputs, len(self.inputs)),
            "kurtosis": KURTOSIS,
        }
        return xr.Dataset(
            variables, coordinates if self.neurons else _without(coordinates, "kind"), attributes
        )

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The last layer is the model, the twin has no such stages, shuffled neurons no such tails."""
        return stages_checks(dataset)

    def _positions(self, length: int) -> tuple[int, ...]:
        """The positions that are read; all of an input with fewer."""
        return positions_read(length, self.read and min(self.read, length - 1))

    def _curves(self, model: Model, tokens: Tokens) -> Tensor:
        """(curve, layer) of one input."""
        recording = record(model, [list(tokens)])
        clean = CleanRun.of(recording, self._positions(len(tokens)))
        rows = [self._after(clean, resid[0, list(clean.read)]) for resid in recording.resid[1:]]
        return torch.stack(rows, -1)

    def _after(self, clean: CleanRun, resid: Tensor) -> Tensor:
        """Entropy, KL(final || layer) and agreement of one layer's stream, means over positions."""
        found = []
        for start in range(0, len(resid), ROWS_AT_ONCE):
            here = slice(start, start + ROWS_AT_ONCE)
            logs = log_probabilities(clean.recording.readout(resid[here]))
            final = clean.log_probabilities[here]
            entropy = -(logs.exp() * logs).sum(-1)
            kl = kl_divergence(final, logs)
            found.append(torch.stack([entropy, kl, (logs.argmax(-1) == clean.tokens[here, 0]).float()]))
        return torch.cat(found, 1).mean(1)


def require_neurons(model: Model) -> None:
    """Refuse a model whose neurons do not write straight into the stream.

    Raises:
        BadInput: it has none, they are normed, or there is nothing to read them through.
    """
    parts = model.parts
    if len(model.sites("mlp_act")) < model.n_layers or any(
        block.after_mlp is not None for block in parts.blocks
    ):
        raise BadInput(
            f"{model.source} computes no neurons, or norms what they write: pass neurons=False for the curves alone"
        )
    if parts.final_norm is None or parts.unembed is None:
        raise BadInput(
            f"{model.source} has no final norm and unembedding to read neurons through: pass neurons=False"
        )


def _neuron_variables(name: str, piece: Pieces) -> dict[str, Any]:
    """The share of each kind of neuron in each layer, with Wilson's interval."""
    kurtosis, skewness = piece["kurtosis"].double().numpy(), piece["skewness"].double().numpy()
    heavy = kurtosis > KURTOSIS
    shares = np.zeros((4, 2, len(kurtosis)))
    for place, chosen in enumerate((heavy & (skewness > 0), heavy & (skewness < 0))):
        for layer, row in enumerate(chosen):
            found = proportion(int(row.sum()), row.size)
            shares[:, place, layer] = found.value, found.stderr, found.low, found.high
    return {f"{name}{part}": (("kind", "layer"), values) for part, values in zip(PARTS, shares, strict=True)}


def _without(coordinates: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in coordinates.items() if key != name}


def layer_stages(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    texts: Prompts,
    *,
    neurons: bool = True,
    length: int | None = None,
    max_inputs: int | None = None,
    read: int | None = 16,
    baseline_inputs: int = 2,
    resamples: int = 2000,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what a model would say after each layer, and which layers raise or lower single tokens.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        neurons: tell prediction and suppression neurons; needs MLPs with neurons that write straight into the stream.
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: use this many inputs at most, the first ones.
        read: positions read of each input at most, evenly spread; ``None`` for all.
        baseline_inputs: inputs that an untrained twin reads too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of the twin, the order of output weights and the bootstrap.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``stage[curve, layer]`` (entropy and kl_to_final in nats, top1_agreement) with
        ``_stderr``, ``_low`` and ``_high`` over inputs, ``baseline_stage`` of the twin, ``neuron_share[kind, layer]``
        of prediction and suppression neurons with Wilson's interval, and ``baseline_neuron_share`` of the same
        neurons with their output weights in another order.

    Raises:
        BadInput: an empty data set, inputs of different lengths, a model without such neurons, or a setting out of
            range.
    """
    measurement = LayerStages(
        inputs=inputs_of(model, texts, length, max_inputs),
        neurons=neurons,
        read=read,
        baseline_inputs=baseline_inputs,
        resamples=resamples,
        seed=seed,
    )
    return perform(measurement, model, **run)
