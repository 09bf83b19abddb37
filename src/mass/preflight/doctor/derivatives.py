"""A problem at a point -> relative errors of its derivatives against central differences.

1e-6 is asked for where about 1e-9 can be had (mass.metagrad.check). A backward that is 1% off is found with digits
to spare.
"""

from __future__ import annotations

import functools
import math

import torch

from mass.metagrad import layerwise
from mass.metagrad.check import (
    best_slope,
    curvature_error,
    dot,
    gradient_and_product,
    hessian_product,
    moved,
    random_direction,
    relative_error,
    slope_error,
    usual_slope,
    value_and_gradient,
)
from mass.metagrad.objective import Sum
from mass.preflight.doctor.problem import Point, Problem
from mass.types import Params


class Around:
    """The practice losses around a point, along one random direction u. What two checks need is computed once."""

    def __init__(self, problem: Problem, at: Point, gradient: Params, seed: int) -> None:
        self.problem, self.at, self.gradient = problem, at.start, gradient
        self.u = random_direction(at.start, seed)
        self._seen: dict[float, tuple[float, Params]] = {}

    @functools.cached_property
    def product(self) -> Params:
        """H u."""
        return hessian_product(self.problem.practice_loss, self.at, self.u)

    def first_derivative(self) -> float:
        """Error of the gradient."""
        return slope_error(lambda h: self._moved(h)[0], self.gradient, self.u)

    def second_derivative(self) -> float:
        """Error of H u, the whole vector."""
        return curvature_error(lambda h: self._moved(h)[1], self.product)

    def with_economies(self, *, one_by_one: bool, checkpoint: bool) -> float:
        """What it changes of gradient and H u to take them an example at a time, or with checkpointed layers."""
        count = len(self.problem.practice)
        grads, products = Sum(), Sum()
        for index in torch.arange(count).split(1 if one_by_one else count):
            with layerwise.checkpointing(checkpoint):
                first, second = gradient_and_product(
                    functools.partial(self.problem.practice_loss, index=index), self.at, self.u
                )
            grads.add(first)
            products.add(second)
        return max(relative_error(grads.value, self.gradient), relative_error(products.value, self.product))

    def _moved(self, h: float) -> tuple[float, Params]:
        """Value and gradient at θ + h u."""
        if h not in self._seen:
            self._seen[h] = value_and_gradient(self.problem.practice_loss, moved(self.at, self.u, h))
        return self._seen[h]


def meta_gradient(problem: Problem, at: Point, part: str, exact: Point, seed: int) -> float:
    """Error of ⟨dE/d part, u⟩ of the outer loss after adaptation; `part` is weights, start or rates."""
    u = random_direction(at.parts()[part], seed)
    with torch.no_grad():
        return slope_error(lambda h: float(problem.adapted_loss(at.moved(part, u, h))), exact.parts()[part], u)


def meta_gradients_at_once(problem: Problem, at: Point, exact: Point, seed: int) -> float:
    """A bound on the errors of all parts, from one direction in which each has the same share of the slope.

    Where it is small each part is right. Where it is not, `meta_gradient` tells which is wrong.
    """
    parts, grads = at.parts(), exact.parts()
    directions = {part: random_direction(values, seed) for part, values in parts.items()}
    slopes = {part: float(dot(grads[part], u)) for part, u in directions.items()}
    sizes = {part: max(abs(slopes[part]), usual_slope(grads[part], u)) for part, u in directions.items()}
    share = min(sizes.values())
    if not 0 < share < math.inf:
        return math.inf

    def value(h: float) -> float:
        there = at
        for part, u in directions.items():
            there = there.moved(part, u, h * share / sizes[part])
        return float(problem.adapted_loss(there))

    with torch.no_grad():
        return best_slope(value, sum(slopes[part] * share / sizes[part] for part in parts), share)
