r"""Known truths: learning coefficients in closed form, to check every estimate against.

Near a minimum, the volume of weights whose excess loss is below :math:`\varepsilon` shrinks as
:math:`\varepsilon^{\lambda} (-\ln \varepsilon)^{m-1}`. The learning coefficient :math:`\lambda` (real log canonical
threshold) and its multiplicity m are a `Truth`. A quadratic minimum has :math:`\lambda = d/2`, a degenerate one less.

Values are computed in exact fractions. Sources stand at each function; S. Watanabe, *Algebraic Geometry and
Statistical Learning Theory*, 2009, has the common ground.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import index
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from assay.errors import BadInput

Exponent = SupportsFloat


@dataclass(frozen=True)
class Truth:
    """A learning coefficient that is known.

    Attributes:
        learning_coefficient: lambda.
        multiplicity: m, at least 1.

    Raises:
        BadInput: when the coefficient is negative or not finite, or the multiplicity is no whole number from 1 on.
    """

    learning_coefficient: float
    multiplicity: int = 1

    def __post_init__(self) -> None:
        fine = 0 <= self.learning_coefficient < math.inf
        _require(
            fine, f"learning coefficient is {self.learning_coefficient}: expected 0 or more, and finite."
        )
        (multiplicity,) = _whole("multiplicity is", self.multiplicity)
        _require(multiplicity >= 1, f"multiplicity is {multiplicity}: it counts from 1.")

    def at(self, n_beta: float) -> float:
        r"""Give what a perfect sampler measures at a finite temperature, to leading order.

        .. math:: E[n\beta\,(L - L(w^*))] \approx \lambda - \frac{m - 1}{\ln n\beta}

        What is left out is :math:`O((\ln n\beta)^{-2})` where m > 1, and vanishes as a power of
        :math:`n\beta` where m = 1.

        Args:
            n_beta: number of samples times inverse temperature, above 1.

        Raises:
            BadInput: when ``n_beta`` is not above 1.
        """
        if not n_beta > 1:
            raise BadInput(f"n_beta is {n_beta}: the law holds for large values; pass one above 1.")
        return self.learning_coefficient - (self.multiplicity - 1) / math.log(n_beta)


def quadratic(rank: SupportsIndex) -> Truth:
    """Give the truth of a quadratic minimum: half the rank of its Hessian.

    Raises:
        BadInput: when the rank is negative, or no whole number.
    """
    (rank,) = _whole("rank is", rank)
    _require(rank >= 0, f"rank is {rank}: a rank is not negative.")
    return Truth(rank / 2)


def separable(powers: Iterable[Exponent]) -> Truth:
    """Give the truth of K = |w_1|^p_1 + |w_2|^p_2 + ...: the sum of 1 / p_i.

    Args:
        powers: p_i, positive; a number with a decimal point is the decimal fraction it is written as.

    Raises:
        BadInput: when there is no power, or one is not positive and finite.
    """
    return Truth(float(sum((1 / power for power in _fractions("powers", powers, above=0)), Fraction())))


def normal_crossing(powers: Iterable[Exponent], prior_powers: Iterable[Exponent] | None = None) -> Truth:
    """Give the truth of K = |w_1|^p_1 |w_2|^p_2 ... under the prior |w_1|^h_1 |w_2|^h_2 ...

    lambda is the smallest (h_i + 1) / p_i, and m counts how often it is attained.

    Args:
        powers: p_i, positive (2 k_i in Watanabe's notation); a number with a decimal point is the decimal fraction
            it is written as.
        prior_powers: h_i, above -1; all 0 (a flat prior) when not given.

    Raises:
        BadInput: when a power is out of range, or there are not as many of both.
    """
    exponents = _fractions("powers", powers, above=0)
    priors = [Fraction(0)] * len(exponents)
    if prior_powers is not None:
        priors = _fractions("prior powers", prior_powers, above=-1)
    _require(
        len(priors) == len(exponents),
        f"{len(exponents)} powers and {len(priors)} prior powers: give one for each variable.",
    )
    ratios = [float((prior + 1) / power) for power, prior in zip(exponents, priors, strict=True)]
    return Truth(min(ratios), sum(_tied(ratio, min(ratios)) for ratio in ratios))


def disjoint_sum(*truths: Truth) -> Truth:
    """Give the truth of K_1(u) + K_2(v) + ...: coefficients add, and so do multiplicities less one.

    Raises:
        BadInput: when there is nothing to add, or something that is no truth.
    """
    _require_truths(truths)
    coefficient = math.fsum(truth.learning_coefficient for truth in truths)
    return Truth(coefficient, 1 + sum(truth.multiplicity - 1 for truth in truths))


def disjoint_product(*truths: Truth) -> Truth:
    """Give the truth of K_1(u) K_2(v) ...: the smallest coefficient; multiplicities add up over ties.

    Raises:
        BadInput: when there is nothing to multiply, or something that is no truth.
    """
    _require_truths(truths)
    smallest = min(truth.learning_coefficient for truth in truths)
    tied = (truth for truth in truths if _tied(truth.learning_coefficient, smallest))
    return Truth(smallest, sum(truth.multiplicity for truth in tied))


def deep_linear(widths: Iterable[SupportsIndex], rank: SupportsIndex) -> Truth:
    r"""Give the truth of a deep linear network x -> W_L ... W_1 x whose target map has a given rank.

    With :math:`M_s = d_s - r`, let S be the smallest widths, as many (:math:`\ell + 1`) as satisfy
    :math:`\max S < \min S^c`, :math:`\sum S \ge \ell \max S`, :math:`\sum S < \ell \min S^c`. Then, with
    :math:`T = \sum S`, :math:`M = \lceil T/\ell \rceil`, :math:`a = T - (M-1)\ell`,

    .. math:: \lambda = \frac{r(d_0 + d_L) - r^2}{2} + \frac{a(\ell-a)}{4\ell} - \frac{\ell(\ell-1)}{4}
              \Bigl(\frac{T}{\ell}\Bigr)^2 + \frac12 \sum_{i<j \in S} M_i M_j, \qquad m = a(\ell-a) + 1.

    M. Aoyagi 2024, Neural Networks 172:106132. It is the smallest coefficient over all weights that realise
    the map, and that of the weights where every layer has rank r; elsewhere see `deep_linear_local`.

    Args:
        widths: d_0, ..., d_L; input, hidden widths, output.
        rank: r, of the target map.

    Raises:
        BadInput: when there are fewer than two widths, the rank exceeds one of them, or one is no whole number.
    """
    widths, (rank,) = _whole("widths are", *widths), _whole("rank is", rank)
    _require(len(widths) >= 2, f"widths are {list(widths)}: give input and output widths at least.")
    _require(0 <= rank <= min(widths), f"rank {rank} with widths {list(widths)}: no map has that rank.")
    excess = sorted(width - rank for width in widths)
    count = next(count for count in range(2, len(excess) + 1) if _suffices(excess, count))
    chosen, depth = excess[:count], count - 1
    total = sum(chosen)
    remainder = total - (-(-total // depth) - 1) * depth
    pairs = Fraction(total**2 - sum(width**2 for width in chosen), 2)
    coefficient = (
        Fraction(rank * (widths[0] + widths[-1]) - rank**2, 2)
        + Fraction(remainder * (depth - remainder), 4 * depth)
        - Fraction(depth * (depth - 1), 4) * Fraction(total, depth) ** 2
        + pairs / 2
    )
    return Truth(float(coefficient), remainder * (depth - remainder) + 1)


def _suffices(excess: Sequence[int], count: int) -> bool:
    """Tell whether the first ``count`` of the sorted widths are the set S of Aoyagi's theorem."""
    total, depth = sum(excess[:count]), count - 1
    return total >= depth * excess[count - 1] and (count == len(excess) or total < depth * excess[count])


def deep_linear_local(
    widths: Iterable[SupportsIndex], ranks: Iterable[SupportsIndex], rank: SupportsIndex
) -> Truth:
    r"""Give the truth of a two-layer linear network x -> W_2 W_1 x at any weights that realise the map.

    With a and b the ranks of :math:`W_1` and :math:`W_2`, r that of their product, and widths N, H, M,

    .. math:: \lambda = \frac{Ma + Nb - ab}{2} + \lambda_{DLN}\bigl([N-a,\ H-a-b+r,\ M-b],\ 0\bigr).

    The directions in which the product moves to first order count a half each; what is left is a network of
    the remaining widths whose map is zero.

    Args:
        widths: N, H, M.
        ranks: a and b.
        rank: r.

    Raises:
        BadInput: when these are not three widths and two ranks, all whole numbers, or no two such matrices have such
            a product.
    """
    widths, ranks = _whole("widths are", *widths), _whole("ranks are", *ranks)
    (rank,) = _whole("rank is", rank)
    _require(len(ranks) == 2, f"ranks are {ranks}: give two ranks, of the first layer and of the second.")
    _require(len(widths) == 3, f"widths are {list(widths)}: the local formula is for two layers.")
    inputs, hidden, outputs = widths
    first, second = ranks
    possible = (
        first <= min(inputs, hidden)
        and second <= min(hidden, outputs)
        and max(0, first + second - hidden) <= rank <= min(first, second)
    )
    _require(
        possible, f"ranks {ranks} with a product of rank {rank}, widths {list(widths)}: no such matrices."
    )
    rest = deep_linear([inputs - first, hidden - first - second + rank, outputs - second], 0)
    moved = (outputs * first + inputs * second - first * second) / 2
    return Truth(moved + rest.learning_coefficient, rest.multiplicity)


def reduced_rank(
    inputs: SupportsIndex, hidden: SupportsIndex, outputs: SupportsIndex, rank: SupportsIndex
) -> Truth:
    """Give the truth of reduced-rank regression x -> B A x with a target map of a given rank.

    M. Aoyagi and S. Watanabe 2005, Neural Networks 18:924; four cases of the widths.

    Args:
        inputs: N.
        hidden: H.
        outputs: M.
        rank: r, at most the smallest width.

    Raises:
        BadInput: when the rank exceeds a width, or one of them is no whole number.
    """
    n, h, m, r = _whole("sizes are", inputs, hidden, outputs, rank)
    _require(0 <= r <= min(n, h, m), f"rank {r} with widths {[n, h, m]}: no map has that rank.")
    if m + h < n + r:
        return Truth((h * m - h * r + n * r) / 2)
    if n + h < m + r:
        return Truth((h * n - h * r + m * r) / 2)
    if m + n < h + r:
        return Truth(m * n / 2)
    eighths = 2 * (h + r) * (m + n) - (h + r) ** 2 - (m - n) ** 2
    odd = (m + h + n + r) % 2
    return Truth((eighths + odd) / 8, 1 + odd)


def tanh_network(hidden: SupportsIndex) -> Truth:
    r"""Give the truth of x -> sum_h a_h tanh(b_h x) whose target is zero.

    With :math:`i = \lfloor\sqrt H\rfloor`, :math:`\lambda = (H + i^2 + i)/(4i + 2)`, and m = 2 where
    :math:`i^2 = H`. M. Aoyagi and S. Watanabe 2006, IEICE Transactions J89-D 1:126.

    Args:
        hidden: H, number of hidden units.

    Raises:
        BadInput: when there is no hidden unit, or no whole number of them.
    """
    (hidden,) = _whole("hidden is", hidden)
    _require(hidden >= 1, f"hidden is {hidden}: a network has a hidden unit or more.")
    root = math.isqrt(hidden)
    return Truth((hidden + root**2 + root) / (4 * root + 2), 2 if root**2 == hidden else 1)


def _whole(what: str, *values: Any) -> list[int]:
    """Make sizes Python's own whole numbers, which do not overflow."""
    try:
        return [index(value) for value in values]
    except TypeError as cause:
        raise BadInput(f"{what} {', '.join(map(str, values))}: expected whole numbers.") from cause


def _fractions(what: str, values: Iterable[Any], *, above: int) -> list[Fraction]:
    """Take numbers for what they are written as, so that 1.1 is 11/10."""
    written = [str(np.asarray(value)) for value in values]
    try:
        found = [Fraction(number) for number in written]
    except ValueError:  # not finite, or no number
        found = []
    fine = found and all(value > above for value in found)
    _require(fine, f"{what} are {', '.join(written) or 'none'}: expected finite numbers above {above}.")
    return found


def _tied(coefficient: float, smallest: float) -> bool:
    return math.isclose(coefficient, smallest, rel_tol=1e-12)


def _require_truths(truths: Sequence[Any]) -> None:
    _require(bool(truths), "a truth or more is needed.")
    fine = all(isinstance(truth, Truth) for truth in truths)
    _require(fine, "expected truths, one by one: disjoint_sum(first, second), not a list of them.")


def _require(holds: object, message: str) -> None:
    if not holds:
        raise BadInput(message)
