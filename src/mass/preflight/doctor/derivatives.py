"""Compare the derivatives of a problem at a point with central differences, and return relative errors.

The bound is 1e-6, where about 1e-9 can be reached (mass.metagrad.check). A backward pass that is 1% wrong is found with
several digits to spare.
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
from mass.preflight.doctor.problem import BilevelProblem, Point
from mass.types import Params


class Around:
    """The practice losses around a point, along one random direction u. Values that two checks need are computed
    once."""

    def __init__(self, problem: BilevelProblem, at: Point, gradient: Params, seed: int) -> None:
        self.problem, self.at, self.gradient = problem, at.start, gradient
        self.u = random_direction(at.start, seed)
        self._seen: dict[float, tuple[float, Params]] = {}

    @functools.cached_property
    def product(self) -> Params:
        """The Hessian-vector product H u."""
        return hessian_product(self.problem.practice_loss, self.at, self.u)

    def first_derivative(self) -> float:
        """Return the relative error of the gradient."""
        return slope_error(lambda h: self._moved(h)[0], self.gradient, self.u)

    def second_derivative(self) -> float:
        """Return the relative error of H u, as a whole vector."""
        return curvature_error(lambda h: self._moved(h)[1], self.product)

    def with_economies(self, *, one_by_one: bool, checkpoint: bool) -> float:
        """Return the relative change of gradient and H u when they are computed one example at a time, or with
        checkpointed layers."""
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
        """Return value and gradient at θ + h u."""
        if h not in self._seen:
            self._seen[h] = value_and_gradient(self.problem.practice_loss, moved(self.at, self.u, h))
        return self._seen[h]


def meta_gradient(problem: BilevelProblem, at: Point, part: str, exact: Point, seed: int) -> float:
    """Return the error of ⟨dE/d part, u⟩ for the outer loss E after adaptation; `part` is weights, start or rates."""
    u = random_direction(at.parts()[part], seed)
    with torch.no_grad():
        return slope_error(lambda h: float(problem.adapted_loss(at.moved(part, u, h))), exact.parts()[part], u)


def meta_gradients_at_once(problem: BilevelProblem, at: Point, exact: Point, seed: int) -> float:
    """Return a bound on the errors of all parts, from one direction in which each part has the same share of the slope.

    If it is small, every part is right. If not, `meta_gradient` tells which part is wrong.
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
