"""Measure practice from stored analyses: what it is like before and after meta-training, and what it is worth.

Values are per problem, so that they are averaged and resampled like accuracies. Legend: P problems, m examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mass.bootstrap import Resample, Values, percentiles, two_level
from research.results.estimates import Estimate

BEFORE, AFTER = "before", "after"
FAR = 0.1
"""A drift above this is counted as far, in nats per token."""
ELSEWHERE = ("drift", "far adrift", "elsewhere")
"""The measures of what the adaptation does on problems of other subjects."""
LEAST_RANKED = 3
"""Least number of examples of a problem for a rank correlation."""


@dataclass(frozen=True)
class Measure:
    """One measure of practice."""

    name: str
    unit: str
    """share, of 1; levels; characters; correlation; nats; points, of 1; divergence, in nats per token; gain, of 1."""
    meaning: str


MEASURES = (
    Measure("valid", "share", "of the examples written, those that can be used"),
    Measure("recognised", "share", "of the valid ones, problems of the source"),
    Measure("correct", "share", "of the valid ones, those whose solution is right"),
    Measure("same kind", "share", "of the valid ones, those of the target's kind"),
    Measure("same subject", "share", "of the valid ones, those of the target's subject"),
    Measure("level", "levels", "of the recognised ones, their level minus the target's"),
    Measure("copies", "share", "of the valid ones, those that repeat the target's text"),
    Measure("near-copies", "share", "of the valid ones, those at most two characters from it"),
    Measure("distance", "share", "edit distance to the target over the length of the longer text"),
    Measure("effect", "nats", "rise of the gold solution's mean log-probability after practice on one example alone"),
    Measure("helpful", "share", "of the valid ones, those with a positive effect"),
    Measure(
        "weight and correctness", "points", "mean weight of right examples minus that of wrong ones, of m times it"
    ),
    Measure("weight and effect", "correlation", "Spearman, among the examples of a problem"),
    Measure("drift", "divergence", "of the adapted model from the unadapted one on problems of other subjects"),
    Measure("far adrift", "share", f"of the problems, those with a drift above {FAR:g} nats per token"),
    Measure("elsewhere", "gain", "answers to problems of other subjects that are right, adapted minus unadapted"),
)


def table_of(stored: Mapping[str, Any], when: str, column: str) -> Float[Values, "P m"]:
    """Return a column of the examples; NaN where there is no value."""
    return _numbers(stored[when]["columns"][column])


def values_of(stored: Mapping[str, Any], when: str, measure: str) -> Float[Values, "P m"]:
    """Return a measure of each example; NaN where it has none."""
    if measure in ("copies", "near-copies"):
        return _where_known(table_of(stored, when, "distance"), 0 if measure == "copies" else stored["near_copy"])
    if measure == "helpful":
        return 1 - _where_known(table_of(stored, when, "effect"), 0)
    names = {"same kind": "same_kind", "same subject": "same_subject", "distance": "relative_distance"}
    return table_of(stored, when, names.get(measure, measure))


def _where_known(values: Values, limit: float) -> Values:
    """Return 1 where a value is at most the limit, 0 where it is more, NaN where there is none."""
    return np.where(np.isnan(values), np.nan, values <= limit)


def per_problem(stored: Mapping[str, Any], when: str, measure: str) -> Float[Values, " P"]:
    """Return [P] values of a measure, NaN where a problem has none."""
    if measure in ELSEWHERE:
        return _elsewhere(stored[when], measure)
    valid = table_of(stored, when, "valid") == 1
    if measure == "valid":
        return valid.mean(1)
    if measure.startswith("weight and "):
        weight, other = table_of(stored, when, "weight"), measure.removeprefix("weight and ")
        if other == "correctness":
            return _contrast(weight, table_of(stored, when, "correct"), valid)
        rows = zip(weight, table_of(stored, when, other), valid, strict=True)
        return np.array([spearman(w[ok], e[ok]) for w, e, ok in rows])
    return _mean(values_of(stored, when, measure), valid)


def _elsewhere(found: Mapping[str, Any], measure: str) -> Float[Values, " P"]:
    """Return [P] values of a measure on other problems; NaN where these were not examined."""
    if "drift" not in found:
        return np.full(len(found["columns"]["valid"]), np.nan)
    if measure != "elsewhere":
        drift = _numbers(found["drift"])
        return drift if measure == "drift" else (drift > FAR).astype(np.float64)
    return (_numbers(found["others_adapted"]) - _numbers(found["others_unadapted"])).mean(1)


def _numbers(values: Any) -> Values:
    """Return an array, with NaN for null."""
    return np.array(values, dtype=np.float64)


def measured(by_seed: Mapping[int, Mapping[str, Any]], when: str, measure: str) -> Estimate | None:
    """Return the mean over problems and seeds; None where no problem has a value."""
    rows = {seed: per_problem(stored, when, measure) for seed, stored in by_seed.items() if when in stored}
    rows = {seed: row for seed, row in rows.items() if not np.isnan(row).all()}
    if not rows:
        return None
    names = tuple(str(by_seed[seed]["tasks"]["hash"]) for seed in rows)
    sample = Resample(tuple(rows.values()), names)
    low, high = percentiles(two_level(sample))
    return Estimate(round(sample.mean, 9), (round(low, 9), round(high, 9)), len(rows), len(sample.values[0]))


def by_rank(by_seed: Mapping[int, Mapping[str, Any]], measure: str) -> list[Estimate | None]:
    """Return the mean of a measure for the examples with the largest weight, the second largest, and so on."""
    ranked: dict[int, Values] = {}
    for seed, stored in by_seed.items():
        weight, values = table_of(stored, AFTER, "weight"), values_of(stored, AFTER, measure)
        usable = (table_of(stored, AFTER, "valid") == 1) & ~np.isnan(values)
        order = np.argsort(np.where(usable, -weight, np.inf), axis=1, kind="stable")
        ranked[seed] = np.take_along_axis(np.where(usable, values, np.nan), order, axis=1)
    count = max((rows.shape[1] for rows in ranked.values()), default=0)
    names = tuple(str(stored["tasks"]["hash"]) for stored in by_seed.values())
    return [_ranked(list(ranked.values()), names, rank) for rank in range(count)]


def _ranked(rows: list[Values], names: tuple[str, ...], rank: int) -> Estimate | None:
    columns = [row[:, rank] for row in rows if row.shape[1] > rank]
    if len(columns) < len(rows) or any(np.isnan(column).all() for column in columns):
        return None
    sample = Resample(tuple(columns), names)
    low, high = percentiles(two_level(sample))
    return Estimate(round(sample.mean, 9), (round(low, 9), round(high, 9)), len(columns), len(columns[0]))


def spearman(one: Values, other: Values) -> float:
    """Return the rank correlation (Spearman 1904), with mean ranks for ties; NaN for too few values, or if all are
    equal."""
    known = ~(np.isnan(one) | np.isnan(other))
    a, b = _ranks(one[known]), _ranks(other[known])
    if len(a) < LEAST_RANKED or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Values) -> Values:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _mean(values: Values, valid: Any) -> Values:
    """Return the mean over the valid examples of each problem that have a value."""
    usable = valid & ~np.isnan(values)
    counts = usable.sum(1)
    sums = np.where(usable, values, 0.0).sum(1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _contrast(weight: Values, correct: Values, valid: Any) -> Values:
    """Return m times (mean weight of right examples - mean weight of wrong ones); NaN where a problem lacks either."""
    right, wrong = _mean(weight, valid & (correct == 1)), _mean(weight, valid & (correct == 0))
    return (right - wrong) * weight.shape[1]
