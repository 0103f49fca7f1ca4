"""A recorded run on a data set, and how far edited runs are from it: loss, KL, agreement, logit difference.

One pass over the logits, a few positions at a time, so that they are read while they are still in the processor's
cache: KL(clean || edited) is the mean of the logits' difference under the clean distribution plus the difference of the
normalisers, so that the edited distribution itself is never written down.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.models.partial import Recording

METRICS = ("loss_difference", "kl_from_clean", "top1_agreement", "logit_difference")
TESTED = ("loss_difference", "logit_difference")
"""The metrics that are zero on average where an edit does nothing; the others cannot fall on both sides."""
POSITIONS_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class CleanRun:
    """A recorded run, and what edited runs are compared with.

    Attributes:
        recording: the run.
        read: the positions that are compared; a loss is read at those that have a next token.
        logits: there, (row x read, vocabulary), float32.
        probabilities: likewise.
        normaliser: log of the sum of the logits' exponentials, (row x read,).
        first: the most probable token, (row x read,).
        following: the next token, (row x read,); 0 at the last position.
        foil: the most probable other token, (row x read,).
        loss: mean negative log-probability of the next token, (row,), nats.
    """

    recording: Recording
    read: tuple[int, ...]
    logits: Tensor
    probabilities: Tensor
    normaliser: Tensor
    first: Tensor
    following: Tensor
    foil: Tensor
    loss: Tensor

    @classmethod
    def of(cls, recording: Recording, read: tuple[int, ...] | None = None) -> "CleanRun":
        """Read the logits of a run, at every position by default."""
        rows, length = recording.ids.shape
        read = tuple(range(length)) if read is None else read
        logits = recording.readout(recording.resid[-1][:, list(read)].flatten(0, 1)).float()
        normaliser, first = logits.logsumexp(-1), logits.argmax(-1)
        following = recording.ids.roll(-1, dims=1)[:, list(read)].flatten()
        foil = logits.scatter(-1, following[:, None], -torch.inf).argmax(-1)
        loss = normaliser - logits.gather(-1, following[:, None])[:, 0]
        mean = loss.view(rows, -1)[:, _followed(read, length)].mean(-1)
        probabilities = (logits - normaliser[:, None]).exp()
        return cls(recording, read, logits, probabilities, normaliser, first, following, foil, mean)

    def rows(self, start: int, stop: int) -> "CleanRun":
        """The comparison for some of the rows."""
        count = len(self.read)
        here = slice(start * count, stop * count)
        return replace(
            self,
            recording=self.recording.rows(start, stop),
            logits=self.logits[here],
            probabilities=self.probabilities[here],
            normaliser=self.normaliser[here],
            first=self.first[here],
            following=self.following[here],
            foil=self.foil[here],
            loss=self.loss[start:stop],
        )

    def measure(self, logits: Tensor) -> Tensor:
        """The metrics of edited logits.

        Args:
            logits: at the positions that are read, (variant, row, read, vocabulary).

        Returns:
            (variant, row, metric): loss difference and KL(clean || edited) in nats, both means over positions; the
            share of positions at which the most probable token is the same; the mean change of the next token's
            logit minus its foil's.
        """
        rows, length = self.recording.ids.shape
        flat = logits.flatten(1, 2)
        pieces = [
            torch.stack(
                [self._compared(variant[start : start + POSITIONS_AT_ONCE], start) for variant in flat]
            )
            for start in range(0, flat.shape[1], POSITIONS_AT_ONCE)
        ]
        found = torch.cat(pieces, 1).unflatten(1, (rows, -1))  # variant, row, read, metric
        followed = _followed(self.read, length)
        means = found.mean(2)
        means[..., [METRICS.index(metric) for metric in TESTED]] = found[:, :, followed][
            ..., [METRICS.index(metric) for metric in TESTED]
        ].mean(2)
        return means

    def _compared(self, edited: Tensor, start: int) -> Tensor:
        """The metrics at a few positions, (position, metric)."""
        here = slice(start, start + len(edited))
        edited, clean = edited.float(), self.logits[here]
        top = edited.amax(-1)
        normaliser = top + (edited - top[:, None]).exp_().sum(-1).log()
        change, shift = edited - clean, normaliser - self.normaliser[here]
        kl = (shift - torch.linalg.vecdot(change, self.probabilities[here])).clamp_min(0)
        following, foil, first = (token[here, None] for token in (self.following, self.foil, self.first))
        gained = change.gather(-1, following)[:, 0]
        agree = (edited.gather(-1, first)[:, 0] >= top).float()
        return torch.stack([shift - gained, kl, agree, gained - change.gather(-1, foil)[:, 0]], -1)


def _followed(read: tuple[int, ...], length: int) -> list[int]:
    """Which of the positions that are read have a next token."""
    return [index for index, position in enumerate(read) if position < length - 1]
