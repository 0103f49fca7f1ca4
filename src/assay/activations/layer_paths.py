r"""Layer paths: how many blocks a signal must pass, and how much paths of each length carry.

Two arguments about depth, side by side. If blocks read only the last :math:`k` of :math:`L` layers
(:mod:`assay.activations.layer_horizon`), then what the first block writes reaches the readout only through others: it
takes at least :math:`\lceil L/k \rceil` blocks in a row, the first included; none where nothing that blocks write is
needed (:math:`k = 0`). And if short paths carry the gradient
(Veit et al. 2016, 1605.06431), few blocks in a row should do. Measured here, exactly (:mod:`assay.models.paths`): the
model in which at most m blocks work in a row, and the share of the loss gradient at the embedding that the paths of
each length carry.

The share of length k is the norm of what its paths carry together, of the sum of these norms over lengths; how many
times larger that sum is than the whole gradient tells how much lengths cancel. The projections on the whole, which add
up to 1 and may be negative, stand beside. The baselines: the share of the number of paths, :math:`\binom{L}{k} / 2^L`,
and the shares in an untrained twin.

Cost: about L / 2 forwards for the shallow model, as much backward for the gradients, and a layer horizon, an input.

Limits: a gradient tells of small changes; the shallow model feeds blocks streams they never saw. Both may understate
what short paths do together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from assay.activations.checks.layer_paths import paths_checks
from assay.activations.clean_run import METRICS, CleanRun
from assay.activations.data_set import check_inputs, check_scan, inputs_of, positions_read
from assay.activations.depth.horizon_prediction import LEVEL, check_tolerances, smallest_horizon
from assay.activations.depth.settings import numbers_of
from assay.activations.effects import PARTS, effect_variables, mean_variables
from assay.activations.layer_horizon import LayerHorizon
from assay.activations.prompt_pairs import Prompts
from assay.estimates.bootstrap import bootstrap
from assay.estimates.checks import Check
from assay.estimates.estimate import Floats, mean_interval
from assay.models.model import Model, Tokens
from assay.models.partial import measured, record
from assay.models.paths import loss_gradient, path_gradients, shallow_streams
from assay.models.twin import untrained_twin
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

KL = METRICS.index("kl_from_clean")
INPUTS_A_UNIT = 2


@dataclass(frozen=True, kw_only=True)
class LayerPaths(Measurement):
    """How many blocks a signal must pass, and how much paths of each length carry.

    Attributes:
        inputs: token ids of the data set, all of one length.
        tolerances: KL in nats a token up to which the model counts as unchanged.
        keep_first: position 0 is left as it is and not read, in the shallow model and in the horizon.
        read: positions read of each input, evenly spread; ``None`` for all.
        baseline_inputs: inputs whose gradients are taken in an untrained twin too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of the twin and of the bootstrap.
    """

    name: ClassVar[str] = "layer_paths"
    revision: ClassVar[int] = 3
    inputs: tuple[Tokens, ...]
    tolerances: tuple[float, ...] = (1.0, 0.3, 0.1)
    keep_first: bool = True
    read: int | None = None
    baseline_inputs: int = 2
    resamples: int = 2000
    seed: int = 0

    def prepare(self, model: Model) -> tuple[Any, Model | None]:
        """Prepare the horizon, and make the untrained twin."""
        twin = untrained_twin(model, seed=self.seed) if self.baseline_inputs else None
        return self._horizon().prepare(model), twin

    def plan(self, model: Model) -> Sequence[Unit]:
        """A few inputs each.

        Raises:
            BadInput: inputs of different lengths, or a setting out of range.
        """
        check_inputs(self.inputs)
        check_scan(
            seed=self.seed, resamples=self.resamples, baseline_inputs=self.baseline_inputs, max_rows=None
        )
        self._positions()
        check_tolerances(self.tolerances)
        starts = range(0, len(self.inputs), INPUTS_A_UNIT)
        stops = [min(start + INPUTS_A_UNIT, len(self.inputs)) for start in starts]
        return [
            Unit(f"inputs-{start:05d}", {"start": start, "stop": stop}, cost=stop - start)
            for start, stop in zip(starts, stops, strict=True)
        ]

    def measure(self, model: Model, unit: Unit, shared: tuple[Any, Model | None]) -> Pieces:
        """The shallow model, the gradients by length, and the horizon of a few inputs."""
        start, stop = unit.detail["start"], unit.detail["stop"]
        instead, twin = shared
        recording = record(model, torch.tensor(self.inputs[start:stop]))
        clean = CleanRun.of(recording, self._positions())
        streams = shallow_streams(recording, keep_first=self.keep_first)
        ends = streams[:, :, list(clean.read)]
        pieces = {
            "effect": measured(recording, ends.flatten(0, 1), len(ends), clean.measure).permute(1, 2, 0),
            "gradient": _shares(model, self.inputs[start:stop]),
            "horizon": self._horizon().measure(model, unit, instead)["effect"][:, KL],
            "clean_loss": clean.loss,
        }
        few = max(0, min(stop, self.baseline_inputs) - start)
        if few and twin is not None:
            pieces["twin"] = _shares(twin, self.inputs[start : start + few])
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs, and both sides of the argument, with their intervals."""
        units, layers = list(pieces.values()), model.n_layers
        effect, gradient, horizon, loss = (
            torch.cat([piece[name] for piece in units]).double().numpy()
            for name in ("effect", "gradient", "horizon", "clean_loss")
        )
        one, rng = len(effect) == 1, np.random.default_rng(self.seed)
        samples = gradient[:, 0]
        shares = mean_interval(samples) if one else bootstrap(samples, rng, resamples=self.resamples)
        variables: dict[str, Any] = {
            **effect_variables(effect, "depth", resamples=self.resamples, seed=self.seed),
            **mean_variables("clean_loss", loss),
            **{
                f"gradient_share{part}": (("length",), values, {"allow_nan": True} if part and one else {})
                for part, values in zip(PARTS, shares, strict=True)
            },
            "gradient_share_by_input": (("input", "length"), samples),
            "projected_share": (("length",), gradient[:, 1].mean(0)),
            **_ratio_variables("cancellation", gradient[:, 2, 0]),
            "path_share": (("length",), stats.binom.pmf(np.arange(layers + 1), layers, 0.5)),
            **self._both_sides(effect[:, KL], horizon, layers),
        }
        if self.baseline_inputs:
            twin = torch.cat([piece["twin"] for piece in units if "twin" in piece]).double().numpy()
            variables["baseline_gradient_share"] = (("length",), twin[:, 0].mean(0))
            variables["baseline_cancellation"] = ((), np.exp(np.log(twin[:, 2, 0]).mean()))
        coordinates = {
            "metric": list(METRICS),
            "depth": np.arange(layers + 1),
            "length": np.arange(layers + 1),
            "within": list(self.tolerances),
            "input": np.arange(len(effect)),
        }
        attributes = {
            "model": model.source,
            "n_layers": layers,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "baseline_inputs": min(self.baseline_inputs, len(self.inputs)),
            "keep_first": str(self.keep_first),
        }
        return xr.Dataset(variables, coordinates, attributes)

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The deepest is the model, gradients add up, training changed them, the bound holds, enough inputs."""
        return paths_checks(dataset)

    def _both_sides(self, depth: Floats, horizon: Floats, layers: int) -> dict[str, Any]:
        """The blocks a signal must pass given the horizon, and the depth that is enough, with intervals."""
        one = len(depth) == 1
        draws = np.random.default_rng(self.seed).integers(len(depth), size=(self.resamples, len(depth)))

        def sides(rows: Any) -> dict[str, Floats]:
            reach = np.stack(
                [smallest_horizon(horizon[rows].mean(-2), range(layers + 1), t) for t in self.tolerances], -1
            )
            enough = np.stack(
                [smallest_horizon(depth[rows].mean(-2), range(layers + 1), t) for t in self.tolerances], -1
            )
            bound = np.ceil(np.divide(layers, reach, out=np.zeros_like(reach), where=reach > 0))
            return {"smallest_horizon": reach, "lower_bound": bound, "depth_enough": enough}

        found: dict[str, Any] = {
            name: (("within",), value) for name, value in sides(np.arange(len(depth))).items()
        }
        if not one:
            for name, drawn in sides(draws).items():
                tails = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
                found[f"{name}_low"], found[f"{name}_high"] = ((("within",), end) for end in tails)
        return found

    def _positions(self) -> tuple[int, ...]:
        return positions_read(len(self.inputs[0]), self.read, first=int(self.keep_first))

    def _horizon(self) -> LayerHorizon:
        return LayerHorizon(
            inputs=self.inputs, keep_first=self.keep_first, read=self.read, baseline_inputs=0, seed=self.seed
        )


def _shares(model: Model, inputs: Sequence[Tokens]) -> Tensor:
    """Sizes by length as shares of their sum, projections on the whole, their sum by the whole: (input, 3, length)."""
    recording = record(model, torch.tensor(inputs))
    parts = path_gradients(recording, loss_gradient(recording)).double()
    whole = parts.sum(0)
    sizes, square = parts.square().sum((-1, -2)).sqrt(), whole.square().sum((-1, -2))
    projected = (parts * whole).sum((-1, -2)) / square
    cancelled = (sizes.sum(0) / square.sqrt()).expand_as(sizes)
    return torch.stack([sizes / sizes.sum(0), projected, cancelled]).permute(2, 0, 1)


def _ratio_variables(name: str, samples: Floats) -> dict[str, Any]:
    """A geometric mean over inputs; Student's interval is that of the logarithms, so that none goes below zero."""
    log = {key: value for key, (_, value) in mean_variables(name, np.log(samples)).items()}
    middle = np.exp(log[name])
    return {
        key: ((), middle * value if key.endswith("_stderr") else np.exp(value)) for key, value in log.items()
    }


def layer_paths(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    texts: Prompts,
    *,
    tolerances: Sequence[float] = (1.0, 0.3, 0.1),
    keep_first: bool = True,
    length: int | None = None,
    max_inputs: int | None = None,
    read: int | None = None,
    baseline_inputs: int = 2,
    resamples: int = 2000,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Find how many blocks a signal must pass, and how much paths of each length carry.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        tolerances: KL in nats a token up to which the model counts as unchanged.
        keep_first: position 0 is left as it is and not read, in the shallow model and in the horizon.
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: use this many inputs at most, the first ones.
        read: positions read of each input, evenly spread; all by default.
        baseline_inputs: inputs whose gradients are taken in an untrained twin too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of the twin and of the bootstrap.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[metric, depth]`` of the model in which at most so many blocks work in a
        row, ``gradient_share[length]`` with ``path_share`` and ``baseline_gradient_share`` beside it,
        ``projected_share`` and ``cancellation``, with intervals over inputs; and for each tolerance
        ``smallest_horizon``, the ``lower_bound`` it sets, and the ``depth_enough``.

    Raises:
        BadInput: an empty data set, inputs of different lengths, a family whose blocks cannot be run on their own, or a
            setting out of range.
    """
    measurement = LayerPaths(
        inputs=inputs_of(model, texts, length, max_inputs),
        tolerances=numbers_of(tolerances),
        keep_first=keep_first,
        read=read,
        baseline_inputs=baseline_inputs,
        resamples=resamples,
        seed=seed,
    )
    return perform(measurement, model, **run)
