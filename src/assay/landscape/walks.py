"""Walks of chains: what they are told, and what they leave behind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from assay.landscape.samplers.sampler import Sampler


@dataclass(frozen=True)
class Chains:
    """Settings of a row of chains.

    Attributes:
        seeds: one for each chain; equal seeds see equal noise and equal batches.
        step_size: epsilon, (chain,).
        n_beta: number of samples times inverse temperature, (chain,).
        localization: gamma, (chain,).
        masks: where each chain moves, (chain, d) or (1, d) bool; None for everywhere.
        batch_size: examples in a batch, drawn with replacement; None takes all of the data.
        anchors: where each chain starts and is held, (chain, d); the module's present weights when None.
    """

    seeds: tuple[int, ...]
    step_size: Tensor
    n_beta: Tensor
    localization: Tensor
    masks: Tensor | None = None
    batch_size: int | None = None
    anchors: Tensor | None = None

    def split(self, size: int) -> "Iterator[Chains]":
        """Cut the row into rows of so many chains, the last of which may be shorter."""
        for start in range(0, len(self.seeds), size):
            part = slice(start, start + size)
            own = self.masks is not None and len(self.masks) > 1
            yield replace(
                self,
                seeds=self.seeds[part],
                step_size=self.step_size[part],
                n_beta=self.n_beta[part],
                localization=self.localization[part],
                masks=self.masks[part] if self.masks is not None and own else self.masks,
                anchors=None if self.anchors is None else self.anchors[part],
            )


@dataclass(frozen=True)
class Walk:
    r"""What chains leave behind; the position before each step is what a column describes.

    Attributes:
        loss: mean over the batch, (chain, step), float64.
        squared_gradient: squared norm of the gradient of U, (chain, step), float64.
        distance: from the anchor, (chain, step), float64.
        virial: :math:`\frac12 (w - w^*) \cdot \nabla U`, (chain, step), float64. In a chain that is at rest its mean
            is half the number of coordinates that move, plus the bias of the step size.
        bias: what each draw adds to the first-order bias of E[U], (chain, step), float64.
        reports: what the sampler reports beside, each (chain, step), float64.
    """

    loss: Tensor
    squared_gradient: Tensor
    distance: Tensor
    virial: Tensor
    bias: Tensor
    reports: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def side_by_side(walks: Sequence[Walk]) -> Walk:
    """Put walks of different chains, of the same steps, into one."""
    names = [field.name for field in fields(Walk) if field.name != "reports"]
    reports = {name: torch.cat([walk.reports[name] for walk in walks]) for name in walks[0].reports}
    return Walk(*(torch.cat([getattr(walk, name) for walk in walks]) for name in names), reports=reports)


def bias_of_loss(walk: Walk, chains: Chains, sampler: Sampler) -> Tensor:
    r"""Give what each draw adds to the first-order bias of E[n beta L], (chain, step), float64.

    The bias of E[U] is that of :math:`n\beta L` and that of the localization together. The sampler's law gives the
    second from :math:`\gamma\,(w - w^*) \cdot \nabla U` in the place of :math:`\lVert \nabla U \rVert^2`. It matters
    where most directions are held by the localization alone. A preconditioner G weighs both alike: with the steps of a
    coordinate scaled by :math:`\sqrt{G_i}` it is the law without one, and so
    :math:`\gamma\,\sum_i G_i\,(w - w^*)_i\,\partial_i U` stands for :math:`\sum_i G_i\,(\partial_i U)^2`.
    """
    step_size, localization = (
        part.to(walk.virial)[:, None] for part in (chains.step_size, chains.localization)
    )
    virial = walk.reports.get("scaled_virial", walk.virial)
    return walk.bias - sampler.bias(step_size, 2 * localization * virial)
