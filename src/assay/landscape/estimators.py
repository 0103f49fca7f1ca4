r"""Estimators of the learning coefficient from the losses of chains.

With :math:`b_t` what each draw adds to the first-order bias of :math:`n\beta L`, as
`assay.landscape.walks.bias_of_loss` gives it (for Langevin dynamics
:math:`\frac{\varepsilon}{8} (\lVert\nabla U\rVert^2 - \gamma (w - w^*) \cdot \nabla U)`, exact in a quadratic):

- mean: :math:`n\beta\,(E[L] - L^*) - E[b]`;
- variance, on all of the data: :math:`(n\beta)^2 \mathrm{Var}(L) - 2 E[b]`, which needs no :math:`L^*`;
- slope, from two temperatures: :math:`(E_2[L] - E_1[L]) / (1/(n\beta)_2 - 1/(n\beta)_1)`, which needs none either;
- WBIC: :math:`n E[L]` at :math:`n\beta = n/\ln n` (S. Watanabe 2013, JMLR 14:867).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.estimates.convergence import Convergence, convergence
from assay.estimates.estimate import mean_interval
from assay.landscape.chains import Walk
from assay.runs.measurement import Pieces

NUMBERS = ("llc", "llc_stderr", "llc_low", "llc_high", "llc_mcse", "r_hat", "ess", "drift", "drift_stderr")
"""What `summary` gives."""
ESTIMATES = ("llc", "wbic", "singular_fluctuation")
"""How the names of all estimates begin."""
ROUNDING = 1e-6
"""Of an excess loss in float32, as a share of n beta L*, and at least by itself: so little is not below the anchor."""


@dataclass(frozen=True)
class Draws:
    """Draws of chains at one temperature that did not diverge.

    Attributes:
        loss: (chain, draw).
        bias: what each adds to the first-order bias, (chain, draw).
        n_beta: number of samples times inverse temperature.
        baseline: loss at the anchor, L*.
    """

    loss: np.ndarray
    bias: np.ndarray
    n_beta: float
    baseline: float

    @property
    def excess(self) -> np.ndarray:
        """Excess loss n beta (L - L*) less the bias, (chain, draw)."""
        return self.n_beta * (self.loss - self.baseline) - self.bias


def aligned(parts: Sequence[Pieces]) -> tuple[dict[str, np.ndarray], int]:
    """Join the traces of groups of chains at the end of burn-in; those that walked longer lose what others lack.

    Returns:
        Traces (chain, step) by name, and how many of their steps are burn-in.
    """
    starts = [int(part["burn_in"]) for part in parts]
    pairs = list(zip(parts, starts, strict=True))
    before, length = min(starts), min(part["trace_loss"].shape[1] - start for part, start in pairs)
    return {
        name: torch.cat([part[name][:, start - before : start + length] for part, start in pairs]).numpy()
        for name in parts[0]
        if name.startswith(("trace_", "second_"))
    }, before


def mean(draws: Draws) -> dict[str, Any]:
    """Estimate from the mean loss, with the diagnostics of the chains; NaN where they found lower loss than L*."""
    found = {
        **summary(draws.excess),
        "llc_raw": float(draws.n_beta * (draws.loss.mean() - draws.baseline)) if draws.loss.size else np.nan,
        "llc_bias": float(draws.bias.mean()) if draws.bias.size else np.nan,
    }
    rounding = ROUNDING * max(1.0, draws.n_beta * abs(draws.baseline))
    return withheld(found) if found["llc_high"] < -rounding else found


def withheld(found: Mapping[str, Any]) -> dict[str, Any]:
    """Put NaN for every estimate, so that no number stands where there is no coefficient; the raw mean stays."""
    return {
        name: np.nan if name.startswith(ESTIMATES) and name not in ("llc_raw", "llc_bias") else value
        for name, value in found.items()
    }


def variance(draws: Draws) -> dict[str, float]:
    """Estimate from the variance of the loss over all of the data, chain by chain; needs two chains."""
    # per quadratic mode the step size adds twice to the variance what it adds to the mean
    each = draws.n_beta**2 * draws.loss.var(1, ddof=1) - 2 * draws.bias.mean(1)
    return named("llc_variance", each)


def slope(cold: Draws, hot: Draws) -> dict[str, float]:
    """Estimate from the same chains at two temperatures, pair by pair; needs two pairs."""
    levels = [draws.loss.mean(1) - draws.bias.mean(1) / draws.n_beta for draws in (cold, hot)]
    return named("llc_slope", (levels[1] - levels[0]) / (1 / hot.n_beta - 1 / cold.n_beta))


def wbic(found: Mapping[str, Any], n: int, n_beta: float, baseline: float) -> dict[str, float]:
    """Give n E[L] at the temperature of WBIC, with its interval."""
    scale = n / n_beta
    ends = {f"wbic{end}": n * baseline + scale * found[f"llc{end}"] for end in ("", "_low", "_high")}
    return {**ends, "wbic_stderr": scale * found["llc_stderr"]}


def others(draws: Draws, hot: Draws | None, first: Mapping[str, Any], n: int | None) -> dict[str, float]:
    """Estimate in other ways than by the mean.

    Args:
        draws: at n beta.
        hot: at a second temperature, pair by pair; None where there are none.
        first: the estimate by the mean.
        n: number of examples where n beta is n / ln n; None where it is not, and so no WBIC.
    """
    if len(draws.loss) < 2:
        return {}
    found = variance(draws)
    if hot is not None:
        found |= slope(draws, hot)
    return found if n is None else found | wbic(first, n, draws.n_beta, draws.baseline)


def pull(draws: Draws, held: np.ndarray, virial: np.ndarray, *, whole: bool) -> dict[str, float]:
    r"""Tell what the localization holds, and how much of the estimate that may be; needs two chains.

    ``held`` is the mean of :math:`g = \frac\gamma2 \lVert w - w^* \rVert^2`, a half for each direction that the
    localization alone holds. ``sensitivity`` is by how much the estimate would rise if :math:`\ln\gamma` fell by one:
    :math:`\mathrm{Cov}(n\beta L, g)`, in a quadratic mode of curvature a :math:`\frac12 a\gamma / (a + \gamma)^2`,
    nothing where a is 0 or large. By parts it is also :math:`\frac12 (E[G] - \mathrm{Cov}(n\beta L, G))` with
    :math:`G = n\beta\,(w - w^*) \cdot \nabla L`, in which flat directions have no part; that needs losses and slopes
    over all of the data. Of the two it is the one in which the chains agree better. ``degree`` is :math:`E[G]` over
    the estimate: that of the loss along rays from the anchor, 2 in a quadratic.

    Args:
        draws: at n beta.
        held: g of each, (chain, draw).
        virial: of each, (chain, draw).
        whole: whether losses and slopes are over all of the data.
    """
    if len(held) < 2:
        return {}
    along, found = 2 * (virial - held), [draws.n_beta * _covariance(draws.loss, held)]
    if whole:
        # the step size adds b to n beta L, 2 b to G, and 4 b to their covariance, to first order
        spread = draws.n_beta * _covariance(draws.loss, along)
        found.append((along.mean(1) - spread + 2 * draws.bias.mean(1)) / 2)
    return {
        "held": float(held.mean()),
        "degree": float((along - 2 * draws.bias).mean()) / max(float(draws.excess.mean()), 1e-12),
        **named("sensitivity", min(found, key=lambda each: each.var())),
    }


def _covariance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Give the covariance over the draws of each chain, (chain,)."""
    return ((left - left.mean(1, keepdims=True)) * right).sum(1) / (left.shape[1] - 1)


def half_width(excess: np.ndarray) -> float:
    """Give half the width of the 95 % interval of the mean of draws (chain, draw); of one chain by its own draws."""
    if len(excess) == 1:
        return 1.96 * convergence(excess).mcse
    found = summary(excess)
    return found["llc_high"] - found["llc"]


def named(name: str, each: np.ndarray) -> dict[str, float]:
    """Give the mean over chains with its interval, as variables of that name."""
    parts = (float(part) for part in mean_interval(each))
    return dict(zip((name, f"{name}_stderr", f"{name}_low", f"{name}_high"), parts, strict=True))


def corrected(walk: Walk, n_beta: Tensor, baseline: float) -> np.ndarray:
    """Give n beta (L - L*) less the bias of each draw, (chain, step).

    Args:
        walk: traces.
        n_beta: of each chain, (chain, 1).
        baseline: L*.
    """
    return (n_beta * (walk.loss.cpu() - baseline) - walk.bias.cpu()).numpy()


def summary(excess: np.ndarray) -> dict[str, Any]:
    """Estimate from the draws (chain, draw) of n beta (L - L*); NaN with fewer than two chains."""
    if len(excess) < 2:
        return dict.fromkeys(NUMBERS, np.nan)
    half = excess.shape[1] // 2
    drift, drift_stderr, *_ = mean_interval(excess[:, half:].mean(1) - excess[:, :half].mean(1))
    value, stderr, low, high = (float(part) for part in mean_interval(excess.mean(1)))
    # chains that all stay where they are have no variance to compare
    judged = convergence(excess) if np.ptp(excess) else Convergence(1.0, float(excess.size), 0.0)
    # a few chains may agree by luck: never narrower than what the autocorrelation of the draws allows
    wider = max(1.0, judged.mcse / stderr) if stderr > 0 else 1.0
    return {
        "llc": value,
        "llc_stderr": wider * stderr,
        "llc_low": value - wider * (value - low),
        "llc_high": value + wider * (high - value),
        "llc_mcse": judged.mcse,
        "r_hat": judged.r_hat,
        "ess": judged.ess,
        "drift": float(drift),
        "drift_stderr": float(drift_stderr),
    }


def finite_or_flagged(dataset: xr.Dataset) -> xr.Dataset:
    """Allow NaN where chains diverged or there is no coefficient: their own checks say so, and say which."""
    if bool(dataset["diverged"].any()) or bool(dataset["llc"].isnull()):
        for variable in dataset.data_vars.values():
            variable.attrs["allow_nan"] = True
            if variable.dtype.kind == "f":
                variable.values = np.where(np.isinf(variable.values), np.nan, variable.values)
    return dataset
