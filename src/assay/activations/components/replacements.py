"""What stands in for components in recorded inputs, and the statistics of a data set that some of it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from assay.activations.components.component import Component
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, Variant

Value = Literal["zero", "mean", "position_mean", "resample", "noise", "optimal", "freeze"]
INPUTS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a data set says of each site.

    Attributes:
        position_mean: mean over inputs, (pos, ...).
        mean: mean over inputs and positions, (...).
        deviation: standard deviation over inputs and positions, (...).
    """

    position_mean: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    deviation: Mapping[str, Tensor]


def statistics(model: Model, tokens: Sequence[Tokens], sites: Sequence[str]) -> Statistics:
    """Means and standard deviations over a data set, in float64.

    Args:
        model: a decoder.
        tokens: token ids of the inputs, all of one length.
        sites: which sites.

    Returns:
        The statistics.
    """
    total: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    for start in range(0, len(tokens), INPUTS_AT_ONCE):
        captured = capture(model, [list(row) for row in tokens[start : start + INPUTS_AT_ONCE]], sites)
        for site, value in captured.items():
            total[site] = total.get(site, torch.zeros((), dtype=torch.float64)) + value.double().sum(0)
            square[site] = square.get(
                site, torch.zeros((), dtype=torch.float64)
            ) + value.double().square().sum(0)
    position_mean = {site: value / len(tokens) for site, value in total.items()}
    mean = {site: value.mean(0) for site, value in position_mean.items()}
    variance = {site: square[site].mean(0) / len(tokens) - mean[site].square() for site in total}
    return Statistics(
        position_mean, mean, {site: value.clamp_min(0).sqrt() for site, value in variance.items()}
    )


@dataclass(frozen=True, eq=False)
class Replacements:
    """What stands in for components in a few recorded inputs.

    Attributes:
        recording: the inputs' runs, with the components' sites.
        inputs: the number of each input in the data set.
        value: what stands in.
        statistics: of the data set; ``None`` for values that need none.
        partners: the sites in the runs that values are taken from: other inputs for ``resample``, the clean run for
            ``freeze``; empty for other values.
        noise: standard deviations of the noise.
        seed: of the noise and of the random directions.
        constants: the best constants by component and site, for ``optimal``.
    """

    recording: Recording
    inputs: Sequence[int]
    value: Value
    statistics: Statistics | None
    partners: Mapping[str, Tensor]
    noise: float
    seed: int
    constants: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def variant(self, component: Component, *, random: bool = False) -> Variant:
        """The edits that replace a component.

        Args:
            component: which.
            random: change the residual stream by as much at each position, in a random direction.

        Returns:
            The edits.
        """
        values = {
            site: self._value(component, site, component.part(self.recording.sites[site]))
            for site in component.sites
        }
        if not random:
            return component.variant(self.recording, values)
        change = component.change(self.recording, values)
        direction = normalize(self._drawn(component, 0, change, stream=1), dim=-1)
        return component.moved(self.recording, change.norm(dim=-1, keepdim=True) * direction)

    def own(self, component: Component) -> Variant:
        """The edits that replace a component by what it is."""
        values = {site: component.part(self.recording.sites[site]) for site in component.sites}
        return component.variant(self.recording, values)

    def _value(self, component: Component, site: str, own: Tensor) -> Tensor:
        if self.value == "zero":
            return torch.zeros_like(own)
        if self.value in ("resample", "freeze"):
            return component.part(self.partners[site]).to(own)
        if self.value == "optimal":
            return self.constants[component.name][site].to(own).expand_as(own)
        assert self.statistics is not None  # every other value is made of them
        if self.value == "noise":
            spread = component.part(self.statistics.deviation[site][None])[0].to(own)
            place = component.sites.index(site)
            return own + self.noise * spread * self._drawn(component, place, own, stream=0)
        if self.value == "mean":
            return component.part(self.statistics.mean[site][None])[0].to(own).expand_as(own)
        return component.part(self.statistics.position_mean[site]).to(own).expand_as(own)

    def _drawn(self, component: Component, place: int, like: Tensor, stream: int) -> Tensor:
        """Gaussian numbers of an input, a component and one of its sites, whatever else is measured beside them."""
        layer, index, *kind = component.place
        rows = []
        for number in self.inputs:
            key = [self.seed, stream, number, layer, index, place, *kind]
            seed = int(np.random.default_rng(key).integers(2**63))
            rows.append(torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows).to(like)
