r"""Choosing nothing: how a run finds its own step size, burn-in and length.

The step size is the largest that keeps its own bias at a stated share of the estimate,

.. math:: \varepsilon \le \frac{8\,\tau\,\hat\lambda}{E\lVert\nabla U\rVert^2}, \qquad
          \varepsilon \le \frac{\kappa}{\max_i h_i},

the first by the bias law of `assay.landscape.samplers.sgld`, with tolerance :math:`\tau`; the second well below the
limit of stability, 4 over the largest curvature that any chain meets, which power iteration follows along. Both are
looked at every few steps of the burn-in, for flat directions turn stiff as chains spread; then the step size is held.

Burn-in ends when the last quarter of it no longer differs from the quarter before. Draws are doubled until the
interval is as narrow as asked, or the budget is spent; whenever their first half differs from the second, it becomes
burn-in too.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from assay.estimates.convergence import convergence
from assay.landscape.chains import Chains, Walk, Walker, begin
from assay.landscape.estimators import corrected, half_width
from assay.landscape.frugal import Frugal
from assay.landscape.probe import Probe
from assay.landscape.samplers.psgld import PSGLD
from assay.landscape.samplers.sampler import Sampler
from assay.landscape.target import Target

ROUND = 25
"""Steps between two looks at the step size."""
HELD = 200
"""Last steps of burn-in, in which the step size is held; half of a burn-in that has not twice as many."""
FIRST = 1000
"""Steps of burn-in before the first look at drift, and the fewest draws."""
STABLE = 0.5
"""Step size times the largest curvature; chains fly apart at 4."""
SIGNIFICANT = 0.02
"""A drift is one when chance would show it less often than this."""
LOOKS = 5
"""Looks for drift during the draws, which together may take chance for drift as often as one look in burn-in.

In burn-in that costs steps. But to drop the half of the draws that lies off by chance is to keep the one that lies off
the other way.
"""
EXCEEDED = 2.0
"""Draws whose bias is so many times what is tolerated become burn-in, and the step size smaller."""
RESTARTS = 12
"""So often is a burn-in begun again, with ever smaller steps, when chains diverge."""

Stopped = Literal["interval", "budget", "draws", "diverged"]
STOPPED: tuple[Stopped, ...] = get_args(Stopped)
"""Why a run ended: its interval is narrow, its budget spent, it has the draws that were set, or chains diverged."""


@dataclass(frozen=True)
class Aim:
    """What a run is to reach. What is None is found.

    Attributes:
        step_size: epsilon.
        burn_in: steps that are not averaged.
        draws: steps that are.
        bias_tolerance: tau, what the step size may add, as a share of the estimate.
        relative_error: half the width of the 95 % interval, as a share of the estimate, at which draws suffice.
        budget: steps of each chain, burn-in included.
        judged: so many of the chains, the first, are judged; the others, which share their noise, walk along. All of
            them when None.
    """

    step_size: float | None
    burn_in: int | None
    draws: int | None
    bias_tolerance: float
    relative_error: float
    budget: int
    judged: int | None = None


@dataclass(frozen=True)
class Run:
    """A run that has found its settings.

    Attributes:
        walk: traces of burn-in and draws.
        step_size: epsilon of the draws.
        burn_in: steps before the draws.
        curvature: largest along the last burn-in, (chain,); NaN where it was not looked for.
        stopped: why there are no more draws.
        walking: the chains where they ended.
    """

    walk: Walk
    step_size: float
    burn_in: int
    curvature: Tensor
    stopped: Stopped
    walking: Walker


def run(target: Target, chains: Chains, sampler: Sampler, aim: Aim, baseline: float) -> Run:
    """Walk chains from their anchors until the aim is reached.

    Args:
        target: what is sampled.
        chains: how; their step size is not read.
        sampler: by which steps.
        aim: what to reach.
        baseline: loss at the anchor over all of the data.
    """
    burning = _Burning(target, chains, sampler, aim, baseline)
    while True:
        burning.run()
        drawn, dropped, stopped = _draw(burning, aim)
        if stopped != "diverged" or aim.step_size is not None or not burning.again():
            break
    return Run(
        joined([*burning.walks, *drawn]),
        burning.step_size,
        burning.steps + dropped,
        burning.curvature,
        stopped,
        burning.walking,
    )


def joined(walks: list[Walk]) -> Walk:
    """Join walks of the same chains, one after the other."""
    names = [field.name for field in dataclasses.fields(Walk) if field.name != "reports"]
    reports = {name: torch.cat([walk.reports[name] for walk in walks], 1) for name in walks[0].reports}
    return Walk(*(torch.cat([getattr(walk, name) for walk in walks], 1) for name in names), reports=reports)


class _Burning:
    """Burn-in, which finds the step size on its way."""

    def __init__(self, target: Target, chains: Chains, sampler: Sampler, aim: Aim, baseline: float) -> None:
        self._target, self._chains, self._sampler, self._aim = target, chains, sampler, aim
        self._baseline = baseline
        self.n_beta = chains.n_beta[:, None].double().cpu()
        self._probe: Probe | None = None
        self.curvature = torch.full((len(chains.seeds),), torch.nan, dtype=torch.float64)
        self._ceiling, self._restarts = float("inf"), 0
        self._begin(aim.step_size if aim.step_size is not None else 0.1 / float(self.n_beta.max()))
        # of a large module there is no room for the vectors that looking at curvature takes
        if aim.step_size is None and not isinstance(self.walking, Frugal):
            self._probe = Probe(target, chains)
            here = self._probe.curvature(rounds=10).nan_to_num(0.0).max()
            self._change(min(self.step_size, 0.1 / max(float(here), 1e-30)))

    @property
    def steps(self) -> int:
        """Steps taken."""
        return sum(walk.loss.shape[1] for walk in self.walks)

    def excess(self, walks: list[Walk], dropped: int = 0) -> np.ndarray:
        """Give n beta (L - L*) less the bias of the step size after the first few, (judged chain, step)."""
        return corrected(joined(walks), self.n_beta, self._baseline)[: self._aim.judged, dropped:]

    def run(self) -> None:
        """Walk until nothing drifts, or as long as is set."""
        aim = self._aim
        limit = aim.burn_in if aim.burn_in is not None else aim.budget // 2
        if aim.step_size is not None and aim.burn_in is not None:
            self.walks = [self.walking.advance(limit)] if limit else []
            return
        look, held = max(FIRST, self._sampler.warm_up), min(HELD, limit // 2)
        while self.steps < limit:
            if aim.step_size is None and not self._wanted and self.steps >= limit - held:
                self._hold()
            self.walks.append(self.walking.advance(min(ROUND, limit - self.steps)))
            if aim.step_size is None and not self._wanted and not self._adapt():
                continue
            if aim.burn_in is None and self.steps >= look:
                look *= 2
                if not self._drifts():
                    limit = min(limit, self.steps + held)
        self.walks = [joined(self.walks)] if self.walks else []

    def _begin(self, step_size: float) -> None:
        self.step_size, self.walks, self._wants = step_size, list[Walk](), list[float]()
        self._wanted = False
        chains = dataclasses.replace(self._chains, step_size=self._each(step_size))
        self.walking = begin(self._target, chains, self._sampler)

    def _each(self, step_size: float) -> Tensor:
        return torch.full_like(self._chains.n_beta, step_size)

    def added(self, walks: list[Walk], dropped: int) -> float:
        """Give the mean bias of the draws after the first few."""
        return float(joined(walks).bias[: self._aim.judged, dropped:].mean())

    def shorten(self, factor: float) -> None:
        """Go on with smaller steps."""
        self._change(self.step_size * factor)

    def _change(self, step_size: float) -> None:
        self.step_size = step_size
        self.walking.change_step(self._each(step_size))

    def _hold(self) -> None:
        """Settle on a step size that was nearly always small enough, lately."""
        lately = self._wants[len(self._wants) // 2 :] or [self.step_size]
        self._change(float(np.quantile(lately, 0.25)))
        self._wanted = True

    def _adapt(self) -> bool:
        """Look at the last round, and change the step size; begin again with a smaller one after a disaster."""
        last, aim = self.walks[-1], self._aim
        squared, raw = last.squared_gradient.mean(), self.n_beta * (last.loss - self._baseline)
        found = float(raw.mean())
        added = float(last.bias.mean() if isinstance(self._sampler, PSGLD) else self.step_size * squared / 8)
        if not np.isfinite(added + found) or added > abs(found) / 2 + 0.5:
            return not self.again()
        wanted = self.step_size * aim.bias_tolerance * max(found - added, abs(found) / 10) / max(added, 1e-30)
        if self._probe is not None:
            self.curvature = self._probe.curvature(self.walking.position, rounds=2).double().cpu()
            # a preconditioner evens out what curvature the steps meet
            if not isinstance(self._sampler, PSGLD):
                wanted = min(wanted, STABLE / max(float(self.curvature.max()), 1e-30))
        self._wants.append(min(wanted, self._ceiling))
        self._change(max(min(self._wants[-1], 1.5 * self.step_size), self.step_size / 2))
        return True

    def again(self) -> bool:
        """Begin again with smaller steps than led to a disaster; tell whether there was a try left."""
        self._restarts += 1
        if self._restarts > RESTARTS:
            return False
        self._ceiling = self.step_size / 2
        self._begin(self.step_size / 8)
        return True

    def _drifts(self) -> bool:
        excess = self.excess(self.walks)
        quarter = excess.shape[1] // 4
        return drifts(excess[:, -2 * quarter :], self._aim.relative_error / 2)


def _draw(burning: _Burning, aim: Aim) -> tuple[list[Walk], int, Stopped]:
    """Draw until the interval is narrow; give the draws, how many of the first are burn-in, and why it ended."""
    if aim.draws is not None:
        walks = [burning.walking.advance(aim.draws)]
        return walks, 0, "draws" if finite(walks[0]) else "diverged"
    walks, total, dropped = list[Walk](), 0, 0
    used = burning.steps
    more = min(max(FIRST, used), aim.budget - used)
    while True:
        walks.append(burning.walking.advance(more))
        total += more
        if not finite(walks[-1]):
            return walks, dropped, "diverged"
        excess = burning.excess(walks, dropped)
        share = burning.added(walks, dropped) / max(abs(excess.mean()), 1e-12)
        free = aim.step_size is None and aim.burn_in is None and used + total + FIRST <= aim.budget
        if free and share > EXCEEDED * aim.bias_tolerance:
            burning.shorten(aim.bias_tolerance / share)
            dropped = total
        elif aim.burn_in is None and drifts(excess, aim.relative_error / 2, SIGNIFICANT / LOOKS):
            dropped += excess.shape[1] // 2
        elif half_width(excess) <= aim.relative_error * abs(excess.mean()):
            return walks, dropped, "interval"
        more = min(total, aim.budget - used - total)
        if more < 8:
            return walks, dropped, "budget"


def finite(walk: Walk) -> bool:
    """Tell whether no chain flew apart."""
    return bool((walk.loss * walk.bias).isfinite().all())


def drifts(excess: np.ndarray, share: float, chance: float = SIGNIFICANT) -> bool:
    """Tell whether the halves of draws differ, by more than a share and by more than chance.

    Chance is how far chains differ from each other; in one alone it is what the autocorrelation of each half allows.

    Args:
        excess: (chain, draw).
        share: of the mean.
        chance: how often halves of chains at rest may be taken to differ.
    """
    excess, half = excess[np.isfinite(excess).all(1)], excess.shape[1] // 2
    change = excess[:, half:].mean(1) - excess[:, :half].mean(1)
    if not len(change) or abs(change.mean()) <= share * abs(excess[:, half:].mean()):
        return False
    if len(change) == 1 and half < 8:  # too few to tell
        return False
    if len(change) == 1:
        each = [convergence(part).mcse for part in (excess[:, :half], excess[:, half:])]
        return bool(abs(change[0]) > stats.norm.ppf(1 - chance / 2) * np.hypot(each[0], each[1]))
    found = abs(change.mean()) / (change.std(ddof=1) / len(change) ** 0.5)
    return bool(found > stats.t.ppf(1 - chance / 2, len(change) - 1))
