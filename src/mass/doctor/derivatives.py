"""A problem at a point -> relative errors of its derivatives against central differences.

1e-6 is asked for where about 1e-9 can be had (mass.inner.verification). A backward that is 1% off is found with digits
to spare.
"""

from __future__ import annotations

import torch

from mass.doctor.problem import Point, Problem
from mass.inner.verification import gradient_error, hessian_error, random_direction, slope_error


def first_derivative(problem: Problem, at: Point, seed: int) -> float:
    """Of the practice losses."""
    return gradient_error(problem.practice_loss, at.start, seed)


def second_derivative(problem: Problem, at: Point, seed: int) -> float:
    """Of the practice losses."""
    return hessian_error(problem.practice_loss, at.start, seed)


def meta_gradient(problem: Problem, at: Point, part: str, exact: Point, seed: int) -> float:
    """⟨dE/d part, u⟩ of the outer loss after adaptation; `part` is weights, start or rates."""
    u = random_direction(at.parts()[part], seed)

    def value(h: float) -> float:
        return float(problem.adapted_loss(at.moved(part, u, h)))

    with torch.no_grad():
        return slope_error(value, exact.parts()[part], u)
