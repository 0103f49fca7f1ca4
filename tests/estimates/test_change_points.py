import numpy as np
import pytest

from assay.errors import BadInput
from assay.estimates.change_points import change_points


def steps(noise: float, seed: int = 0) -> np.ndarray:
    levels = np.repeat([0.0, 3.0, 1.0, 1.4], [40, 50, 60, 50])
    return levels + noise * np.random.default_rng(seed).normal(size=levels.size)


def test_changes_are_found_where_they_are_with_their_sizes() -> None:
    found = change_points(steps(0.1), window=12)
    assert found.index == (40, 90, 150)
    # the mean of 12 points on either side: 0.1 sqrt(2 / 12) = 0.04
    assert found.size == pytest.approx((3.0, -2.0, 0.4), abs=0.13)
    assert found.noise == pytest.approx(0.1, rel=0.3)


def test_a_curve_without_noise_is_told_by_its_range() -> None:
    assert change_points(steps(0.0), window=12, share=0.2).index == (40, 90)
    assert change_points(steps(0.0), window=12, share=0.05).index == (40, 90, 150)


def test_noise_alone_passes_as_seldom_as_is_asked() -> None:
    rng = np.random.default_rng(1)
    passed = [
        bool(change_points(rng.normal(size=200), window=10, share=0, level=0.05).index) for _ in range(400)
    ]
    # the law is asymptotic and on the safe side; four standard errors of 400 trials above 5%
    assert np.mean(passed) <= 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5
    loose = [
        bool(change_points(rng.normal(size=200), window=10, share=0, level=0.9).index) for _ in range(100)
    ]
    assert np.mean(loose) > 0.2


def test_a_smooth_transition_is_one_change_at_its_middle() -> None:
    time = np.arange(300)
    found = change_points(5 / (1 + np.exp(-(time - 120) / 4)), window=20)
    assert len(found.index) == 1
    assert found.index[0] == pytest.approx(120, abs=2)


def test_a_change_close_to_an_end_is_found() -> None:
    assert change_points(np.r_[np.zeros(3), np.ones(60)], window=10).index == (3,)


def test_a_flat_curve_has_none() -> None:
    assert change_points(np.ones(50), window=5) == change_points(np.zeros(50), window=5)
    assert change_points(np.ones(50), window=5).index == ()


@pytest.mark.parametrize(
    ("curve", "settings", "message"),
    [
        (np.zeros(9), {"window": 5}, "twice as long"),
        (np.array([0.0, np.nan, 1.0, 2.0]), {"window": 1}, "finite"),
        (np.zeros(9), {"window": 2, "share": 1.0}, "share"),
        (np.zeros(9), {"window": 2, "level": 0.0}, "level"),
    ],
)
def test_bad_input(curve: np.ndarray, settings: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        change_points(curve, **settings)  # type: ignore[arg-type]
