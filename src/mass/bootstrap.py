"""Compute 95% intervals: by resampling problems and seeds with replacement (Efron 1979), and for shares by Wilson's
formula (Wilson 1927).

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
    """Return the 2.5% and 97.5% quantiles of the draws."""
    low, high = np.quantile(draws, BOUNDS)
    return float(low), float(high)


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval | None:
    """Return the 95% percentile interval of the mean over resampled problems; None without values.

    A resample is one multinomial draw of how often each distinct value occurs: its cost does not grow with P.
    """
    if not values:
        return None
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return percentiles(drawn @ distinct / len(values))


def wilson(correct: int, judged: int) -> Interval | None:
    """Return Wilson's 95% interval of the share correct / judged; None when nothing was judged."""
    if judged == 0:
        return None
    share, z2 = correct / judged, NORMAL_95**2
    centre = (share + z2 / (2 * judged)) / (1 + z2 / judged)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / judged + z2 / (4 * judged**2)) / (1 + z2 / judged)
    # At 0 and at 1 the formula gives the bound exactly; rounding would leave it a little off.
    return (max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < judged else 1.0)


# --- two levels


@dataclass(frozen=True)
class Resample:
    """Measurements of one quantity: for each seed, one value per problem."""

    values: tuple[Values, ...]
    """One array [P] for each seed; NaN where a problem has no value."""
    problems: tuple[str, ...]
    """For each seed, the name of its set of problems. Seeds that share a set have the same problems in the same
    order."""

    @property
    def mean(self) -> float:
        """Mean over problems, then over seeds."""
        return float(np.mean([np.nanmean(row) for row in self.values]))


def two_level(sample: Resample, resamples: int = 4000) -> Float[Values, " R"]:
    """Return draws of the mean over problems and seeds: both are drawn again with replacement.

        draw = mean over seeds of (mean over the problems drawn) + t sqrt(S / (S - 1)) mean over the seeds drawn of d_s

    where d_s is the deviation of seed s from the mean of all seeds. Seeds that share a set of problems share its draws.

    With a handful of seeds the plain bootstrap covers far less than 95%. Two factors correct that. The root makes up
    for deviations being measured from the seeds' own mean. The factor t (the root of S - 1 over a chi-square variable
    with S - 1 degrees of freedom) accounts for a spread that is known from S values only, as Student's distribution
    does. d_s contains some of the noise of its problems, which is thereby counted twice: intervals are slightly wide
    where seeds differ by no more than that noise.

    Which problems and seeds are drawn depends only on the names of the problem sets and the number of seeds. So two
    quantities measured on the same problems with the same seeds get the same draws, and differences of draws are
    paired.
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
    """Return the sum over seeds of the means over the problems drawn."""
    weights, known = _problem_weights(problems, len(rows), resamples), ~np.isnan(rows)
    # Problems without a value do not count in the mean; the small bound avoids 0 / 0 where a draw has none.
    counted = len(rows) if known.all() else np.maximum(weights @ known.astype(np.float64), 1e-12)
    return ((weights @ np.where(known, rows, 0.0)) / counted).sum(1)


@functools.lru_cache(maxsize=16)
def _problem_weights(problems: str, count: int, resamples: int) -> Float[Values, "R P"]:
    """Return how often each problem occurs in each resample. Cached, since all methods share these draws."""
    rng = np.random.default_rng([zlib.crc32(problems.encode()), count])
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


@functools.lru_cache(maxsize=16)
def _seed_weights(seeds: int, resamples: int) -> Float[Values, "R S"]:
    """Return the weight of each seed's deviation in each resample, with both corrections of `two_level`."""
    rng = np.random.default_rng([seeds, 1])
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    spread = np.sqrt((seeds - 1) / rng.chisquare(seeds - 1, size=(resamples, 1)))
    return counts * spread * np.sqrt(seeds / (seeds - 1))
