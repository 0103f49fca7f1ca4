import numpy as np
import pytest
from scipy.signal import lfilter

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
    assert found.noise == pytest.approx(0.1, rel=0.4)


def test_a_curve_without_noise_is_told_by_its_range() -> None:
    assert change_points(steps(0.0), window=12, share=0.2).index == (40, 90)
    assert change_points(steps(0.0), window=12, share=0.05).index == (40, 90, 150)


def noisy(count: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that keeps a share of what it was: white at 0, a random walk at 1."""
    return np.asarray(lfilter([1.0], [1.0, -memory], rng.normal(size=count + 100)))[100:]


@pytest.mark.parametrize("memory", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("count", "window"), [(40, 2), (100, 5), (300, 10)])
def test_noise_alone_passes_as_seldom_as_is_asked(count: int, window: int, memory: float) -> None:
    rng, trials = np.random.default_rng(1), 150
    passed = [
        bool(change_points(noisy(count, memory, rng), window=window, share=0).index) for _ in range(trials)
    ]
    # the law is asymptotic, and the noise estimated; four standard errors above 5%
    assert np.mean(passed) <= 0.05 + 4 * (0.05 * 0.95 / trials) ** 0.5


def test_another_level_passes_more_often() -> None:
    rng = np.random.default_rng(1)
    loose = [bool(change_points(noisy(200, 0, rng), window=10, share=0, level=0.9).index) for _ in range(100)]
    assert np.mean(loose) > 0.2


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.03, 0.1])
@pytest.mark.parametrize("count", [100, 101, 2001])
def test_a_steady_slope_has_no_change(count: int, noise: float) -> None:
    rng = np.random.default_rng(2)
    for sign in (1, -1):
        curve = sign * np.linspace(0, 1, count) + noise * rng.normal(size=count)
        assert change_points(curve, window=count // 20).index == ()


def test_a_slope_after_rest_is_one_change_and_a_decay_at_most_one() -> None:
    time = np.arange(201)
    assert len(change_points(np.maximum(time - 100, 0), window=10).index) == 1
    assert len(change_points(np.exp(-time / 40), window=10).index) <= 1
    assert change_points(np.exp(-time / 200), window=10).index == ()


def test_the_smallest_of_many_changes_is_found_among_noise_with_memory() -> None:
    found, trials = 0, 40
    for seed in range(trials):
        levels = 40.0 * (np.arange(200) >= 60) + 12.0 * (np.arange(200) >= 130)
        found += (
            len(change_points(levels + noisy(200, 0.7, np.random.default_rng(seed)), window=10).index) == 2
        )
    assert found > 0.8 * trials


def test_two_changes_closer_than_two_windows_are_two() -> None:
    time = np.arange(100)
    assert change_points(1.0 * (time >= 40) + 1.0 * (time >= 54), window=8).index == (40, 54)
    assert len(change_points(1.0 * (time >= 40) + 1.0 * (time >= 44), window=8).index) == 1


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
