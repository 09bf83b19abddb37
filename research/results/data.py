"""Compute accuracy against the amount of training data, and how many problems an accuracy takes.

Between two measured points, accuracy is assumed to be linear in the logarithm of the number of problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mass.bootstrap import BOUNDS, Values
from research.results.estimates import Estimate, Series, estimate, series
from research.results.stored import GREEDY, Evaluation, Part


@dataclass(frozen=True)
class Curve:
    """Accuracy of one method against N numbers of training problems, in rising order."""

    method: str
    problems: tuple[int, ...]
    """[N] numbers of training problems."""
    estimates: tuple[Estimate, ...]
    """[N] accuracies."""
    draws: Float[Values, "N R"]
    """[N, R] resampled accuracies."""

    @property
    def means(self) -> Float[Values, " N"]:
        """[N] mean accuracies."""
        return np.array([e.mean for e in self.estimates])


@dataclass(frozen=True)
class Needed:
    """The number of training problems that an accuracy takes.

    Minus infinity if the fewest measured already reach it, infinity if the most do not.
    """

    problems: float
    interval: tuple[float, float]
    fewest: int
    most: int


def curves(part: Part, decoding: str = GREEDY) -> dict[str, Curve]:
    """Return the curve of each method that was trained on at least two numbers of problems."""
    found: dict[str, dict[int, dict[int, Evaluation]]] = {}
    for seeds in part.evaluations.values():
        for seed, evaluation in seeds.items():
            for method, row in evaluation.rows.items():
                problems = row.training.get("problems")
                if problems:
                    found.setdefault(method, {}).setdefault(int(problems), {}).setdefault(seed, evaluation)
    made = {method: _curve(method, by_size, decoding) for method, by_size in found.items()}
    return {method: curve for method, curve in made.items() if curve is not None}


def _curve(method: str, by_size: dict[int, dict[int, Evaluation]], decoding: str) -> Curve | None:
    points: list[tuple[int, Series]] = []
    for size in sorted(by_size):
        one = series(dict(sorted(by_size[size].items())), method, decoding)
        if one is not None:
            points.append((size, one))
    if len(points) < 2:
        return None
    sizes, some = tuple(size for size, _ in points), [one for _, one in points]
    return Curve(method, sizes, tuple(estimate(one) for one in some), np.stack([one.draws() for one in some]))


def needed(curve: Curve, mean: float, draws: Float[Values, " R"]) -> Needed:
    """Return how many problems the method needs for an accuracy that is given as a mean and as draws."""
    logs = np.log(np.array(curve.problems, dtype=np.float64))
    middle = crossing(logs, curve.means[:, None], np.array([mean]))[0]
    low, high = np.quantile(crossing(logs, curve.draws, draws), BOUNDS, method="nearest")
    return Needed(_problems(middle), (_problems(low), _problems(high)), curve.problems[0], curve.problems[-1])


def needed_as_many_as(curve: Curve, reference: Curve, problems: int) -> Needed:
    """Return how many problems the method needs for the accuracy that the reference has with `problems` of them."""
    place = reference.problems.index(problems)
    return needed(curve, reference.estimates[place].mean, reference.draws[place])


def crossing(at: Float[Values, " N"], values: Float[Values, "N R"], target: Float[Values, " R"]) -> Float[Values, " R"]:
    """Return where the line through (at, values) first reaches `target`.

    Minus infinity where it starts at or above the target, infinity where it never reaches it.
    """
    found = np.full(target.shape, np.inf)
    for n in range(len(at) - 1, 0, -1):
        before, after = values[n - 1], values[n]
        crossed = (before < target) & (after >= target)
        share = np.divide(target - before, after - before, out=np.zeros_like(target), where=crossed)
        found = np.where(crossed, at[n - 1] + share * (at[n] - at[n - 1]), found)
    return np.where(values[0] >= target, -np.inf, found)


def _problems(log: float) -> float:
    return float(log) if np.isinf(log) else float(np.exp(log))


def sizes_of(found: Sequence[Curve]) -> list[int]:
    """Return all numbers of problems, in rising order."""
    return sorted({size for curve in found for size in curve.problems})
