"""The two-level bootstrap: against closed forms, and how often its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from mass.bootstrap import Resample, Values, percentiles, two_level


def crossed(values: Values) -> Resample:
    """[S, P] on one set of problems."""
    return Resample(tuple(values), ("test",) * len(values))


def nested(values: Values) -> Resample:
    """[S, P], each seed with problems of its own."""
    return Resample(tuple(values), tuple(f"set {s}" for s in range(len(values))))


def test_one_seed_is_the_ordinary_bootstrap_over_problems() -> None:
    rng = np.random.default_rng(0)
    row = rng.integers(0, 2, 300).astype(float)
    draws = two_level(Resample((row,), ("a",)), 20_000)
    assert draws.mean() == pytest.approx(row.mean(), abs=1e-3)
    assert draws.std() == pytest.approx(row.std() / np.sqrt(300), rel=0.03)


def test_equal_problems_leave_students_t_of_the_seeds() -> None:
    """Without spread between problems the interval is that of the mean of S numbers, of S - 1 degrees of freedom."""
    means = np.array([0.50, 0.56, 0.47, 0.61, 0.52])
    low, high = percentiles(two_level(crossed(np.repeat(means[:, None], 50, axis=1)), 100_000))
    half = 2.776 * means.std(ddof=1) / np.sqrt(5)
    assert (high + low) / 2 == pytest.approx(means.mean(), abs=0.004)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)


def test_equal_seeds_leave_the_spread_of_the_problems() -> None:
    row = np.random.default_rng(1).integers(0, 2, 400).astype(float)
    one = two_level(Resample((row,), ("a",)))
    assert np.allclose(two_level(Resample((row,) * 5, ("a",) * 5)), one)


def test_a_problem_without_outcome_does_not_count() -> None:
    row = np.array([1.0, 0.0, np.nan, 1.0])
    sample = Resample((row, np.array([1.0, 1.0, 0.0, 0.0])), ("a", "a"))
    assert sample.mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert np.isfinite(two_level(sample)).all()
    same = Resample((np.full(4, np.nan) * [0, 1, 0, 1] + 1.0,), ("a",))
    assert np.isnan(same.values[0]).all()


def test_quantities_on_the_same_problems_and_seeds_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    one = rng.integers(0, 2, (5, 300)).astype(float)
    other = np.clip(one + (rng.random((5, 300)) < 0.05), 0, 1)
    paired = two_level(crossed(other - one))
    assert np.allclose(two_level(crossed(other)) - two_level(crossed(one)), paired)
    assert paired.std() < 0.5 * np.hypot(two_level(crossed(other)).std(), two_level(crossed(one)).std())
    assert np.array_equal(two_level(crossed(one)), two_level(crossed(one.copy())))


@pytest.mark.parametrize("design", ["crossed", "nested"])
@pytest.mark.parametrize(("seeds", "between"), [(5, 0.0), (5, 0.03), (3, 0.06), (8, 0.015)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(design: str, seeds: int, between: float) -> None:
    """Binary outcomes of problems of unequal difficulty, seeds that differ by a normal deviation of `between`."""
    rng = np.random.default_rng([seeds, int(1000 * between), design == "nested"])
    problems, truth, covered, trials = 200, 0.6, 0, 400
    for _ in range(trials):
        difficulty = rng.choice([-0.3, 0.0, 0.3], (1 if design == "crossed" else seeds, problems))
        chance = np.clip(truth + difficulty + rng.normal(0, between, (seeds, 1)), 0, 1)
        values = (rng.random((seeds, problems)) < chance).astype(float)
        low, high = percentiles(two_level(crossed(values) if design == "crossed" else nested(values), 1000))
        covered += low <= truth <= high
    assert 0.93 <= covered / trials <= (0.995 if design == "crossed" else 1.0)


def test_plain_resampling_of_a_few_seeds_would_cover_too_little() -> None:
    """Why there is more to it: percentiles of five numbers drawn again."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        means = rng.normal(0.6, 0.05, 5)
        low, high = percentiles(rng.choice(means, (1000, 5)).mean(1))
        covered += low <= 0.6 <= high
    assert covered / 400 < 0.88
