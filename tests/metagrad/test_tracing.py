"""Recorded passes against those of autograd, and what cannot be recorded."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from inner_problem import (
    CASES,
    Adapt,
    Case,
    M,
    Params,
    inputs,
    meta_gradients,
    ours,
    reference,
    sequence_losses,
    tokens,
    toy_losses,
    toy_start,
    worst_error,
)
from mass.errors import ConfigError, ShapeError
from mass.metagrad import SGD, Traced, adapt, traced
from mass.metagrad.recording import Recording

STEPS = 3


@functools.cache
def recorded() -> Traced:
    """A small Llama's losses, recorded once for all tests."""
    return traced(sequence_losses, compiled=False)


def of_the_llama(case: Case, micro_batch: int | None = None, **options: Any) -> Adapt:
    def run(params: Params, weights: Tensor, lr: Tensor | dict[str, Tensor]) -> Params:
        losses = recorded().of(tokens()[:M])
        return adapt(losses, params, weights, case.optimizer(lr=lr), STEPS, micro_batch, **options)

    return run


@pytest.mark.parametrize("options", [{}, {"micro_batch": 1}, {"memory_gb": 1.0}, {"memory_gb": 1.0, "micro_batch": 1}])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_unroll(name: str, options: dict[str, Any]) -> None:
    case = CASES[name]
    expected = meta_gradients(reference(case, STEPS), *inputs(case, STEPS))
    assert worst_error(meta_gradients(of_the_llama(case, **options), *inputs(case, STEPS)), expected) < 1e-9


@pytest.mark.parametrize("mode", ["truncated(2)", "truncated(0)", "first_order", "finite_difference"])
def test_equals_the_same_mode_by_autograd(mode: str) -> None:
    case = CASES["sgd"]
    expected = meta_gradients(ours(case, STEPS, mode=mode), *inputs(case, STEPS))
    got = meta_gradients(of_the_llama(case, mode=mode), *inputs(case, STEPS))
    assert worst_error(got, expected) < (1e-6 if mode == "finite_difference" else 1e-11)


def test_some_kept_gradients_and_some_computed_again() -> None:
    case = CASES["momentum"]
    found = meta_gradients(of_the_llama(case, 1, memory_gb=0.0006), *inputs(case, STEPS))
    assert worst_error(found, meta_gradients(ours(case, STEPS), *inputs(case, STEPS))) < 1e-11


# ------------------------------------------------------------------------------- a toy, and how often it is recorded


ROWS = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9]], dtype=torch.float64)
GOALS = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)


def toy(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ params["a"]).tanh() * params["b"] - y) ** 2


def toy_gradients(losses: Any, steps: int = 2, **options: Any) -> tuple[Tensor, ...]:
    params = {name: p.requires_grad_() for name, p in toy_start().items()}
    weights = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    adapted = adapt(losses, params, weights, SGD(lr=0.3), steps, **options)
    return torch.autograd.grad(sum(p.sin().sum() for p in adapted.values()), [weights, *params.values()])


def test_other_rows_of_the_same_shape_run_what_was_recorded() -> None:
    calls: list[int] = []

    def counted(params: Params, x: Tensor, y: Tensor) -> Tensor:
        calls.append(len(x))
        return toy(params, x, y)

    losses = traced(counted, compiled=False)
    toy_gradients(losses.of(ROWS, GOALS))
    before = len(calls)
    found = toy_gradients(losses.of(ROWS + 1, GOALS - 1), steps=7)
    assert len(calls) == before
    expected = toy_gradients(lambda p, _: toy(p, ROWS + 1, GOALS - 1), steps=7)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    toy_gradients(losses.of(ROWS, GOALS), micro_batch=1)
    assert len(calls) > before


def test_it_is_losses_like_any() -> None:
    losses = traced(toy, compiled=False).of(ROWS, GOALS)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(losses(toy_start(), index), toy_losses(toy_start(), index))
    torch.testing.assert_close(losses(toy_start()), toy_losses(toy_start()))


@pytest.mark.parametrize("memory_gb", [None, 1.0])
def test_a_compiled_pass_computes_the_same(memory_gb: float | None) -> None:
    losses = traced(toy, backend="aot_eager").of(ROWS, GOALS)
    expected = toy_gradients(toy_losses)
    for got, wanted in zip(toy_gradients(losses, memory_gb=memory_gb), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.slow
def test_the_default_compiler_computes_the_same() -> None:
    losses = traced(toy).of(ROWS, GOALS)
    for got, wanted in zip(toy_gradients(losses), toy_gradients(toy_losses), strict=True):
        torch.testing.assert_close(got, wanted)


def test_in_place_operations_and_losses_without_curvature() -> None:
    def linear(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return x.mul(2).add_(1.0) @ params["a"] * y + params["b"]

    expected = toy_gradients(lambda p, _: linear(p, ROWS, GOALS))
    for got, wanted in zip(toy_gradients(traced(linear, compiled=False).of(ROWS, GOALS)), expected, strict=True):
        torch.testing.assert_close(got, wanted)


# ------------------------------------------------------------------------------- what cannot be


def test_losses_that_look_at_values_are_refused() -> None:
    def branching(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return toy(params, x, y) * (2.0 if float(x.sum()) > 0 else 1.0)

    with pytest.raises(ConfigError, match="looks at shapes and not at values"):
        toy_gradients(traced(branching, compiled=False).of(ROWS, GOALS))


def test_losses_that_differ_from_call_to_call_are_refused() -> None:
    calls: list[int] = []

    def drifting(params: Params, x: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return toy(params, x, y) * (1.0 + 0.1 * len(calls))

    with pytest.raises(ConfigError, match="depend on its arguments alone"):
        toy_gradients(traced(drifting, compiled=False).of(ROWS, GOALS))


def test_a_compiler_that_computes_something_else_is_refused() -> None:
    def wrong(module: torch.fx.GraphModule, _: Any) -> Any:
        return lambda *tensors: tuple(1.01 * t for t in module(*tensors))

    with pytest.raises(ConfigError, match="compiled=False"):
        toy_gradients(traced(toy, backend=wrong).of(ROWS, GOALS))


def test_a_kernel_without_a_second_derivative_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:  # pyright: ignore
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(_: Any, g: Tensor) -> Tensor:  # pyright: ignore
            return g

    losses = traced(lambda p, x, y: Once.apply(toy(p, x, y)), compiled=False)  # pyright: ignore
    with pytest.raises(ConfigError, match="differentiated twice"):
        toy_gradients(losses.of(ROWS, GOALS))


@pytest.mark.parametrize("rows", [(), (ROWS, GOALS[:2]), (ROWS, torch.tensor(1.0))])
def test_rows_that_do_not_belong_together_are_refused(rows: tuple[Tensor, ...]) -> None:
    with pytest.raises(ShapeError, match="the same number of examples"):
        traced(toy).of(*rows)


def test_options_of_a_compiler_that_is_not_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="backend is given beside compiled=False"):
        traced(toy, compiled=False, backend="aot_eager")


@pytest.mark.parametrize("wrong", ["finish", "begin"])
def test_a_pass_with_the_wrong_operations_would_be_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above do run what was recorded."""
    right = getattr(Recording, wrong)

    def changed(self: Recording, *arguments: Any) -> Any:
        first, *rest = right(self, *arguments)
        return {name: 1.01 * p for name, p in first.items()}, *rest

    monkeypatch.setattr(Recording, wrong, changed)
    found = toy_gradients(traced(toy, compiled=False).of(ROWS, GOALS), memory_gb=1.0)
    assert not torch.allclose(found[0], toy_gradients(toy_losses)[0])
