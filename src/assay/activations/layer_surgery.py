r"""Layer surgery: what a model loses when layers are left out, exchanged, repeated, shuffled or run side by side.

With :math:`x_{l+1} = B_l(x_l)` the residual stream, leaving out layer :math:`l` sets :math:`x_{l+1} = x_l`, exchanging
two runs :math:`B_l` after :math:`B_{l+1}`, and layers side by side give :math:`x + \frac1n \sum_l (B_l(x) - x)`. What
changes is measured as in :mod:`assay.activations.ablation`: the loss, KL(clean || edited), the share of positions with
the same most probable token.

Sources: Veit et al. 2016 (1605.06431) for residual networks, with layers dropped at random and their order shuffled
(Kendall's tau); Lad et al. 2024 (2406.19384) for leaving out and exchanging layers of language models; Sun et al. 2024
(2407.09298) for skipping, reversing, shuffling, copying and running the middle side by side.

The baseline moves the stream, where the edited course comes back to the usual one, as far from the clean stream as the
surgery does, token by token, but in a random direction.

Cost: an edited course starts where it leaves the usual one (:mod:`assay.models.courses`); all L deletions together run
about half of L forwards' blocks, and unembed the positions that are read.

Limits: a layer that others can do without is not a layer that does nothing; position 0 is a position like any other
here, and layers that build its huge activation look important.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.surgery import surgery_checks
from assay.activations.clean_run import METRICS, CleanRun, clean_memory
from assay.activations.data_set import check_inputs, check_scan, inputs_of, positions_read
from assay.activations.depth.operations import RANDOM, Operation, Surgery, surgeries
from assay.activations.depth.settings import numbers_of
from assay.activations.effects import effect_variables, mean_variables
from assay.activations.prompt_pairs import Prompts, words_of
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.courses import course_streams, run_courses, shared_end, usual
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, partial_forward, record
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

INPUTS_A_UNIT = 4


@dataclass(frozen=True, kw_only=True)
class LayerSurgery(Measurement):
    """What a model loses when its layers are rearranged.

    Attributes:
        inputs: token ids of the data set, all of one length.
        operations: what is done (:mod:`assay.activations.depth.operations`).
        layers: the layers operated on; empty for all, or for the middle half where all are operated on at once.
        draws: of each size, for operations that are drawn at random.
        average: layers side by side are averaged; otherwise what they write is added.
        read: positions read of each input, evenly spread; ``None`` for all.
        baseline_inputs: inputs on which random directions are tried too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of draws, random directions and bootstrap.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "layer_surgery"
    revision: ClassVar[int] = 3
    inputs: tuple[Tokens, ...]
    operations: tuple[Operation, ...] = ("delete", "swap")
    layers: tuple[int, ...] = ()
    draws: int = 8
    average: bool = True
    read: int | None = None
    baseline_inputs: int = 4
    resamples: int = 2000
    seed: int = 0
    max_rows: int | None = None

    def plan(self, model: Model) -> Sequence[Unit]:
        """A few inputs each, with every surgery.

        Raises:
            BadInput: inputs of different lengths, a layer this model does not have, or a setting out of range.
        """
        check_inputs(self.inputs)
        check_scan(
            seed=self.seed,
            resamples=self.resamples,
            baseline_inputs=self.baseline_inputs,
            max_rows=self.max_rows,
        )
        positions_read(len(self.inputs[0]), self.read)
        self._surgeries(model)
        step = min(INPUTS_A_UNIT, self.max_rows or INPUTS_A_UNIT)
        units = []
        for start in range(0, len(self.inputs), step):
            stop = min(start + step, len(self.inputs))
            cost = stop - start + max(0, min(stop, self.baseline_inputs) - start)
            units.append(Unit(f"inputs-{start:05d}", {"start": start, "stop": stop}, cost=cost))
        return units

    def measure(self, model: Model, unit: Unit, shared: None) -> Pieces:
        """Take a few inputs through every course, and the first ones of the data set in random directions too."""
        start, stop = unit.detail["start"], unit.detail["stop"]
        recording = record(model, torch.tensor(self.inputs[start:stop]))
        read = positions_read(recording.ids.shape[1], self.read)
        clean = CleanRun.of(recording, read)
        found = self._surgeries(model)
        one = clean.rows(0, 1)
        pieces = {
            "effect": self._run(clean, found).permute(1, 2, 0),
            "unedited": run_courses(
                one.recording, [usual(model.n_layers)], one.measure, positions=read, afresh=True
            )[0],
            "clean_loss": clean.loss,
        }
        if start < self.baseline_inputs:
            few = min(stop, self.baseline_inputs) - start
            pieces["random"] = self._random(clean.rows(0, few), found, start).permute(1, 2, 0)
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs, their intervals, and p-values over the scan."""
        found, units = self._surgeries(model), list(pieces.values())
        effect = torch.cat([piece["effect"] for piece in units]).double().numpy()  # input, metric, surgery
        loss = torch.cat([piece["clean_loss"] for piece in units]).double().numpy()
        variables: dict[str, Any] = {
            **effect_variables(effect, "surgery", resamples=self.resamples, seed=self.seed),
            **mean_variables("clean_loss", loss),
            "unedited_effect": ((), max(float(piece["unedited"][:, 0].abs().max()) for piece in units)),
        }
        if self.baseline_inputs:
            random = torch.cat([piece["random"] for piece in units if "random" in piece]).double().numpy()
            for part, values in zip(("", "_stderr"), mean_interval(random), strict=False):
                unknown = {"allow_nan": True} if part and len(random) == 1 else {}
                variables[f"baseline_effect{part}"] = (("metric", "surgery"), values, unknown)
        taus = [surgery.kendall_tau(model.n_layers) for surgery in found]
        variables["kendall_tau"] = ("surgery", np.array(taus), {"allow_nan": True})
        variables |= _by_size(found, effect)
        coordinates = {
            "metric": list(METRICS),
            "surgery": [surgery.name for surgery in found],
            "input": np.arange(len(self.inputs)),
            **{
                name: ("surgery", [getattr(surgery, name) for surgery in found])
                for name in ("operation", "layer", "size", "draw")
            },
            **_groups(found),
        }
        attributes = {
            "model": model.source,
            "n_layers": model.n_layers,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "baseline_inputs": min(self.baseline_inputs, len(self.inputs)),
            "together": "averaged" if self.average else "added",
        }
        return xr.Dataset(variables, coordinates, attributes)

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The usual course is the model, surgery does more than random directions, enough inputs."""
        return surgery_checks(dataset)

    def memory(self, model: Model) -> int:
        """The streams of one unit's courses, and what is read of its inputs."""
        wide = 4 * model.d_model * len(self.inputs[0]) * INPUTS_A_UNIT
        read = INPUTS_A_UNIT * len(positions_read(len(self.inputs[0]), self.read))
        return wide * (4 * model.n_layers + 8 * len(self._surgeries(model))) + clean_memory(model, read)

    def _surgeries(self, model: Model) -> list[Surgery]:
        return surgeries(self.operations, model.n_layers, self.layers, draws=self.draws, seed=self.seed)

    def _run(self, clean: CleanRun, found: Sequence[Surgery]) -> Tensor:
        """(surgery, input, metric)."""
        return run_courses(
            clean.recording,
            [surgery.course for surgery in found],
            clean.measure,
            positions=clean.read,
            average=self.average,
            max_rows=self.max_rows,
        )

    def _random(self, clean: CleanRun, found: Sequence[Surgery], start: int) -> Tensor:
        """(surgery, input, metric) of moving the stream as far in a random direction, where courses come back."""
        recording, layers = clean.recording, len(clean.recording.resid) - 1
        back = [shared_end(surgery.course, layers) for surgery in found]
        until = [
            surgery.course[: len(surgery.course) - (layers - end)]
            for surgery, end in zip(found, back, strict=True)
        ]
        streams = course_streams(recording, until, average=self.average, max_rows=self.max_rows)
        variants = []
        for number, (stream, end) in enumerate(zip(streams, back, strict=True)):
            own = recording.resid[end]
            size = (stream - own).norm(dim=-1, keepdim=True)
            direction = self._drawn(recording, start, number)
            site = f"resid_pre.{end}" if end < layers else f"resid_post.{layers - 1}"
            moved = own + size * direction / direction.norm(dim=-1, keepdim=True)
            variants.append((SiteEdit(site, moved),))
        return partial_forward(
            recording, variants, clean.measure, positions=clean.read, max_rows=self.max_rows
        )

    def _drawn(self, recording: Recording, start: int, number: int) -> Tensor:
        """Gaussian numbers of each input and surgery, whatever is measured beside them."""
        rows = []
        for row in range(len(recording.ids)):
            seed = int(np.random.default_rng([self.seed, start + row, number]).integers(2**63))
            shape = recording.resid[0].shape[1:]
            rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows).to(recording.resid[0])


def _groups(found: Sequence[Surgery]) -> dict[str, Any]:
    """Coordinates of the operations that are drawn at random, one for each size."""
    groups = list(dict.fromkeys((s.operation, s.size) for s in found if s.operation in RANDOM))
    if not groups:
        return {}
    return {
        "group": [f"{operation}.{size}" for operation, size in groups],
        "group_operation": ("group", [operation for operation, _ in groups]),
        "group_size": ("group", [size for _, size in groups]),
    }


def _by_size(found: Sequence[Surgery], effect: np.ndarray) -> dict[str, Any]:
    """Means over draws and inputs of each random operation and size, with Student's interval over draws."""
    groups = list(dict.fromkeys((s.operation, s.size) for s in found if s.operation in RANDOM))
    if not groups:
        return {}
    columns: dict[str, list[Any]] = {"": [], "_stderr": [], "_low": [], "_high": []}
    for operation, size in groups:
        chosen = [i for i, s in enumerate(found) if (s.operation, s.size) == (operation, size)]
        for part, values in zip(columns, mean_interval(effect.mean(0)[:, chosen], axis=1), strict=True):
            columns[part].append(values)
    return {
        f"group_effect{part}": (
            ("metric", "group"), np.stack(values, 1), {"allow_nan": True} if part else {}
        )
        for part, values in columns.items()
    }  # fmt: skip


def layer_surgery(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    texts: Prompts,
    *,
    operations: Sequence[Operation] = ("delete", "swap"),
    layers: Sequence[int] = (),
    draws: int = 8,
    average: bool = True,
    length: int | None = None,
    max_inputs: int | None = None,
    read: int | None = None,
    baseline_inputs: int = 4,
    resamples: int = 2000,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what a model loses on a data set when its layers are left out, exchanged, repeated or run side by side.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        operations: each layer in turn: ``delete``, ``repeat`` (run twice), ``swap`` (with the next); all chosen layers
            at once: ``skip``, ``reverse``, ``shuffle``, ``copies`` (the middle one in place of each), ``parallel``;
            drawn at random in growing numbers: ``drop`` (left out), ``reorder`` (pairs exchanged).
        layers: the layers operated on; by default all, or the middle half where all are operated on at once.
        draws: of each size, for ``shuffle``, ``drop`` and ``reorder``.
        average: layers side by side are averaged; otherwise what they write is added.
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: use this many inputs at most, the first ones.
        read: positions read of each input, evenly spread; all by default.
        baseline_inputs: inputs on which random directions are tried too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of draws, random directions and bootstrap.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[metric, surgery]`` with ``_stderr``, ``_low`` and ``_high`` over inputs,
        ``p_value`` and ``q_value``, ``effect_by_input``, ``kendall_tau``, ``clean_loss``, ``baseline_effect`` of random
        directions, and for operations drawn at random ``group_effect`` with its interval over draws.

    Raises:
        BadInput: an empty data set, inputs of different lengths, an operation or a layer that does not exist, a family
            whose blocks cannot be run on their own, or a setting out of range.
    """
    measurement = LayerSurgery(
        inputs=inputs_of(model, texts, length, max_inputs),
        operations=words_of(operations),
        layers=numbers_of(layers),
        draws=draws,
        average=average,
        read=read,
        baseline_inputs=baseline_inputs,
        resamples=resamples,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)
