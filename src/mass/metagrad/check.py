"""Compare first and second derivatives of losses at a point with central differences.

In float64 a central difference of step h has an error of h² (from the third derivative) and of 1e-16/h (from
rounding): with the best of three steps about 1e-9 remains. Losses that compute in float32 inside leave about 1e-4.
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
"""Steps h, relative to the norm of the parameters that are moved; the next is tried only where one leaves an error of
more than `GOOD`."""
GOOD = 1e-7
"""Relative error at which no further step is tried."""
DIRECTIONS = 2
"""Number of random directions; the largest of their errors counts."""


def check_losses(losses: Losses, params: Params, *, bound: float = 1e-3, seed: int = 0) -> tuple[float, float]:
    """Return the relative errors of the first and second derivative of Σ_i ℓ_i at `params`, along random directions.

    Parameters are converted to float64. The check finds what `adapt` cannot see by itself: a kernel whose backward is
    wrong or has no derivative, or a layer that is recomputed with other parameters. It costs about 20 gradients; once
    for a new kind of losses is enough. Where the model computes in float32 inside, errors of about 1e-4 are rounding.

    Raises ConfigError when one of the errors is above `bound`, or where the losses are not float64.
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
    """Return the relative error of ⟨∇f, u⟩ for a scalar function f, the largest over the directions u."""
    exact = gradient(function, at)

    def error(u: Params) -> float:
        return slope_error(lambda h: float(function(moved(at, u, h))), exact, u)

    with torch.no_grad():
        return max(error(random_direction(at, seed + i)) for i in range(DIRECTIONS))


def hessian_error(function: Callable[[Params], Tensor], at: Params, seed: int) -> float:
    """Return the relative error of the vector H u for a scalar function, the largest over the directions u."""

    def error(u: Params) -> float:
        exact = hessian_product(function, at, u)
        return curvature_error(lambda h: gradient(function, moved(at, u, h)), exact)

    return max(error(random_direction(at, seed + i)) for i in range(DIRECTIONS))


def slope_error(value: Callable[[float], float], exact: Params, u: Params) -> float:
    """Return the error of the slope ⟨exact, u⟩ against central differences of `value(h)`, the function h along u.

    The error is relative to the slope or, where it is smaller, to the size that slopes have along most directions.
    """
    slope = float(dot(exact, u))
    # A random direction may happen to be nearly flat; dividing by its own slope would report rounding as an error.
    return best_slope(value, slope, max(abs(slope), usual_slope(exact, u), 1e-300))


def usual_slope(exact: Params, u: Params) -> float:
    """Return the size that |⟨exact, u⟩| has for most directions of u's length: |exact| |u| / √(dimension)."""
    return float(norm(exact) * norm(u)) / math.sqrt(sum(g.numel() for g in exact.values()))


def best_slope(value: Callable[[float], float], slope: float, scale: float) -> float:
    """Return the distance of central differences of `value` from `slope`, in units of `scale`."""
    return _best(abs((value(h) - value(-h)) / (2 * h) - slope) / scale for h in STEPS_H)


def curvature_error(gradient_at: Callable[[float], Params], exact: Params) -> float:
    """Return the error of `exact` = H u against central differences of `gradient_at(h)`, the gradient h along u."""

    def difference(h: float) -> Params:
        above, below = gradient_at(h), gradient_at(-h)
        return {name: (above[name] - below[name]) / (2 * h) for name in above}

    return _best(relative_error(difference(h), exact) for h in STEPS_H)


def gradient(function: Callable[[Params], Tensor], at: Params) -> Params:
    """Return the gradient of a scalar function."""
    return value_and_gradient(function, at)[1]


def value_and_gradient(function: Callable[[Params], Tensor], at: Params) -> tuple[float, Params]:
    """Return a scalar function's value and gradient; zeros for parameters that it does not depend on."""
    params = leaves(at)
    with torch.enable_grad():
        value = function(params)
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), dict(zip(params, grads, strict=True))


def hessian_product(function: Callable[[Params], Tensor], at: Params, u: Params) -> Params:
    """Return H u of a scalar function by a double backward."""
    return gradient_and_product(function, at, u)[1]


def gradient_and_product(function: Callable[[Params], Tensor], at: Params, u: Params) -> tuple[Params, Params]:
    """Return the gradient and H u by a double backward, as the engine computes them."""
    params = leaves(at)
    with torch.enable_grad():
        value = function(params)
    grads = torch.autograd.grad(
        value, list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    first = {name: g.detach() for name, g in zip(params, grads, strict=True)}
    with torch.enable_grad():
        along = torch.stack([(g * u[name]).sum() for name, g in zip(params, grads, strict=True)]).sum()
    if not along.requires_grad:  # a linear function: its gradient is constant
        return first, {name: torch.zeros_like(p) for name, p in params.items()}
    products = torch.autograd.grad(along, list(params.values()), allow_unused=True, materialize_grads=True)
    return first, dict(zip(params, products, strict=True))


def random_direction(like: Params, seed: int) -> Params:
    """Return a random direction whose part in each tensor is about as long as that tensor of `like`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * p.norm() / p.numel() ** 0.5
        for name, p in like.items()
    }


def relative_error(got: Params, expected: Params) -> float:
    """Return ‖got - expected‖ / ‖expected‖ over all tensors; infinite where only `expected` is zero."""
    difference = {name: got[name].double() - value.double() for name, value in expected.items()}
    size = float(norm({name: value.double() for name, value in expected.items()}))
    error = float(norm(difference))
    return error / size if size else (0.0 if error == 0 else math.inf)


def dot(a: Params, b: Params) -> Tensor:
    """Return the scalar product over all tensors."""
    return functools.reduce(torch.add, [(a[name] * b[name]).sum() for name in a])


def norm(params: Params) -> Tensor:
    """Return the norm over all tensors."""
    return dot(params, params).sqrt()


def _best(errors: Iterable[float]) -> float:
    """Return the first error of at most `GOOD`, else the smallest; infinite where none is finite."""
    best = math.inf
    for error in errors:
        best = min(best, error) if math.isfinite(error) else best
        if best <= GOOD:
            break
    return best


def moved(params: Params, u: Params, by: float) -> Params:
    """Return the parameters moved by `by` times u."""
    return {name: p + by * u[name] for name, p in params.items()}
