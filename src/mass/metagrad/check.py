"""losses, a point -> how far their first and second derivatives are from central differences.

In float64 a central difference of step h is off by h² (the third derivative) and by 1e-16/h (rounding): with the best
of three steps about 1e-9 remains. Losses that pass through float32 inside leave about 1e-4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mass.errors import ConfigError
from mass.metagrad.objective import Losses, leaves
from mass.types import Params

STEPS_H = (1e-4, 1e-3, 1e-5)
"""Relative to the norm of what is moved; the next is tried where one leaves more than GOOD."""
GOOD = 1e-7
DIRECTIONS = 2


def check_losses(losses: Losses, params: Params, *, bound: float = 1e-3, seed: int = 0) -> tuple[float, float]:
    """Relative errors of the first and the second derivative of Σ_i ℓ_i at `params`, in float64, along random
    directions.

    What `adapt` cannot see by itself is seen here: a kernel whose backward is wrong or has no derivative, a layer that
    is recomputed with other parameters. Costs about 20 gradients; once for a new kind of losses is enough. Where the
    model computes in float32 inside, errors of about 1e-4 are rounding.

    Raises ConfigError when one of them is above `bound`.
    """
    params = {name: p.detach().double() for name, p in params.items()}

    def total(at: Params) -> Tensor:
        values = losses(at, None)
        if values.dtype != torch.float64:
            raise ConfigError(
                f"losses gave {values.dtype} for float64 parameters, expected float64: central differences need its "
                'digits; load the model with dtype="float64" for this check'
            )
        return values.sum()

    first, second = gradient_error(total, params, seed), hessian_error(total, params, seed)
    for order, error in (("gradient", first), ("second derivative", second)):
        if not error <= bound:
            raise ConfigError(
                f"losses have a {order} that is {error:.1%} off central differences, expected at most {bound:.1%}; "
                "replace kernels and checkpointing that differentiate otherwise by plain PyTorch or "
                "mass.metagrad.layerwise"
            )
    return first, second


def gradient_error(function: Callable[[Params], Tensor], at: Params, seed: int) -> float:
    """⟨∇f, u⟩ of a scalar function; the worst of the directions."""
    exact = gradient(function, at)

    def error(u: Params) -> float:
        return slope_error(lambda h: float(function(moved(at, u, h))), exact, u)

    with torch.no_grad():
        return max(error(random_direction(at, seed + i)) for i in range(DIRECTIONS))


def hessian_error(function: Callable[[Params], Tensor], at: Params, seed: int) -> float:
    """H u of a scalar function, the whole vector; the worst of the directions."""

    def error(u: Params) -> float:
        exact = hessian_product(function, at, u)
        return curvature_error(lambda h: gradient(function, moved(at, u, h)), exact)

    return max(error(random_direction(at, seed + i)) for i in range(DIRECTIONS))


def slope_error(value: Callable[[float], float], exact: Params, u: Params) -> float:
    """Error of the slope ⟨exact, u⟩ against central differences of `value`, which moves by h along u.

    Relative to the slope, or to what it is along most directions where this one happens to be flat.
    """
    slope = float(dot(exact, u))
    return best_slope(value, slope, max(abs(slope), usual_slope(exact, u), 1e-300))


def usual_slope(exact: Params, u: Params) -> float:
    """|⟨exact, u⟩| as it is along most directions of u's length."""
    return float(norm(exact) * norm(u)) / math.sqrt(sum(g.numel() for g in exact.values()))


def best_slope(value: Callable[[float], float], slope: float, scale: float) -> float:
    """How far central differences of `value` are from `slope`, in units of `scale`."""
    return _best(abs((value(h) - value(-h)) / (2 * h) - slope) / scale for h in STEPS_H)


def curvature_error(gradient_at: Callable[[float], Params], exact: Params) -> float:
    """Error of `exact` = H u against central differences of the gradient, which moves by h along u."""

    def difference(h: float) -> Params:
        above, below = gradient_at(h), gradient_at(-h)
        return {name: (above[name] - below[name]) / (2 * h) for name in above}

    return _best(relative_error(difference(h), exact) for h in STEPS_H)


def gradient(function: Callable[[Params], Tensor], at: Params) -> Params:
    return value_and_gradient(function, at)[1]


def value_and_gradient(function: Callable[[Params], Tensor], at: Params) -> tuple[float, Params]:
    params = leaves(at)
    with torch.enable_grad():
        value = function(params)
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), dict(zip(params, grads, strict=True))


def hessian_product(function: Callable[[Params], Tensor], at: Params, u: Params) -> Params:
    return gradient_and_product(function, at, u)[1]


def gradient_and_product(function: Callable[[Params], Tensor], at: Params, u: Params) -> tuple[Params, Params]:
    """The gradient and H u by a double backward, as the engine takes it."""
    params = leaves(at)
    with torch.enable_grad():
        value = function(params)
    grads = torch.autograd.grad(
        value, list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    first = {name: g.detach() for name, g in zip(params, grads, strict=True)}
    with torch.enable_grad():
        along = torch.stack([(g * u[name]).sum() for name, g in zip(params, grads, strict=True)]).sum()
    if not along.requires_grad:
        return first, {name: torch.zeros_like(p) for name, p in params.items()}
    products = torch.autograd.grad(along, list(params.values()), allow_unused=True, materialize_grads=True)
    return first, dict(zip(params, products, strict=True))


def random_direction(like: Params, seed: int) -> Params:
    """As long as `like`, spread over each tensor in proportion to its size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * p.norm() / p.numel() ** 0.5
        for name, p in like.items()
    }


def relative_error(got: Params, expected: Params) -> float:
    difference = {name: got[name].double() - value.double() for name, value in expected.items()}
    size = float(norm({name: value.double() for name, value in expected.items()}))
    error = float(norm(difference))
    return error / size if size else (0.0 if error == 0 else math.inf)


def dot(a: Params, b: Params) -> Tensor:
    return functools.reduce(torch.add, [(a[name] * b[name]).sum() for name in a])


def norm(params: Params) -> Tensor:
    return dot(params, params).sqrt()


def _best(errors: Iterable[float]) -> float:
    """The smallest, or the first that is good; infinite where none is a number."""
    best = math.inf
    for error in errors:
        best = min(best, error) if math.isfinite(error) else best
        if best <= GOOD:
            break
    return best


def moved(params: Params, u: Params, by: float) -> Params:
    return {name: p + by * u[name] for name, p in params.items()}
