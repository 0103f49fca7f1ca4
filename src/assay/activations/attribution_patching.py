r"""Attribution patching: the effect of patching every node at once, to first order, and how far that is to be trusted.

Patching a node from a source run into a base run changes the metric :math:`M`; a slope tells by about how much:

.. math:: \widehat{e}(n) = (a'_n - a_n) \cdot \frac{\partial M}{\partial a_n}

for every head, neuron and residual vector at every position of two prompts, from two forward passes and one backward
pass. AtP* mends two ways in which slopes mislead (:mod:`assay.activations.circuits.node_scores`). Sources: Nanda 2023;
Kramár et al., AtP*, 2403.00745.

Beside the attributions, the nodes that rank first and as many drawn at random from the rest are patched exactly. Their
effects give the rank correlation, and the share of nodes that were missed: random ones whose exact effect is larger
than that of half of those ranked first.

Intervals are over pairs; that of the rank correlation over nodes (percentile bootstrap), that of the missed share is
Wilson's. The baseline attributes between the first pair's base prompt and a copy that differs from it where it does not
matter (:mod:`assay.activations.indifferent`).

Cost: two forwards and one backward a pair; a pass of ten rows, two forwards and a backward for the baseline. The QK fix
adds a forward of three rows, GradDrop a forward and a backward of one row for each layer; exact nodes are partial
forwards.

Limits: first-order; see the agreement. GradDrop gives magnitudes without a sign.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.attribution import attribution_checks
from assay.activations.circuits.agreement import agreement, first_and_random
from assay.activations.circuits.node_scores import SUMMED, Contrast, NodeMethod, attribute
from assay.activations.effects import PARTS
from assay.activations.engine import engine_named, reason_kept
from assay.activations.paired import Paired
from assay.activations.prompt_pairs import Direction, Metric
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.model import Model
from assay.models.partial import Recording, SiteEdit, Variant, partial_forward, record
from assay.models.sites import HEADED, PER_LAYER
from assay.runs.measurement import Pieces, Unit

SITES = tuple(name for name in PER_LAYER if name != "pattern" and not name.endswith("_scale"))
AXES = {"q": "head", "z": "head", "k": "kv_head", "v": "kv_head", "mlp_act": "neuron", "mlp_pre": "neuron"}
"""What the nodes of a site are numbered by, beside layer and position."""
AT_ONCE = 64
"""Nodes patched exactly by one unit."""
SPARED = 4
"""Fewer nodes have no rank correlation."""


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        pairs: both prompts of each pair, with the source run's activations.
        effects: attributions by site, (pair, layer, pos, ...).
        base: the metric of each base run, (pair,).
        null: attributions between the first base prompt and an indifferent copy, by site; empty for none.
        apart: by how much the copy moves the metric.
        replaced: in how many tokens the copy differs.
        chosen: nodes that are patched exactly, (node, 4): site, layer, position, and head or neuron, or -1.
        recordings: of the base runs, for exact patching; empty where nothing is patched.
    """

    pairs: list[Contrast]
    effects: dict[str, Tensor]
    base: Tensor
    null: dict[str, Tensor]
    apart: float
    replaced: int
    chosen: Tensor
    recordings: list[Recording]


@dataclass(frozen=True, kw_only=True)
class AttributionPatching(Paired):
    """First-order effects of patching every node of two prompts, and exact effects of some.

    Attributes:
        sites: names of the sites whose nodes are attributed.
        method: ``atp``, ``qk_fix``, ``grad_drop``, or ``atp_star`` for both.
        direction: ``denoise`` or ``noise``.
        metric: what is measured at the last position.
        exact: nodes that are patched exactly, half of them those ranked first; 0 for none.
        baseline: also attribute between the first base prompt and a copy where nothing is to be found.
        max_rows: most rows in one exact pass; ``None`` for what memory allows. Does not change the numbers.
    """

    name: ClassVar[str] = "attribution_patching"
    revision: ClassVar[int] = 3
    sites: tuple[str, ...] = ("resid_post", "q", "k", "v", "z", "mlp_out")
    method: NodeMethod = "atp"
    direction: Direction = "denoise"
    metric: Metric = "logit_difference"
    exact: int = 64
    baseline: bool = True
    max_rows: int | None = None

    def prepare(self, model: Model) -> Shared:
        """Attribute every node of every pair, and choose those that are patched exactly."""
        pairs = [self._contrast(model, index) for index in range(len(self.clean))]
        found = [attribute(pair, self.method) for pair in pairs]
        effects = {name: torch.stack([one.nodes[name] for one in found]) for name in self.sites}
        null: dict[str, Tensor] = {}
        apart, replaced = 0.0, 0
        if self.baseline:
            copied = pairs[0].indifferent(self.seed)
            null = dict(attribute(copied, self.method).nodes)
            apart = copied.measured - found[0].value
            replaced = int((copied.source != copied.base).sum())
        chosen = self._choose(effects)
        neurons = sorted({name for name in self.sites if AXES.get(name) == "neuron" or name not in SUMMED})
        kept = [site for name in neurons for site in model.sites(name)]
        recordings = [record(model, pair.base, sites=kept) for pair in pairs] if len(chosen) else []
        base = torch.tensor([one.value for one in found])
        return Shared(pairs, effects, base, null, apart, replaced, chosen, recordings)

    def plan(self, model: Model) -> Sequence[Unit]:
        """The attributions, and the exact nodes some at a time.

        Raises:
            BadInput: prompts that do not pair, a metric without its answer or without a slope, or a site this model
                does not have.
        """
        self._validate(model)
        passes = 3 * len(self.clean)
        starts = range(0, self.exact, AT_ONCE)
        exact = [
            Unit(f"exact-{start:05d}", {"start": start}, cost=len(self.clean) * AT_ONCE / 4)
            for start in starts
        ]
        return [Unit("attribution", {}, cost=passes), *exact]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Hand over the attributions, or patch some of the chosen nodes exactly in every pair."""
        if unit.name == "attribution":
            named = {f"effect_{name}": effect for name, effect in shared.effects.items()}
            null = {f"null_{name}": effect for name, effect in shared.null.items()}
            return {
                **named,
                **null,
                "apart": torch.tensor(shared.apart),
                "replaced": torch.tensor(shared.replaced),
                "base": shared.base,
                "source": torch.tensor([pair.measured for pair in shared.pairs]),
                "chosen": shared.chosen,
                "fallback": reason_kept(shared.recordings[0].fallback if shared.recordings else ""),
            }
        start = unit.detail["start"]
        nodes = shared.chosen[start : start + AT_ONCE].tolist()
        if not nodes:  # more were asked for than there are
            return {"effect": torch.zeros(len(shared.pairs), 0, dtype=torch.float64)}
        patched = []
        for pair, recording, base in zip(shared.pairs, shared.recordings, shared.base, strict=True):
            variants = [self._variant(pair, recording, node) for node in nodes]
            measured = partial_forward(recording, variants, pair.gauge, max_rows=self.max_rows)[:, 0, 0, 0]
            patched.append(measured.double() - base.double())
        return {"effect": torch.stack(patched)}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means and intervals over pairs, and hold the attributions against exact effects."""
        one = pieces["attribution"]
        base, source = one["base"].double().numpy(), one["source"].double().numpy()
        variables: dict[str, Any] = {"metric_base": ((), base.mean()), "metric_source": ((), source.mean())}
        named: dict[str, Any] = {"total_effect": ((), source - base)}
        for name in self.sites:
            named[f"attribution_{name}"] = (_dims(name), one[f"effect_{name}"].double().numpy())
            if self.baseline:
                null = one[f"null_{name}"].double().numpy()
                variables[f"baseline_attribution_{name}"] = (_dims(name), null)
        if self.baseline:
            variables["baseline_total_effect"] = ((), float(one["apart"]))
            variables["baseline_replaced"] = ((), int(one["replaced"]))
        coords = self._coordinates(model)
        if self.exact:
            chosen = one["chosen"].numpy()
            exact = np.concatenate(
                [p["effect"].double().numpy() for n, p in pieces.items() if n != "attribution"], 1
            )
            named["node_effect"] = (("node",), exact)
            coords |= self._nodes(chosen)
            predicted = self._predicted(one, chosen)
            variables["node_attribution"] = (("node",), predicted)
            variables |= agreement(predicted, exact.mean(0), "node", self.seed)
        for name, (dims, samples) in named.items():
            for part, values in zip(PARTS, mean_interval(samples), strict=True):
                variables[name + part] = (dims, values, self.few if part else {})
        return xr.Dataset(variables, coords, self._attributes(model, one))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The prompts differ, attribution agrees with patching, little is missed, little is found where nothing is."""
        return attribution_checks(dataset)

    def memory(self, model: Model) -> int:
        """The graph of the backward pass, and the activations of the source runs."""
        tokens = len(self.clean[0])
        return 4 * model.n_layers * tokens * model.d_model * (32 + 8 * len(self.clean))

    def _contrast(self, model: Model, index: int) -> Contrast:
        return self.contrast(model, self.sites, index, direction=self.direction, metric=self.metric)

    def _choose(self, effects: Mapping[str, Tensor]) -> Tensor:
        """The nodes ranked first, then others drawn at random: (node, 4)."""
        flat = torch.cat([effects[name].mean(0).flatten() for name in self.sites]).cpu()
        chosen = first_and_random(flat, torch.ones(len(flat), dtype=torch.bool), self.exact, self.seed)
        ends = torch.tensor([0, *(effects[name][0].numel() for name in self.sites)]).cumsum(0)
        rows = []
        for number in chosen[:, 0].tolist():
            site = int(torch.searchsorted(ends, number, right=True)) - 1
            place = np.unravel_index(number - int(ends[site]), effects[self.sites[site]].shape[1:])
            rows.append([site, *map(int, place), *([-1] if len(place) == 2 else [])])
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 4)

    def _variant(self, pair: Contrast, recording: Recording, node: Sequence[int]) -> Variant:
        number, layer, position, index = node
        name = self.sites[number]
        site = f"{name}.{layer}"
        value = pair.activations[site][:, [position]]
        if index >= 0 and name in HEADED:
            return (SiteEdit(site, value[:, :, index], (position,), index),)
        if index >= 0:
            whole = recording.sites[site][:, [position]].clone()
            whole[..., index] = value[..., index]
            value = whole
        return (SiteEdit(site, value, (position,)),)

    def _predicted(self, one: Pieces, chosen: np.ndarray) -> np.ndarray:
        means = [one[f"effect_{name}"].double().mean(0).numpy() for name in self.sites]
        return np.array([means[s][(layer, p, *([i] if i >= 0 else []))] for s, layer, p, i in chosen])

    def _nodes(self, chosen: np.ndarray) -> dict[str, Any]:
        top = len(chosen) // 2
        return {
            "node_site": ("node", np.array(self.sites)[chosen[:, 0]]),
            "node_layer": ("node", chosen[:, 1]),
            "node_position": ("node", chosen[:, 2]),
            "node_index": ("node", chosen[:, 3]),
            "node_group": ("node", np.repeat(["first", "random"], [top, len(chosen) - top])),
        }

    def _coordinates(self, model: Model) -> dict[str, Any]:
        texts = {
            name: model.token_texts(rows[0])
            for name, rows in (("clean", self.clean), ("corrupted", self.corrupted))
        }
        differs = np.array(self.clean) != np.array(self.corrupted)
        return {
            "layer": np.arange(model.n_layers),
            "position": np.arange(len(self.clean[0])),
            "token": ("position", texts["corrupted" if self.direction == "denoise" else "clean"]),
            "differs": ("position", differs.any(0)),
        }

    def _attributes(self, model: Model, one: Pieces) -> dict[str, Any]:
        return {
            **self.described(model),
            "sites": ", ".join(self.sites),
            "method": self.method,
            "direction": self.direction,
            "metric": self.metric,
            "engine": engine_named([one["fallback"]]),
        }

    def _validate(self, model: Model) -> None:
        self.check_settings((self.metric,))
        require_slope(self.metric, self.direction)
        if not self.sites or len(set(self.sites)) < len(self.sites) or set(self.sites) - set(SITES):
            raise BadInput(f"sites={self.sites}: choose from {', '.join(SITES)}, each once")
        if missing := [name for name in self.sites if len(model.sites(name)) < model.n_layers]:
            raise BadInput(
                f"sites={self.sites}: {model.source} does not compute {', '.join(missing)} in every block"
            )
        if self.exact and self.exact < SPARED:
            raise BadInput(
                f"exact={self.exact}: a rank correlation needs at least {SPARED} nodes; 0 for none"
            )


def require_slope(metric: Metric, direction: Direction) -> None:
    """Refuse a metric that is flat where slopes are taken.

    Args:
        metric: what is measured.
        direction: which run is patched.

    Raises:
        BadInput: the divergence from the clean run, at the clean run.
    """
    if metric == "kl_from_clean" and direction == "noise":
        raise BadInput(
            "kl_from_clean is least at the clean run, where direction='noise' takes its slopes: all of them are zero. "
            "Take direction='denoise', or a metric with an answer"
        )


def _dims(name: str) -> tuple[str, ...]:
    if name in SUMMED and name not in HEADED:
        return ("layer", "position")
    return ("layer", "position", AXES[name])
