r"""Ablation: what a model loses on a data set when one component at a time carries no information about the input.

With :math:`p` the clean and :math:`\tilde p_c` the model's distribution with component :math:`c` replaced, over the
tokens :math:`x_1 \dots x_T` of one input,

.. math:: \Delta\mathrm{loss} = \frac{1}{T-1}\sum_{t<T} \log\frac{p(x_{t+1})}{\tilde p_c(x_{t+1})}, \qquad
          \mathrm{KL} = \frac{1}{T}\sum_t \mathrm{KL}\bigl(p_t \,\|\, \tilde p_{c,t}\bigr)

and then the mean over inputs; top-1 agreement and the change of the logit difference between the next token and the
clean model's most probable other one likewise. KL is taken token by token before any mean, so that changes of opposite
sign do not cancel.

What stands in: ``zero``; the component's ``mean`` over inputs and positions, or at each position (``position_mean``);
its value in another input at the same position (``resample``); itself with Gaussian ``noise`` of its own spread; the
constant that loses least, learned (``optimal``, :mod:`assay.activations.components.optimal_constants`). ``freeze``
turns this round: the embeddings carry noise, the component keeps its clean value, and effects are differences from the
disturbed run: what it takes back. Besides modules, an edge (what one reader sees of one component) and a direction at
a site can be replaced (:mod:`assay.activations.components.links`). The baseline changes what is added to the residual
stream by as much as the replacement does, token by token, but in a random direction: a component whose replacement does
no more than that is not shown to carry anything.

Intervals are bootstrapped over inputs (BCa); p-values are Student's, over inputs, for a mean of zero, and adjusted over
the scan (Benjamini and Hochberg 1995).

Cost: exact partial forwards that start at the component's block (:mod:`assay.models.partial`): half of the blocks on
average, and the whole unembedding, which is what bounds the gain.

Limits: zero and noise take the model out of its distribution; mean and resample less so (Chan et al. 2022; Li and
Janson 2024, 2409.09951). One component at a time: what others can do in its place looks unimportant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.ablation import ablation_checks
from assay.activations.clean_run import METRICS, CleanRun, clean_memory
from assay.activations.components.component import Component
from assay.activations.components.names import find_components
from assay.activations.components.optimal_constants import Constants, Descent, optimal_constants
from assay.activations.components.replacements import Replacements, Statistics, Value, statistics
from assay.activations.data_set import check_inputs, check_scan, inputs_of, partners_of, positions_read
from assay.activations.effects import PARTS, effect_variables, mean_variables
from assay.activations.engine import engine_named, reason_kept
from assay.activations.prompt_pairs import Prompts, words_of
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.edits import Edit
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, Variant, measured, partial_forward, record
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

INPUTS_A_UNIT = 4
VARIANTS_AT_ONCE = 256


class Prepared(NamedTuple):
    """What a value needs of the whole data set: its statistics, and the best constants of each component."""

    statistics: Statistics | None
    constants: Constants


@dataclass(frozen=True, kw_only=True)
class Ablation(Measurement):
    """What a model loses when one component at a time is replaced.

    Attributes:
        inputs: token ids of the data set, all of one length.
        components: what is replaced: ``heads``, ``mlp``, ``attention``, ``layers``, ``head.3.5``, ``neuron.3.112``...
        value: what stands in.
        noise: standard deviations of the noise, for ``value="noise"``, and of the embeddings' for ``"freeze"``.
        descent_steps: of gradient descent to the best constant, for ``value="optimal"``.
        descent_rate: its step, in standard deviations of the component.
        read: positions read of each input, evenly spread; ``None`` for all.
        baseline_inputs: inputs on which random directions are tried too; 0 for none.
        resamples: of the bootstrap.
        seed: of partners, noise, random directions and bootstrap.
        max_rows: most rows in one pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "ablation"
    revision: ClassVar[int] = 4
    inputs: tuple[Tokens, ...]
    components: tuple[str, ...] = ("heads", "mlp")
    value: Value = "mean"
    noise: float = 1.0
    descent_steps: int = 20
    descent_rate: float = 0.1
    read: int | None = None
    baseline_inputs: int = 4
    resamples: int = 2000
    seed: int = 0
    max_rows: int | None = None

    def prepare(self, model: Model) -> Prepared:
        """Take the statistics of the data set that the value needs, and learn the best constants."""
        components = find_components(model, self.components)
        if self.value in ("zero", "resample"):
            return Prepared(None, {})
        sites = {"embed"} if self.value == "freeze" else {site for c in components for site in c.sites}
        known = statistics(model, self.inputs, sorted(sites))
        if self.value != "optimal":
            return Prepared(known, {})
        descent = Descent(self.descent_steps, self.descent_rate)
        read = self._read()
        return Prepared(known, optimal_constants(model, self.inputs, components, known, descent, read=read))

    def plan(self, model: Model) -> Sequence[Unit]:
        """A few inputs each, with every component.

        Raises:
            BadInput: inputs of different lengths, a component this model does not have, or a setting out of range.
        """
        self._validate()
        self._read()
        components = find_components(model, self.components)
        if self.value == "noise" and any(component.kind == "direction" for component in components):
            raise BadInput(
                "value='noise' has no spread along a direction; take zero, mean, resample or optimal"
            )
        step = min(INPUTS_A_UNIT, self.max_rows or INPUTS_A_UNIT)
        units = []
        for start in range(0, len(self.inputs), step):
            stop = min(start + step, len(self.inputs))
            cost = stop - start + len(self._compared(start, stop))
            units.append(Unit(f"inputs-{start:05d}", {"start": start, "stop": stop}, cost=cost))
        return units

    def measure(self, model: Model, unit: Unit, shared: Prepared) -> Pieces:
        """Replace every component in a few inputs, and in the first ones of the data set random directions too."""
        start, stop = unit.detail["start"], unit.detail["stop"]
        components = find_components(model, self.components)
        recording = record(model, torch.tensor(self.inputs[start:stop]), sites=self._sites(components))
        clean, others = (
            CleanRun.of(recording, self._read()),
            self._others(model, recording, components, start, stop),
        )
        if self.value == "freeze":
            disturbed = self._disturbed(model, recording, shared, start)
            clean, recording = replace(clean, recording=disturbed), disturbed
        numbers = list(range(start, stop))
        standing_in = Replacements(
            recording, numbers, self.value, shared.statistics, others, self.noise, self.seed, shared.constants
        )
        before = self._before(clean)
        pieces = {
            "effect": self._scan(clean, components, standing_in, before),
            "own": self._run(clean, [standing_in.own(one) for one in _one_of_each(components)]) - before,
            "clean_loss": clean.loss,
            "fallback": reason_kept(recording.fallback),
        }
        if self.value == "freeze":
            pieces["disturbed"] = before
        few = len(self._compared(start, stop))
        if few:
            moved = replace(
                standing_in,
                recording=recording.rows(0, few),
                inputs=numbers[:few],
                partners={site: value[:few] for site, value in others.items()},
            )
            first = clean.rows(0, few)
            pieces["random"] = self._scan(first, components, moved, before[:few], random=True)
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over inputs, their intervals, and p-values over the scan."""
        components, units = find_components(model, self.components), list(pieces.values())
        effect = torch.cat([piece["effect"] for piece in units]).double().numpy()  # input, metric, component
        loss = torch.cat([piece["clean_loss"] for piece in units]).double().numpy()
        variables: dict[str, Any] = {
            **effect_variables(effect, "component", resamples=self.resamples, seed=self.seed),
            **mean_variables("clean_loss", loss),
            **self._disturbance(units),
            "own_value_effect": ((), max(float(piece["own"][..., 0].abs().max()) for piece in units)),
        }
        if self.baseline_inputs:
            random = torch.cat([piece["random"] for piece in units if "random" in piece])
            for part, values in zip(PARTS[:2], mean_interval(random.double().numpy()), strict=False):
                unknown = {"allow_nan": True} if part and len(random) == 1 else {}
                variables[f"baseline_effect{part}"] = (("metric", "component"), values, unknown)
        coordinates = {
            "metric": list(METRICS),
            "component": [component.name for component in components],
            "input": np.arange(len(self.inputs)),
            **{
                name: ("component", [getattr(component, name) for component in components])
                for name in ("kind", "layer", "index")
            },
        }
        return xr.Dataset(variables, coordinates, self._attributes(model, units))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """A component's own value changes nothing, replacements do more than random directions, enough inputs."""
        return ablation_checks(dataset)

    def memory(self, model: Model) -> int:
        """The recorded inputs of one unit, what is read of them, the variants at once, and the rows of one pass."""
        wide, rows = 4 * model.d_model * len(self.inputs[0]), self.max_rows or VARIANTS_AT_ONCE
        clean = clean_memory(model, len(self._read()) * INPUTS_A_UNIT)
        return wide * (8 * model.n_layers * INPUTS_A_UNIT + VARIANTS_AT_ONCE + 16 * rows) + clean

    def _others(
        self, model: Model, recording: Recording, components: Sequence[Component], start: int, stop: int
    ) -> Mapping[str, Tensor]:
        """The sites in the runs that values are taken from: of other inputs, or of the clean run."""
        if self.value == "freeze":
            return recording.sites
        if self.value != "resample":
            return {}
        partners = partners_of(len(self.inputs), torch.Generator().manual_seed(self.seed))
        others = [list(self.inputs[partner]) for partner in partners[start:stop]]
        return capture(model, others, self._sites(components))

    def _disturbed(self, model: Model, recording: Recording, shared: Prepared, start: int) -> Recording:
        """The same inputs with Gaussian noise on their embeddings, of the embeddings' own spread over the data set."""
        assert shared.statistics is not None  # they were taken for this
        spread = self.noise * shared.statistics.deviation["embed"].to(recording.embed)
        noise = []
        for row in range(len(recording.ids)):
            seed = int(np.random.default_rng([self.seed, 2, start + row]).integers(2**63))
            drawn = torch.randn(recording.embed.shape[1:], generator=torch.Generator().manual_seed(seed))
            noise.append(drawn.to(recording.embed))
        edits: dict[str, Edit] = {"embed": recording.embed + spread * torch.stack(noise)}
        return record(model, recording.ids, sites=list(recording.sites), edits=edits)

    def _before(self, clean: CleanRun) -> Tensor:
        """What effects are differences from: nothing, or for ``freeze`` the disturbed run's, (input, metric).

        Agreement stays what it is: a share of positions.
        """
        resid = clean.recording.resid[-1]
        if self.value != "freeze":
            return resid.new_zeros(len(resid), len(METRICS), dtype=torch.float32)
        before = measured(clean.recording, resid[:, list(clean.read)], 1, clean.measure)[0]
        before[:, METRICS.index("top1_agreement")] = 0
        return before

    def _scan(
        self,
        clean: CleanRun,
        components: Sequence[Component],
        values: Replacements,
        before: Tensor,
        *,
        random: bool = False,
    ) -> Tensor:
        """(input, metric, component); variants are made a few at a time, since those of neurons are wide."""
        found = []
        for start in range(0, len(components), VARIANTS_AT_ONCE):
            some = components[start : start + VARIANTS_AT_ONCE]
            found.append(self._run(clean, [values.variant(component, random=random) for component in some]))
        return clean.settled(torch.cat(found) - before).permute(1, 2, 0)

    def _run(self, clean: CleanRun, variants: Sequence[Variant]) -> Tensor:
        """(variant, input, metric)."""
        return partial_forward(
            clean.recording, variants, clean.measure, positions=clean.read, max_rows=self.max_rows
        )

    def _disturbance(self, units: Sequence[Pieces]) -> dict[str, Any]:
        """What the noise itself does, which frozen components take back."""
        if self.value != "freeze":
            return {}
        before = torch.cat([piece["disturbed"] for piece in units]).double().numpy()
        kl = before[:, METRICS.index("kl_from_clean")]
        return mean_variables("disturbed_kl", kl) | mean_variables("disturbed_loss_difference", before[:, 0])

    def _compared(self, start: int, stop: int) -> range:
        """The inputs of a unit on which random directions are tried."""
        return range(start, max(start, min(stop, self.baseline_inputs)))

    def _read(self) -> tuple[int, ...]:
        """The positions that are read."""
        return positions_read(len(self.inputs[0]), self.read)

    def _attributes(self, model: Model, units: Sequence[Pieces]) -> dict[str, Any]:
        return {
            "model": model.source,
            "value": self.value,
            "inputs": len(self.inputs),
            "tokens": len(self.inputs[0]),
            "baseline_inputs": min(self.baseline_inputs, len(self.inputs)),
            "engine": engine_named([piece["fallback"] for piece in units]),
        }

    def _sites(self, components: Sequence[Component]) -> list[str]:
        return sorted({site for component in components for site in component.recorded})

    def _validate(self) -> None:
        check_inputs(self.inputs)
        check_scan(
            seed=self.seed,
            resamples=self.resamples,
            baseline_inputs=self.baseline_inputs,
            max_rows=self.max_rows,
        )
        if len(self.inputs) < 2 and self.value in ("resample", "position_mean"):
            raise BadInput(
                f"value={self.value!r} takes values from other inputs, and there is one input only"
            )
        if not self.noise > 0:
            raise BadInput(f"noise={self.noise}: give a positive number of standard deviations")
        if self.descent_steps < 1 or not self.descent_rate > 0:
            raise BadInput(
                f"descent_steps={self.descent_steps}, descent_rate={self.descent_rate}: give positive numbers"
            )


def _one_of_each(components: Sequence[Component]) -> list[Component]:
    """The first component of each kind: what replaces one kind is not what replaces another."""
    return list({component.kind: component for component in reversed(components)}.values())


def ablate(  # noqa: PLR0913 (settings of a verb)
    model: Model,
    texts: Prompts,
    *,
    components: Sequence[str] = ("heads", "mlp"),
    value: Value = "mean",
    length: int | None = None,
    max_inputs: int | None = None,
    noise: float = 1.0,
    descent_steps: int = 20,
    descent_rate: float = 0.1,
    read: int | None = None,
    baseline_inputs: int = 4,
    resamples: int = 2000,
    seed: int = 0,
    max_rows: int | None = None,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what a model loses on a data set when one component at a time is replaced.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        texts: the data set: texts or token ids of one length, or of any with ``length``.
        components: all of a kind (``heads``, ``mlp``, ``attention``, ``layers``) or single ones (``head.3.5``,
            ``neuron.3.112``, ``mlp.3``, ``attention.3``, ``layer.3``), edges (``head.3.5>mlp.7``,
            ``embed>attention.2``, ``mlp.3>output``), directions (from
            :func:`assay.activations.components.links.direction`).
        value: what stands in: ``zero``, ``mean``, ``position_mean``, ``resample``, ``noise``, ``optimal``; or
            ``freeze``: the component's own clean value, while noise on the embeddings changes everything else.
        length: cut the texts into inputs of this many tokens; what is left over is not used.
        max_inputs: use this many inputs at most, the first ones.
        noise: standard deviations of the noise, for ``value="noise"``, and of the embeddings' for ``"freeze"``.
        descent_steps: of gradient descent to the best constant, for ``value="optimal"``.
        descent_rate: its step, in standard deviations of the component.
        read: positions read of each input, evenly spread; ``None`` for all.
        baseline_inputs: inputs on which random directions are tried too; 0 for none.
        resamples: of the bootstrap.
        seed: of partners, noise, random directions and bootstrap.
        max_rows: most rows in one pass; what memory allows by default.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``effect[metric, component]`` with ``_stderr``, ``_low`` and ``_high`` over inputs
        (loss_difference and kl_from_clean in nats, top1_agreement, logit_difference); ``p_value`` and ``q_value``,
        adjusted over the scan; ``effect_by_input``; ``clean_loss``; and ``baseline_effect`` of random directions.

    Raises:
        BadInput: an empty data set, inputs of different lengths, a component out of range, or a setting out of range.
    """
    measurement = Ablation(
        inputs=inputs_of(model, texts, length, max_inputs),
        components=words_of(components),
        value=value,
        noise=noise,
        descent_steps=descent_steps,
        descent_rate=descent_rate,
        read=read,
        baseline_inputs=baseline_inputs,
        resamples=resamples,
        seed=seed,
        max_rows=max_rows,
    )
    return perform(measurement, model, **run)
