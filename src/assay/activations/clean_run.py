r"""A recorded run on a data set, and how far edited runs are from it: loss, KL, agreement, logit difference.

Logits are a linear map :math:`W` of the states that the unembedding is given, so that those of an edited run differ
from the clean ones by the image of how the states differ, :math:`\Delta z = W \Delta x`. With :math:`p` the clean
distribution,

.. math:: t = \log p + \Delta z - \mathbf{E}_p \Delta z, \qquad \mathrm{KL}(p \,\|\, \tilde p) = \log \sum_v e^{t_v},
          \qquad \log \tilde p = t - \mathrm{KL}

where the mean change is the inner product of :math:`\Delta x` with the clean run's mean row of :math:`W`, taken once.
Nothing large is subtracted from anything large: rounding goes with the change, not with the logits. What is left of it
in the sum of the clean probabilities, and so in every divergence, is taken off, and a loss or logit difference that may
be rounding is 0. The vocabulary is gone through slice by slice, so that what is read of a row is still in the
processor's cache and no row is kept whole.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.activations.divergence import log_probabilities
from assay.models.model import Model
from assay.models.partial import Recording, StreamMetric
from assay.models.unembedding import Unembedding

METRICS = ("loss_difference", "kl_from_clean", "top1_agreement", "logit_difference")
TESTED = ("loss_difference", "logit_difference")
"""The metrics that are zero on average where an edit does nothing; the others cannot fall on both sides."""
ROUNDING = 4.0
"""Unit roundings of a uniform log-probability, -log of the vocabulary, that an edit which does nothing may show."""
ROWS = 512
"""Rows compared at once: fewer, and the unembedding's weights are read from memory too often."""
WHOLE_ROWS = 128
"""Rows of the clean run whose logits are taken whole at once."""
SLICE = 1024
"""Entries of the vocabulary on a processor, whose logits for that many rows stay in the second cache."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """A recorded run, and what edited runs are compared with.

    Attributes:
        recording: the run.
        read: the positions that are compared; a loss is read at those that have a next token.
        unembedding: from states to logits.
        states: what is unembedded there, (row x read, width).
        mean_map: from changes of the states to the mean change of a logit, (row x read, width).
        log_probabilities: (row x read, vocabulary).
        tokens: the most probable one, the next (0 at the last position), and the most probable one besides the next,
            (row x read, 3).
        loss: mean negative log-probability of the next token, (row,), nats.
        excess: log of the sum of the probabilities, zero but for rounding, (row x read,).
    """

    recording: Recording
    read: tuple[int, ...]
    unembedding: Unembedding
    states: Tensor
    mean_map: Tensor
    log_probabilities: Tensor
    tokens: Tensor
    loss: Tensor
    excess: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, recording: Recording, read: tuple[int, ...] | None = None) -> "CleanRun":
        """Read a run, at every position by default."""
        rows, length = recording.ids.shape
        read = tuple(range(length)) if read is None else read
        resid = recording.resid[-1][:, list(read)].flatten(0, 1)
        following = recording.ids.roll(-1, dims=1)[:, list(read)].flatten()
        unembedding = Unembedding.of(recording.blocks, resid[-2:])
        mean_map, logs, tokens = [], [], []
        for start in range(0, len(resid), WHOLE_ROWS):
            here = slice(start, start + WHOLE_ROWS)
            log = log_probabilities(recording.readout(resid[here]))
            first, second = log.topk(2, -1).indices.unbind(-1)
            foil = torch.where(first == following[here], second, first)
            probabilities = log.exp()
            mean_map.append(unembedding.mean_map(probabilities.div_(probabilities.sum(-1, keepdim=True))))
            tokens.append(torch.stack([first, following[here], foil], -1))
            logs.append(log)
        every = torch.cat(logs)
        loss = -every.gather(-1, following[:, None]).view(rows, -1)[:, _followed(read, length)].mean(-1)
        states = unembedding.states(resid)
        none, mean, told = every.new_zeros(len(every)), torch.cat(mean_map), torch.cat(tokens)
        found = cls(recording, read, unembedding, states, mean, every, told, loss, none)
        unchanged = ((torch.zeros_like(states[here])[None], here) for here in _slices(len(states)))
        return replace(found, excess=torch.cat([found._gone_through(*some)[0][0] for some in unchanged]))

    def rows(self, start: int, stop: int) -> "CleanRun":
        """The comparison for some of the rows."""
        count = len(self.read)
        here = slice(start * count, stop * count)
        return replace(
            self,
            recording=self.recording.rows(start, stop),
            states=self.states[here],
            mean_map=self.mean_map[here],
            log_probabilities=self.log_probabilities[here],
            tokens=self.tokens[here],
            loss=self.loss[start:stop],
            excess=self.excess[here],
        )

    @property
    def measure(self) -> StreamMetric:
        """The metrics of edited runs, (variant, row, metric).

        Loss difference and KL(clean || edited) in nats, both means over positions; the share of positions at which the
        most probable token is the same; the mean change of the next token's logit minus its foil's.
        """
        return StreamMetric(self._measured)

    @torch.no_grad()
    def _measured(self, ends: Tensor) -> Tensor:
        """(variant, row, metric) of what leaves the last block, (variant, row, read, d_model)."""
        rows, length = self.recording.ids.shape
        flat, pieces = ends.flatten(1, 2), []
        for here in _slices(flat.shape[1]):
            some = flat[:, here].split(max(1, ROWS // (here.stop - here.start)))
            pieces.append(torch.cat([self._compared(variants, here) for variants in some]))
        found = torch.cat(pieces, 1).unflatten(1, (rows, -1))  # variant, row, read, metric
        means = found.mean(2)
        tested = [METRICS.index(metric) for metric in TESTED]
        means[..., tested] = found[:, :, _followed(self.read, length)][..., tested].mean(2)
        return self.settled(means)

    def settled(self, effects: Tensor) -> Tensor:
        """Effects of which those that may be rounding are zero, where nothing but zero is no effect.

        An idle component's effects would else be as small as they are alike, and found significant.

        Args:
            effects: of edits, (..., metric).

        Returns:
            The same, as tested metrics within :data:`ROUNDING` are 0.
        """
        finest = ROUNDING * torch.finfo(effects.dtype).eps * math.log(self.log_probabilities.shape[-1])
        tested = torch.tensor([metric in TESTED for metric in METRICS], device=effects.device)
        return effects.masked_fill(tested & (effects.abs() <= finest), 0)

    def _compared(self, ends: Tensor, here: slice) -> Tensor:
        """The metrics at a few positions, (variant, position, metric)."""
        states = self.unembedding.states(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])
        total, top, picked = self._gone_through(states - self.states[here], here)
        kl = total - self.excess[here]
        gained = picked - self.log_probabilities[here].gather(-1, self.tokens[here])
        first, following, foil = 0, 1, 2
        return torch.stack(
            [
                kl - gained[..., following],
                kl.clamp_min(0),
                (picked[..., first] >= top).to(kl),
                gained[..., following] - gained[..., foil],
            ],
            -1,
        )

    def _gone_through(self, changes: Tensor, here: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The exponents t at a few positions, over the vocabulary.

        Args:
            changes: of the states, (variant, position, width).
            here: the positions.

        Returns:
            The log of the sum of their exponentials and the largest, (variant, position), and those of the tokens,
            (variant, position, 3).
        """
        clean = self.log_probabilities[here]
        mean = torch.linalg.vecdot(changes, self.mean_map[here])[..., None]
        tokens = self.tokens[here].expand(len(changes), -1, -1)
        picked, total = changes.new_zeros(tokens.shape), changes.new_zeros(changes.shape[:2])
        top = torch.full_like(total, -torch.inf)
        width = SLICE if changes.device.type == "cpu" else clean.shape[1]
        for start in range(0, clean.shape[1], width):
            part = clean[:, start : start + width] - mean
            self.unembedding.add_changes(part.flatten(0, 1), changes.flatten(0, 1), start)
            place = tokens - start
            inside = (place >= 0) & (place < part.shape[-1])
            picked = torch.where(inside, part.gather(-1, place.clamp(0, part.shape[-1] - 1)), picked)
            before, top = top, torch.maximum(top, part.amax(-1))
            total = total * (before - top).exp_() + part.sub_(top[..., None]).exp_().sum(-1)
        return top + total.log(), top, picked


def _slices(count: int) -> list[slice]:
    """Rows that are compared at once."""
    return [slice(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]


def clean_memory(model: Model, rows: int) -> int:
    """Bytes that reading a clean run at some rows takes: its log-probabilities, and those under way."""
    return 4 * model.parts.vocabulary * (rows + 3 * WHOLE_ROWS)


def _followed(read: tuple[int, ...], length: int) -> list[int]:
    """Which of the positions that are read have a next token."""
    return [index for index, position in enumerate(read) if position < length - 1]
