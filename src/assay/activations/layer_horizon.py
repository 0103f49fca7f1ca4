r"""Layer horizon: how many layers back a model reads what was written.

Let every block, and the readout, read the embedding and what the last :math:`k` blocks wrote, and in place of what
earlier ones wrote a value without information about the input:

.. math:: x_n = e + \sum_{i=n-k}^{n-1} c_i + \sum_{i<n-k} v_i

The horizon is the smallest :math:`k`, from 0, from which on the model stays as it is, here: from which on KL(clean ||
edited) stays within a tolerance. The definition is Alex Turner's (2024, on the effective layer horizon of
transformers), the first experiments Joseph Miller's. What they leave open are settings: what stands in (:math:`v_i`),
whether what is still read comes from the edited run (so that changes compound) or from the original one, whether
embedding and position 0 are kept, whether all readers forget, one block, or only the readout, whether attention and MLP
count apart.

Norm growth predicts a horizon of its own. If the stream's norm grows by a factor :math:`g` a layer (Heimersheim and
Turner 2023: about 1.045 in GPT-2 XL), what stood there :math:`k` layers ago is the share :math:`g^{-k}` of it. A random
direction of such a share, added to the last stream, does a measured harm; the predicted horizon is the :math:`k` at
which that harm is within the tolerance.

The baseline forgets as many sources at each reader, of any distance, drawn at random for each input.

Position 0 is not read where it is kept: it is clean by construction, and would make every harm look smaller.

Cost: one forward's blocks for each k from the first block that forgets on, half of them on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.horizon import horizon_checks
from assay.activations.clean_run import METRICS, CleanRun
from assay.activations.data_set import check_inputs, check_scan, inputs_of, partners_of, positions_read
from assay.activations.depth.horizon_prediction import SHARES, check_tolerances, horizon_variables, norms_of
from assay.activations.depth.horizon_wiring import Forget, Reach, Where, Window
from assay.activations.depth.settings import numbers_of
from assay.activations.effects import effect_variables, mean_variables
from assay.activations.prompt_pairs import Prompts
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, partial_forward, record
from assay.models.rewiring import Rewiring, has_sublayers, middle_sites, run_rewired, written
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

Instead = Literal["mean", "zero", "resample"]
INPUTS_A_UNIT = 2


@dataclass(frozen=True, kw_only=True)
class LayerHorizon(Measurement):
    """How many layers back a model reads what was written.

    Attributes:
        inputs: token ids of the data set, all of one length.
        horizons: the k that are tried, in steps of ``reach``; empty for all, from 0 on.
        value: what stands in for what is forgotten: each source's ``mean`` over inputs and positions (position 0 left
            out where it is kept), ``zero``, or what it wrote in another input (``resample``).
        compounding: what is still read comes from the edited run; otherwise blocks read what was written originally.
        reach: ``block``, or ``sublayer`` to count attention and MLP each.
        forget: outputs that are forgotten: of ``both``, ``attention`` or ``mlp``.
        where: who forgets: blocks and readout (``everywhere``), ``blocks``, or only the readout (``output``).
        layer: the only block that forgets; ``None`` for what ``where`` says.
        keep_embedding: the embedding is never forgotten.
        keep_first: position 0 is left as it is, and not read.
        tolerances: KL in nats a token up to which the model counts as unchanged.
        read: positions read of each input, evenly spread; ``None`` for all.
        baseline_inputs: inputs on which random sources are forgotten too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of partners, random sources, random directions and bootstrap.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "layer_horizon"
    revision: ClassVar[int] = 3
    inputs: tuple[Tokens, ...]
    horizons: tuple[int, ...] = ()
    value: Instead = "mean"
    compounding: bool = True
    reach: Reach = "block"
    forget: Forget = "both"
    where: Where = "everywhere"
    layer: int | None = None
    keep_embedding: bool = True
    keep_first: bool = True
    tolerances: tuple[float, ...] = (1.0, 0.3, 0.1)
    read: int | None = None
    baseline_inputs: int = 2
    resamples: int = 2000
    seed: int = 0
    max_rows: int | None = None

    def prepare(self, model: Model) -> Tensor | None:
        """Take the mean of what each source writes, (source, d_model), where it stands in."""
        if self.value != "mean":
            return None
        total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
        for row in self.inputs:
            parts = torch.stack(written(_recorded(model, [row])))[:, 0, 1 if self.keep_first else 0 :]
            total, count = total + parts.double().sum(1), count + parts.shape[1]
        return (total / count).to(model.dtype)

    def plan(self, model: Model) -> Sequence[Unit]:
        """A few inputs each, with every k.

        Raises:
            BadInput: inputs of different lengths, a k or layer this model does not have, or a setting out of range.
        """
        self._validate(model)
        step = min(INPUTS_A_UNIT, self.max_rows or INPUTS_A_UNIT)
        units = []
        for start in range(0, len(self.inputs), step):
            stop = min(start + step, len(self.inputs))
            cost = stop - start + max(0, min(stop, self.baseline_inputs) - start)
            units.append(Unit(f"inputs-{start:05d}", {"start": start, "stop": stop}, cost=cost))
        return units

    def measure(self, model: Model, unit: Unit, shared: Tensor | None) -> Pieces:
        """Shorten what a few inputs' readers read, step by step."""
        start, stop = unit.detail["start"], unit.detail["stop"]
        recording = _recorded(model, self.inputs[start:stop])
        clean = CleanRun.of(recording, self._positions())
        instead = self._instead(model, recording, start, stop, shared)
        window = self._window(model)
        pieces = {
            "effect": self._run(clean, [window.reads(k) for k in self._horizons(window)], instead),
            "unedited": self._run(clean, [window.reads(window.longest)], instead),
            "clean_loss": clean.loss,
            "norm": norms_of(recording),
            "disturbed": self._disturbed(clean, start),
        }
        if start < self.baseline_inputs:
            few = min(stop, self.baseline_inputs) - start
            pieces["random"] = self._random(clean.rows(0, few), window, instead, start)
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs, the horizons and what norm growth predicts, with their intervals."""
        units = list(pieces.values())
        effect, norm, disturbed, loss = (
            torch.cat([piece[name] for piece in units]).double().numpy()
            for name in ("effect", "norm", "disturbed", "clean_loss")
        )
        window, rng = self._window(model), np.random.default_rng(self.seed)
        horizons = self._horizons(window)
        kl = effect[:, METRICS.index("kl_from_clean")]
        a_block = 2 if self.reach == "sublayer" else 1
        variables: dict[str, Any] = {
            **effect_variables(effect, "horizon", resamples=self.resamples, seed=self.seed),
            **mean_variables("clean_loss", loss),
            **horizon_variables(
                kl,
                horizons,
                norm,
                disturbed,
                self.tolerances,
                a_block=a_block,
                resamples=self.resamples,
                rng=rng,
            ),
            "unedited_effect": ((), max(float(piece["unedited"][:, 0].abs().max()) for piece in units)),
        }
        if self.baseline_inputs:
            random = torch.cat([piece["random"] for piece in units if "random" in piece]).double().numpy()
            for part, values in zip(("", "_stderr"), mean_interval(random), strict=False):
                unknown = {"allow_nan": True} if part and len(random) == 1 else {}
                variables[f"baseline_effect{part}"] = (("metric", "horizon"), values, unknown)
        coordinates = {
            "metric": list(METRICS),
            "horizon": horizons,
            "input": np.arange(len(self.inputs)),
            "within": list(self.tolerances),
            "layer": np.arange(model.n_layers + 1),
            "place": ["position 0", "others"],
            "share": list(SHARES),
        }
        return xr.Dataset(variables, coordinates, self._attributes(model))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Who reads everything is the model, forgetting the far does less than forgetting any, a horizon exists."""
        return horizon_checks(dataset)

    def memory(self, model: Model) -> int:
        """What the sources of one unit's wirings write, and the logits of a few positions."""
        wide = 4 * model.d_model * len(self.inputs[0]) * INPUTS_A_UNIT
        return wide * 4 * model.n_layers + 2**29 + 16 * model.parts.vocabulary * 256

    def _run(self, clean: CleanRun, tables: Sequence[Tensor], instead: Sequence[Tensor]) -> Tensor:
        """(input, metric, wiring)."""
        rewirings = [Rewiring(table, original=not self.compounding) for table in tables]
        found = run_rewired(
            clean.recording, rewirings, instead, clean.measure,
            positions=clean.read, keep_first=self.keep_first, max_rows=self.max_rows,
        )  # fmt: skip
        return found.permute(1, 2, 0)

    def _random(self, clean: CleanRun, window: Window, instead: Sequence[Tensor], start: int) -> Tensor:
        """(input, metric, wiring) of forgetting as many sources of any distance, other ones for each input."""
        rows = []
        for row in range(len(clean.recording.ids)):
            draws = ((k, np.random.default_rng([self.seed, start + row, k])) for k in self._horizons(window))
            drawn = [window.random(k, rng) for k, rng in draws]
            rows.append(self._run(clean.rows(row, row + 1), drawn, [part[row : row + 1] for part in instead]))
        return torch.cat(rows)

    def _positions(self) -> tuple[int, ...]:
        return positions_read(len(self.inputs[0]), self.read, first=int(self.keep_first))

    def _instead(
        self, model: Model, recording: Recording, start: int, stop: int, mean: Tensor | None
    ) -> list[Tensor]:
        """What stands in for each source, (row, pos, d_model)."""
        like = recording.resid[0]
        if self.value == "resample":
            partners = partners_of(len(self.inputs), torch.Generator().manual_seed(self.seed))[start:stop]
            return written(_recorded(model, [self.inputs[partner] for partner in partners]))
        parts = torch.zeros(1, 1, 1) if mean is None else mean[:, None, None]
        count = len(written(recording))
        return [parts[source % len(parts)].to(like).expand_as(like) for source in range(count)]

    def _disturbed(self, clean: CleanRun, start: int) -> Tensor:
        """KL of adding a random direction, a share of the last stream, at each position: (input, share)."""
        recording = clean.recording
        last, site = recording.resid[-1], f"resid_post.{len(recording.resid) - 2}"
        rows = [
            torch.randn(
                last.shape[1:],
                generator=torch.Generator().manual_seed(
                    int(np.random.default_rng([self.seed, start + row]).integers(2**63))
                ),
            )
            for row in range(len(last))
        ]
        direction = torch.nn.functional.normalize(torch.stack(rows).to(last), dim=-1)
        step = direction * last.norm(dim=-1, keepdim=True)
        variants = [(SiteEdit(site, last + share * step),) for share in SHARES]
        found = partial_forward(recording, variants, clean.measure, positions=clean.read)
        return found[..., METRICS.index("kl_from_clean")].T

    def _window(self, model: Model) -> Window:
        return Window(
            model.n_layers,
            has_sublayers(model),
            self.reach,
            self.forget,
            self.where,
            self.layer,
            self.keep_embedding,
        )

    def _horizons(self, window: Window) -> list[int]:
        return sorted(self.horizons) or list(range(window.longest + 1))

    def _attributes(self, model: Model) -> dict[str, Any]:
        told = ("value", "compounding", "reach", "forget", "where", "keep_embedding", "keep_first")
        return {
            "model": model.source,
            "n_layers": model.n_layers,
            "longest": self._window(model).longest,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "baseline_inputs": min(self.baseline_inputs, len(self.inputs)),
            **{name: str(getattr(self, name)) for name in told},
            "only_layer": -1 if self.layer is None else self.layer,
        }

    def _validate(self, model: Model) -> None:
        check_inputs(self.inputs)
        check_scan(
            seed=self.seed,
            resamples=self.resamples,
            baseline_inputs=self.baseline_inputs,
            max_rows=self.max_rows,
        )
        self._positions()
        longest = self._window(model).longest
        if len(set(self.horizons)) < len(self.horizons) or any(not 0 <= k <= longest for k in self.horizons):
            raise BadInput(
                f"horizons={self.horizons}: give each once, from 0 to {longest}, which forgets nothing"
            )
        check_tolerances(self.tolerances)
        if self.value == "resample" and len(self.inputs) < 2:
            raise BadInput("value='resample' takes values from other inputs, and there is one input only")


def _recorded(model: Model, rows: Sequence[Tokens]) -> Recording:
    return record(model, torch.tensor(rows), sites=middle_sites(model))


def layer_horizon(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    texts: Prompts,
    *,
    horizons: Sequence[int] = (),
    value: Instead = "mean",
    compounding: bool = True,
    reach: Reach = "block",
    forget: Forget = "both",
    where: Where = "everywhere",
    layer: int | None = None,
    keep_embedding: bool = True,
    keep_first: bool = True,
    tolerances: Sequence[float] = (1.0, 0.3, 0.1),
    length: int | None = None,
    max_inputs: int | None = None,
    read: int | None = None,
    baseline_inputs: int = 2,
    resamples: int = 2000,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find how many layers back a model reads what was written.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        horizons: the k that are tried, in steps of ``reach``; all by default, from 0 on.
        value: what stands in for what is forgotten: ``mean``, ``zero`` or ``resample``.
        compounding: what is still read comes from the edited run; otherwise blocks read what was written originally.
        reach: ``block``, or ``sublayer`` to count attention and MLP each.
        forget: outputs that are forgotten: of ``both``, ``attention`` or ``mlp``.
        where: who forgets: blocks and readout (``everywhere``), ``blocks``, or only the readout (``output``).
        layer: the only block that forgets; by default what ``where`` says.
        keep_embedding: the embedding is never forgotten.
        keep_first: position 0 is left as it is, and not read.
        tolerances: KL in nats a token up to which the model counts as unchanged.
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: use this many inputs at most, the first ones.
        read: positions read of each input, evenly spread; all by default.
        baseline_inputs: inputs on which random sources are forgotten too; 0 for none.
        resamples: of the bootstrap over inputs.
        seed: of partners, random sources, random directions and bootstrap.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[metric, horizon]`` with ``_stderr``, ``_low`` and ``_high`` over inputs;
        ``smallest_horizon[within]`` with its interval, the largest k + 1 where no k that was tried is enough;
        ``norm[place, layer]``, ``growth`` a layer, and ``predicted_horizon[within]``; ``disturbed[share]``;
        ``clean_loss``; and ``baseline_effect`` of forgetting as many sources of any distance.

    Raises:
        BadInput: an empty data set, inputs of different lengths, a k or a layer out of range, sublayers where a block
            has none, a family whose blocks cannot be run on their own, or a setting out of range.
    """
    measurement = LayerHorizon(
        inputs=inputs_of(model, texts, length, max_inputs),
        horizons=numbers_of(horizons),
        value=value,
        compounding=compounding,
        reach=reach,
        forget=forget,
        where=where,
        layer=layer,
        keep_embedding=keep_embedding,
        keep_first=keep_first,
        tolerances=numbers_of(tolerances),
        read=read,
        baseline_inputs=baseline_inputs,
        resamples=resamples,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)
