"""Measure the error of a narrow model's meta-gradients against float64, and how much of it rounding explains.

The part that rounding explains is measured, not derived. The float64 model is run with the output of each of its
innermost modules rounded to the narrow format, in the forward pass, in the backward pass and in the backward of that;
matrix products and softmax are computed in the narrow format, including those of eager attention. The sums inside them
matter: where a model's states, queries and keys are large (the biases of Qwen 2.5 give attention scores above a
thousand), the part of a score that float32 rounds off changes its exponential noticeably. Real kernels round in more
places; up to five times this error was seen, and eight times is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mass.metagrad.check import relative_error
from mass.preflight.doctor.problem import BilevelProblem, Point

ALLOWANCE = 8.0
COARSEST = 0.3
"""Error above which meta-gradients are not worth following; their cosine with the exact ones is then about 0.95."""
FINEST = 1e-4
"""Errors up to here are not examined further: sums in float32 matrix products alone can reach it."""


def error_of(narrow: BilevelProblem, at: Point, exact: Point) -> float:
    """Return the larger relative error of the meta-gradients of weights and start in the precision of `narrow`."""
    point = Point(at.weights, {name: p.to(narrow.lm.adapter_dtype) for name, p in at.start.items()}, at.rates)
    return _worse(narrow.meta_gradients(point), exact)


def explained(wide: BilevelProblem, at: Point, exact: Point, dtype: torch.dtype) -> float:
    """Return the error that rounding to `dtype` alone makes, on a model with eager attention, whose products are
    plain."""
    start = {name: p.to(dtype).double() for name, p in at.start.items()}
    with _rounded(wide.lm.model, dtype):
        return _worse(wide.meta_gradients(Point(at.weights, start, at.rates)), exact)


def bound_of(explained: float) -> float:
    """Return the error that is allowed, given the part that rounding explains."""
    return min(COARSEST, max(FINEST, ALLOWANCE * explained)) if math.isfinite(explained) else COARSEST


def _worse(got: Point, exact: Point) -> float:
    return max(relative_error(got.parts()[part], exact.parts()[part]) for part in ("weights", "start"))


@contextmanager
def _rounded(model: nn.Module, dtype: torch.dtype) -> Generator[None, None, None]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG001
        return _round(output, dtype) if isinstance(output, Tensor) and output.is_floating_point() else output

    innermost = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook) for module in innermost]
    try:
        with _NarrowProducts(dtype):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _NarrowProducts(TorchFunctionMode):
    """Computes matrix products and softmax in the narrow format, so that their inner sums are rounded and not only
    their results."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        narrow = [value.to(self._dtype) if isinstance(value, Tensor) else value for value in args]
        options = {name: value for name, value in (kwargs or {}).items() if name != "dtype"}
        return func(*narrow, **options).to(args[0].dtype)


_PRODUCTS = {
    nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.softmax,
    Tensor.softmax, nn.functional.softmax,
}  # fmt: skip


class _Round(torch.autograd.Function):
    """Rounds to `dtype` and back. Its derivative is that of the identity, except that the cotangent is rounded too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _round(cotangent, ctx.dtype), None


def _round(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded: Any = _Round.apply(x, dtype)
    return rounded
