"""Estimate means with 95% intervals over seeds and problems from stored outcomes (`mass.bootstrap.two_level`).

Differences and ratios are paired: over the same problems, and over the same seeds where both methods were run with
them. A method without training that was run with one seed is paired with every seed of the other method, if the
problems are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mass.bootstrap import Interval, Resample, Values, percentiles, two_level
from research.results.stored import GREEDY, Evaluation


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    mean: float
    interval: Interval
    seeds: int
    problems: int
    """Number of problems of one seed."""

    @property
    def standing(self) -> int:
        """1 when the interval lies above 0, -1 when below, 0 when it contains 0."""
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Series:
    """One quantity of one method, by seed."""

    outcomes: dict[int, Values]
    """Seed -> [P] outcomes."""
    problems: dict[int, str]
    """Seed -> name of the set of problems."""
    trained: bool
    """True if the method was trained, so that its seeds differ in more than sampling."""

    def sample(self) -> Resample:
        """Return the outcomes for resampling."""
        return Resample(tuple(self.outcomes.values()), tuple(self.problems.values()))

    def draws(self, resamples: int = 4000) -> Values:
        """Return draws of the mean."""
        return two_level(self.sample(), resamples)


@dataclass(frozen=True)
class Some:
    """A choice of problems; None: all."""

    subject: str | None = None
    level: int | None = None


ALL = Some()


def series(
    evaluations: Mapping[int, Evaluation], method: str, decoding: str = GREEDY, some: Some = ALL
) -> Series | None:
    """Return the outcomes of a method in the evaluations that have it, by seed; None where none has."""
    outcomes: dict[int, Values] = {}
    problems: dict[int, str] = {}
    trained = False
    for seed, evaluation in evaluations.items():
        row = evaluation.rows.get(method)
        if row is None or decoding not in row.outcomes:
            continue
        chosen = _chosen(evaluation, some)
        values = row.outcomes[decoding][chosen]
        if np.isnan(values).all():
            continue
        outcomes[seed], trained = values, trained or bool(row.training)
        problems[seed] = f"{evaluation.tasks['hash']}{some.subject or ''}{some.level or ''}"
    return Series(outcomes, problems, trained) if outcomes else None


def _chosen(evaluation: Evaluation, some: Some) -> NDArray[np.bool_]:
    """Return a mask [P] of the chosen problems."""
    chosen = np.ones(len(evaluation.levels), dtype=bool)
    if some.subject is not None:
        chosen &= np.array([subject == some.subject for subject in evaluation.subjects], dtype=bool)
    if some.level is not None:
        chosen &= np.array([level == some.level for level in evaluation.levels], dtype=bool)
    return chosen


def estimate(one: Series) -> Estimate:
    """Return the mean accuracy."""
    sample = one.sample()
    return _estimate(sample.mean, np.clip(one.draws(), 0, 1), sample)


def difference(one: Series, other: Series) -> Estimate | None:
    """Return the mean accuracy of the first minus that of the second; None when they have no seeds and problems in
    common."""
    pair = paired(one, other)
    if pair is None:
        return None
    (a, b), names = pair, tuple(pair[0].problems.values())
    sample = Resample(tuple(a.outcomes[s] - b.outcomes[s] for s in a.outcomes), names)
    return _estimate(sample.mean, two_level(sample), sample)


def ratio(one: Series, other: Series) -> Estimate | None:
    """Return the mean accuracy of the first divided by that of the second; None as for `difference`, or where the
    second is 0."""
    pair = paired(one, other)
    if pair is None or pair[1].sample().mean == 0:
        return None
    a, b = pair
    draws = a.draws() / np.maximum(b.draws(), 1e-9)
    return _estimate(a.sample().mean / b.sample().mean, draws, a.sample())


def paired(one: Series, other: Series) -> tuple[Series, Series] | None:
    """Return both with the same seeds on the same problems, or None."""
    one, other = _beside(one, other), _beside(other, one)
    seeds = [s for s in one.outcomes if s in other.outcomes and one.problems[s] == other.problems[s]]
    return (_of(one, seeds), _of(other, seeds)) if seeds else None


def _beside(one: Series, other: Series) -> Series:
    """Repeat an untrained method's single run for each seed of the other method on the same problems."""
    if one.trained or len(one.outcomes) != 1 or len(other.outcomes) == 1:
        return one
    ((seed, values),) = one.outcomes.items()
    seeds = [s for s, name in other.problems.items() if name == one.problems[seed]]
    return Series(dict.fromkeys(seeds, values), dict.fromkeys(seeds, one.problems[seed]), False) if seeds else one


def _of(one: Series, seeds: Sequence[int]) -> Series:
    return Series({s: one.outcomes[s] for s in seeds}, {s: one.problems[s] for s in seeds}, one.trained)


def _estimate(mean: float, draws: Values, sample: Resample) -> Estimate:
    """Return an estimate, rounded far below the digits that are shown, so that different machines give the same
    file."""
    low, high = percentiles(draws)
    return Estimate(round(mean, 9), (round(low, 9), round(high, 9)), len(sample.values), len(sample.values[0]))
