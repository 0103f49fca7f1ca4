r"""Looking at anchors before any chain starts: the loss over the data, and whether they are minima, for many at once.

Chains around an anchor that is no minimum measure the way down: in a quadratic, the estimate lacks exactly what
:math:`n\beta L` is lower at the minimum of the localized potential
:math:`U(w) = n\beta\,L(w) + \frac\gamma2 \lVert w - w^* \rVert^2`. So that minimum is looked for, by nonlinear
conjugate gradients (Y. H. Dai and Y. Yuan 1999, SIAM Journal on Optimization 10:177, whose rule needs no gradient but
the last), and what is lower there is reported: at least so much is below the anchor.

Where a look goes through part of the data only, or dropout is drawn, the minimum of what is looked at is another than
that of the whole, and lies downhill of it. Then what the descent gains is measured on examples, or draws, that it did
not see, and what chance may have given of that, two standard errors, is taken off.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from assay.landscape.gradients import gradient_of
from assay.landscape.sequential import Sequential, WithLoss
from assay.landscape.target import Target

STEPS, FEW = 30, 8
"""Steps of a descent, each along a line of its own: where a look is cheap, and where it is dear."""
WORK = 1e8
"""Parameters times examples up to which a look is cheap."""
TRIES = 12
"""Places at which the minimum along a line is looked for."""
LEAN = 2**25
"""Sampled parameters from which each line goes straight downhill, since there is no room for a third vector."""
PIECE = 2**20
"""Coordinates whose distance is taken at a time."""
ENOUGH = 1e-3
"""A step that gains less, in units of the estimate, is the last."""


class Anchor(NamedTuple):
    """What is known of the anchor before any chain starts.

    Attributes:
        loss: over the data that are looked at, ().
        downhill: n beta times the loss that a descent gains, ().
    """

    loss: Tensor
    downhill: Tensor


def steepest(raw: float) -> float:
    """Give the largest `Anchor.downhill` at which there still is an estimate, where chains found an excess loss."""
    return max(0.5, 0.1 * raw)


def look(model: Target, n_beta: float, localization: float) -> Anchor:
    """Look at a module's present weights; see `Anchor`."""
    return Anchor(model.anchor_loss, downhill(model, None, n_beta, localization)[0])


def losses(model: Target, places: Tensor) -> Tensor:
    """Give the loss over the data that are looked at, at several places, (place, d) -> (place,), float64."""
    return each_loss(model, places).mean(1)


def each_loss(model: Target, places: Tensor) -> Tensor:
    """Give the loss of each example (or token) that is looked at, (place, d) -> (place, example x token), float64."""
    whole = WithLoss(model)

    def each(flat: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        named = {f"module.{name}": value for name, value in model.named(flat).items()}
        return functional_call(whole, named, (batch,)).flatten()

    # of one alone there is no batch: of large modules and some families there cannot be
    every = vmap(each, (0, None)) if len(places) > 1 else lambda rows, batch: each(rows[0], batch)[None]
    with torch.no_grad(), model.evaluating():
        return torch.cat([every(places, batch).double() for batch in model.blocks()], 1)


def downhill(model: Target, anchors: Tensor | None, n_beta: float, localization: float) -> Tensor:
    """Give n beta times the loss that a descent gains: near 0 at a minimum.

    Args:
        model: the module, the loss that is sampled, and the data.
        anchors: weights, (anchor, d); the module's present ones when None.
        n_beta: number of samples times inverse temperature.
        localization: gamma.

    Returns:
        (anchor,), float64.
    """
    descent, judge = _Descent(model, anchors, n_beta, localization), _unseen(model)
    before = each_loss(judge or model, descent.place)
    gain = torch.zeros(len(before), dtype=torch.float64, device=before.device)
    for _ in range(STEPS if model.d * model.seen <= WORK else FEW):
        last = float(descent.step().max()) < ENOUGH
        if judge is not None:
            gain = torch.fmax(gain, n_beta * _surely(before - each_loss(judge, descent.place)))
        if last:
            break
    if judge is None:
        gain = n_beta * (before.mean(1) - losses(model, descent.place))
    return gain.clamp_min(0)


def _unseen(model: Target) -> Target | None:
    """Give as many examples as are looked at, but others, or other draws of dropout; None where there are none."""
    if model.seeds is not None:
        return replace(model, seeds=repeat(1))
    if model.seen == model.n:
        return None
    other = torch.ones(model.n, dtype=torch.bool, device=model.device)
    other[torch.linspace(0, model.n - 1, model.seen, device=model.device).round().long()] = False
    rows = other.nonzero()[:, 0]
    rows = rows[torch.linspace(0, len(rows) - 1, min(model.seen, len(rows))).round().long().to(rows.device)]
    return replace(model, data=tuple(part[rows] for part in model.data), thorough=True)


def _surely(gains: Tensor) -> Tensor:
    """Give the mean of the gains of examples less two standard errors, (anchor, example) -> (anchor,)."""
    if gains.shape[1] < 2:
        return torch.zeros_like(gains[:, 0])
    return gains.mean(1) - 2 * gains.std(1) / gains.shape[1] ** 0.5


class _Descent:
    """A descent from each of some anchors into its localized potential, which holds three vectors for each, or two.

    Args:
        model: the module, the loss that is sampled, and the data.
        anchors: weights, (anchor, d); the module's present ones when None.
        n_beta: number of samples times inverse temperature.
        localization: gamma.
    """

    def __init__(self, model: Target, anchors: Tensor | None, n_beta: float, localization: float) -> None:
        self._model, self._anchors, self._n_beta, self._gamma = model, anchors, n_beta, localization
        self._gradient = gradient_of(model)
        self.place = model.anchor()[None] if anchors is None else anchors.clone()
        self._slope = torch.zeros_like(self.place)
        self._along = self._slope if model.d >= LEAN else torch.zeros_like(self.place)
        self._level = n_beta * losses(model, self.place)
        # the slope with which the last line began, and what the next is hoped to gain
        self._begun, self._hoped = torch.zeros_like(self._level), torch.ones_like(self._level)

    def step(self) -> Tensor:
        """Go to the minimum along one more line; tell what the potential lost, (anchor,), float64."""
        self._look()
        before, self._begun = self._level, self._turn()
        self._level = self._line()
        lost = before - self._level
        self._hoped = (2 * lost).clamp_min(ENOUGH)
        return lost

    def _turn(self) -> Tensor:
        """Turn to where the next line leads; give the slope along it, (anchor,)."""
        squared = _dots(self._slope, self._slope)
        if self._along is self._slope:
            self._along.neg_()
            return -squared
        ended = _dots(self._along, self._slope)
        kept = (squared / (ended - self._begun)).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
        kept = torch.where(kept * ended > 0.8 * squared, 0.0, kept)  # else it would hardly lead down
        self._along.mul_(kept.to(self._along)[:, None]).sub_(self._slope)
        return kept * ended - squared

    def _line(self) -> Tensor:
        """Go to the minimum along the line; give the potential there, (anchor,)."""
        first = lowest = self._level
        best = reached = torch.zeros_like(first)
        # a slope of rounding alone would lead far; the localization turns every line before this
        turned = -self._begun / (max(self._gamma, 1e-6) * _dots(self._along, self._along))
        there = (self._hoped / -self._begun).minimum(turned).nan_to_num(0.0, 0.0, 0.0)
        done = there <= 0
        for _ in range(TRIES):
            self._shift(there - reached)
            reached, level = there, self._potential()
            fell = level < lowest
            best, lowest = torch.where(fell, there, best), torch.where(fell, level, lowest)
            bend = (level - first - self._begun * there) / there**2
            turn = torch.where(bend > 0, -self._begun / (2 * bend), torch.inf)  # of a parabola
            turn = torch.where(level.isfinite(), turn, 0.0)
            wanted = torch.where(fell, turn.clamp(there / 10, 10 * there), turn.clamp(there / 100, there / 2))
            found = torch.where(fell, (wanted / there - 1).abs() < 0.2, wanted < 1.5 * best)
            done = done | found | (-self._begun * wanted < ENOUGH)
            there = torch.where(done, best, wanted)
            if bool(done.all()):
                break
        self._shift(best - reached)
        return lowest

    def _shift(self, lengths: Tensor) -> None:
        self.place.addcmul_(self._along, lengths.to(self.place)[:, None])

    def _potential(self) -> Tensor:
        """Give U, (anchor,), float64."""
        held = torch.zeros_like(self._level)
        for here, _, anchor in self._parts():
            pieces = zip(here.flatten(1).split(PIECE, 1), anchor.flatten(1).split(PIECE, 1), strict=True)
            for one, other in pieces:  # the way of a whole embedding would need room of its own
                away = one - other
                held += _dots(away, away)
        return self._n_beta * losses(self._model, self.place) + self._gamma / 2 * held

    def _look(self) -> None:
        """Put the gradient of U into the slope, zero where the mask holds still."""
        model = self._model
        self._slope.zero_()
        with torch.no_grad(), model.evaluating():
            if isinstance(self._gradient, Sequential):
                for place, slope in zip(self.place, self._slope, strict=True):
                    self._gradient.add(place, model.looked_at, slope)
            else:
                for batch in model.blocks():
                    _, each = self._gradient(self.place, tuple(part[None] for part in batch))
                    self._slope.add_(each, alpha=len(batch[0]) / model.seen)
        self._slope.mul_(self._n_beta)
        for here, slope, anchor in self._parts():
            slope.add_(here, alpha=self._gamma).sub_(anchor, alpha=self._gamma)
        if model.mask is not None:
            self._slope.mul_(model.mask)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go through the place, the slope and the anchor side by side, (anchor, ...); the module is its own anchor."""
        if self._anchors is not None:
            yield self.place, self._slope, self._anchors
            return
        places, slopes = self._model.named(self.place[0]), self._model.named(self._slope[0])
        for name, anchor in self._model.parameters.items():
            yield places[name][None], slopes[name][None], anchor.detach()[None]


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Multiply rows by rows, one after the other, which needs no temporary of their size: (anchor,), float64."""
    return torch.stack([torch.dot(one, other) for one, other in zip(left, right, strict=True)]).double()
