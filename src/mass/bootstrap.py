"""Values by problem (and by seed) -> 95% intervals, by drawing problems and seeds again with replacement (Efron 1979);
of a share, by its counts (Wilson 1927).

Legend: P problems, S seeds, R resamples.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

Interval = tuple[float, float]
Values = NDArray[np.float64]
BOUNDS = (0.025, 0.975)
NORMAL_95 = 1.959963984540054
"""The 97.5% quantile of the normal distribution."""


def percentiles(draws: Float[Values, " R"]) -> Interval:
    low, high = np.quantile(draws, BOUNDS)
    return float(low), float(high)


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval | None:
    """95% percentile interval of the mean over problems drawn again; None without values.

    A resample is one multinomial draw of how often each distinct value comes up: its cost does not grow with P.
    """
    if not values:
        return None
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return percentiles(drawn @ distinct / len(values))


def wilson(correct: int, judged: int) -> Interval | None:
    """Wilson's 95% interval of a share; None when nothing was judged."""
    if judged == 0:
        return None
    share, z2 = correct / judged, NORMAL_95**2
    centre = (share + z2 / (2 * judged)) / (1 + z2 / judged)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / judged + z2 / (4 * judged**2)) / (1 + z2 / judged)
    return (max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < judged else 1.0)


# --- two levels


@dataclass(frozen=True)
class Sample:
    """Outcomes of one quantity: a row of problems for each seed that it was measured with."""

    values: tuple[Values, ...]
    """[P] for each seed; NaN where a problem has no outcome."""
    problems: tuple[str, ...]
    """For each seed the name of its set of problems. Seeds that share one have the same problems in the same order."""

    @property
    def mean(self) -> float:
        """Over problems, then over seeds."""
        return float(np.mean([np.nanmean(row) for row in self.values]))


def two_level(sample: Sample, resamples: int = 4000) -> Float[Values, " R"]:
    """Draws of the mean: problems drawn again with replacement, and seeds drawn again, as both were drawn before.

        draw = mean over seeds of (mean over the problems drawn) + t sqrt(S / (S - 1)) mean over the seeds drawn of d_s

    with d_s what seed s deviates from the mean of all seeds. Seeds that share a set of problems share its draws. Two
    things keep a handful of seeds honest, whose plain bootstrap covers far less than it says: the root makes up for
    deviations from a mean of their own, and t (the root of S - 1 over a chi-square of S - 1 degrees of freedom) for a
    spread that is known from S values only, as Student's distribution does. d_s holds some of the noise of its
    problems, which is counted twice: intervals are a little wide where seeds differ by no more than that.

    Which problems and seeds are drawn depends on the names of the problem sets and the number of seeds alone, so that
    what was measured on the same problems with the same seeds is drawn together, and differences of draws are paired.
    """
    names = dict.fromkeys(sample.problems)
    of_set = [[row for row, own in zip(sample.values, sample.problems, strict=True) if own == name] for name in names]
    draws = sum(_drawn_sums(np.stack(rows, 1), name, resamples) for rows, name in zip(of_set, names, strict=True))
    seeds = len(sample.values)
    draws = np.asarray(draws) / seeds
    if seeds > 1:
        means = np.array([np.nanmean(row) for row in sample.values])
        draws = draws + _seed_weights(seeds, resamples) @ (means - means.mean())
    return draws


def _drawn_sums(rows: Float[Values, "P S"], problems: str, resamples: int) -> Float[Values, " R"]:
    """The sum over seeds of the means over the problems drawn."""
    weights, known = _problem_weights(problems, len(rows), resamples), ~np.isnan(rows)
    counted = len(rows) if known.all() else np.maximum(weights @ known.astype(np.float64), 1e-12)
    return ((weights @ np.where(known, rows, 0.0)) / counted).sum(1)


@functools.lru_cache(maxsize=16)
def _problem_weights(problems: str, count: int, resamples: int) -> Float[Values, "R P"]:
    """How often each problem comes up in each resample."""
    rng = np.random.default_rng([zlib.crc32(problems.encode()), count])
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


@functools.lru_cache(maxsize=16)
def _seed_weights(seeds: int, resamples: int) -> Float[Values, "R S"]:
    rng = np.random.default_rng([seeds, 1])
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    spread = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, size=(resamples, 1)))
    return counts * spread * np.sqrt(seeds / (seeds - 1))
