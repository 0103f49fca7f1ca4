import inspect
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.landscape import known
from assay.landscape.known import Truth
from reference.landscape_truths import deep_linear_by_subsets, tempered_excess


def test_aoyagi_is_reduced_rank_regression_for_two_layers() -> None:
    sizes = range(1, 8)
    cases = [(n, h, m, r) for n, h, m in itertools.product(sizes, repeat=3) for r in range(min(n, h, m) + 1)]
    assert len(cases) == 1127
    different = [case for case in cases if known.deep_linear(case[:3], case[3]) != known.reduced_rank(*case)]
    assert different == []


unchecked = inspect.unwrap
"""Without the tests' own check of types, which a user does not have."""


@given(st.lists(st.integers(0, 9), min_size=2, max_size=7), st.integers(0, 5))
def test_the_rule_for_the_index_set_finds_what_trying_every_subset_finds(
    excess: list[int], rank: int
) -> None:
    widths = [width + rank for width in excess]
    truth = known.deep_linear(widths, rank)
    assert deep_linear_by_subsets(widths, rank) == {
        (round(truth.learning_coefficient, 9), truth.multiplicity)
    }


@pytest.mark.parametrize(
    ("widths", "rank", "coefficient"),
    [
        *(
            ((10,) * (layers + 1), 0, value)
            for layers, value in enumerate((50, 37.5, 33.5, 31.5, 30, 29.5), 1)
        ),
        ((18,) * 4, 9, 148.5),
        ((18,) * 4, 18, 162),
        ((182,) * 4, 91, 15182),
    ],
)
def test_published_values(widths: tuple[int, ...], rank: int, coefficient: float) -> None:
    assert known.deep_linear(widths, rank).learning_coefficient == coefficient


@pytest.mark.parametrize("layers", range(1, 7))
def test_a_scalar_chain_is_a_normal_crossing(layers: int) -> None:
    """K = (w_1 ... w_L)^2."""
    assert (
        known.deep_linear([1] * (layers + 1), 0) == known.normal_crossing([2] * layers) == Truth(0.5, layers)
    )


def test_the_order_of_hidden_widths_does_not_matter() -> None:
    assert {known.deep_linear([5, *order, 6], 2) for order in itertools.permutations((3, 4, 9))} == {
        known.deep_linear([5, 3, 4, 9, 6], 2)
    }


def test_the_local_truth_at_minimal_rank_is_the_global_one() -> None:
    for n, h, m in itertools.product(range(1, 6), repeat=3):
        for r in range(min(n, h, m) + 1):
            assert known.deep_linear_local([n, h, m], (r, r), r) == known.deep_linear([n, h, m], r)


def test_the_global_truth_is_the_smallest_local_one() -> None:
    n, h, m, r = 4, 4, 4, 0
    local = [
        known.deep_linear_local([n, h, m], (a, b), r).learning_coefficient
        for a in range(r, min(n, h) + 1)
        for b in range(r, min(h, m) + 1)
        if a + b - h <= r
    ]
    assert min(local) == known.deep_linear([n, h, m], r).learning_coefficient
    assert max(local) > min(local)


@pytest.mark.parametrize(
    ("ranks", "rank", "coefficient"), [((0, 4), 0, 8), ((2, 4), 2, 8), ((2, 3), 2, 7.5), ((2, 2), 1, 7)]
)
def test_local_values(ranks: tuple[int, int], rank: int, coefficient: float) -> None:
    assert known.deep_linear_local([4, 4, 4], ranks, rank).learning_coefficient == coefficient


@pytest.mark.parametrize(
    ("powers", "prior_powers", "truth"),
    [
        ((2.0,), (0,), Truth(0.5)),
        ((2, 4), (0, 0), Truth(0.25)),
        ((2, 2), (0, 0), Truth(0.5, 2)),
        ((2, 4), (0, 1), Truth(0.5, 2)),
        ((2, 4, 6), (0, 1, 2), Truth(0.5, 3)),
        ((2, 6), (1, 0), Truth(1 / 6)),
    ],
)
def test_normal_crossings_agree_with_integration(powers, prior_powers, truth: Truth) -> None:
    assert known.normal_crossing(powers, prior_powers) == truth
    # the law leaves out O(1 / ln^2): at n beta = 1e20 that is (m - 1) times a small multiple of 1 / 46^2
    tolerance = 0.002 if truth.multiplicity == 1 else 3 * (truth.multiplicity - 1) / math.log(1e20) ** 2
    assert tempered_excess(powers, prior_powers, 1e20) == pytest.approx(truth.at(1e20), abs=tolerance)


@pytest.mark.parametrize(
    ("powers", "prior_powers", "truth"),
    [
        ([1.1, 1.0], [0.1, 0], Truth(1.0, 2)),
        ([3, 1], [0, -2 / 3], Truth(1 / 3, 2)),
        (torch.tensor([1.1, 1.0]), torch.tensor([0.1, 0.0]), Truth(1.0, 2)),
        (np.array([2, 4]), None, Truth(0.25)),
        ([Fraction(1, 3), 1 / 3], None, Truth(3.0, 2)),
    ],
)
def test_decimal_fractions_tie_as_they_are_written(powers, prior_powers, truth: Truth) -> None:
    assert known.normal_crossing(powers, prior_powers) == truth


def test_numbers_of_other_libraries_are_taken_for_what_they_say() -> None:
    narrow = np.array([300] * 4, np.int16)
    assert known.deep_linear(narrow, np.int16(100)) == known.deep_linear([300] * 4, 100)
    assert known.deep_linear(torch.tensor([18] * 4), 9) == known.deep_linear([18] * 4, 9)
    wide = np.int16(300)
    assert known.reduced_rank(wide, wide, wide, wide) == known.reduced_rank(300, 300, 300, 300)
    assert known.deep_linear_local(narrow[:3], (wide, wide), 300) == known.deep_linear([300] * 3, 300)
    assert known.separable(np.array([2, 4])) == known.separable(torch.tensor([2, 4])) == Truth(0.75)


def test_blocks_add_and_multiply() -> None:
    assert known.disjoint_sum(Truth(0.5, 2), Truth(1.5, 3), Truth(0.25)) == Truth(2.25, 4)
    assert known.disjoint_product(Truth(0.5, 2), Truth(0.5, 3), Truth(0.75, 7)) == Truth(0.5, 5)
    assert known.disjoint_sum(*[known.normal_crossing([4])] * 6) == known.separable([4] * 6) == Truth(1.5)
    assert known.disjoint_sum(*[known.separable([2])] * 5) == known.quadratic(5)
    assert known.disjoint_product(*[known.separable([2])] * 3) == known.normal_crossing([2, 2, 2])


def test_tanh_networks() -> None:
    """H = 1 is (a b)^2 to leading order, a normal crossing."""
    assert known.tanh_network(1) == known.normal_crossing([2, 2])
    values = [known.tanh_network(hidden) for hidden in (2, 3, 4)]
    assert values == [Truth(2 / 3), Truth(5 / 6), Truth(1.0, 2)]


def test_a_finite_temperature_costs_the_multiplicity() -> None:
    assert Truth(4.0).at(50) == 4.0
    assert Truth(4.0, 3).at(math.exp(4)) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Truth(1.0).at(1.0), "above 1"),
        (lambda: Truth(0.5, 0), "multiplicity is 0"),
        (lambda: Truth(math.nan), "learning coefficient is nan"),
        (lambda: unchecked(known.quadratic)(2.5), "rank is 2.5"),
        (lambda: known.separable([2, math.inf]), "above 0"),
        (lambda: unchecked(known.separable)([2, "two"]), "above 0"),
        (lambda: known.normal_crossing([2, math.nan]), "above 0"),
        (lambda: known.normal_crossing([2], [math.inf]), "above -1"),
        (lambda: unchecked(known.disjoint_sum)([Truth(1.0), Truth(2.0)]), "one by one"),
        (lambda: unchecked(known.disjoint_product)(0.5), "one by one"),
        (lambda: unchecked(known.deep_linear)([4.0, 4.0], 2), "widths are 4.0"),
        (lambda: unchecked(known.deep_linear)([4, 4], 1.5), "rank is 1.5"),
        (lambda: unchecked(known.deep_linear_local)([4, 4, 4], (1, 1.5), 1), "ranks are 1, 1.5"),
        (lambda: known.deep_linear_local([4, 4, 4], (1,), 1), "two ranks"),
        (lambda: unchecked(known.reduced_rank)(4, 4, 4, 1.5), "sizes are 4, 4, 4, 1.5"),
        (lambda: unchecked(known.tanh_network)(2.0), "hidden is 2.0"),
        (lambda: known.quadratic(-1), "not negative"),
        (lambda: known.separable([]), "above 0"),
        (lambda: known.separable([2, 0]), "above 0"),
        (lambda: known.normal_crossing([2, 2], [0]), "one for each variable"),
        (lambda: known.normal_crossing([2], [-1]), "above -1"),
        (known.disjoint_sum, "a truth or more"),
        (known.disjoint_product, "a truth or more"),
        (lambda: known.deep_linear([3], 0), "input and output"),
        (lambda: known.deep_linear([3, 2, 3], 3), "no map"),
        (lambda: known.deep_linear_local([3, 3], (1, 1), 1), "two layers"),
        (lambda: known.deep_linear_local([3, 2, 3], (2, 2), 1), "no such matrices"),
        (lambda: known.reduced_rank(2, 1, 2, 2), "no map"),
        (lambda: known.tanh_network(0), "hidden unit"),
    ],
)
def test_bad_input_says_what_to_pass(call, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()
