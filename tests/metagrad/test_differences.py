"""`finite_difference`: close to exact, for what has no second derivative too, and for each adapter of a stack."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from inner_problem import (
    CASES,
    CLIP,
    Params,
    clipped,
    inputs,
    make_weights,
    meta_gradients,
    ours,
    sines,
    toy_losses,
    toy_start,
    worst_error,
)
from mass.errors import ConfigError
from mass.metagrad import SGD, AdamW, adapt, differences
from mass.metagrad.layerwise import checkpoint
from mass.metagrad.objective import Objective, autocast_state
from stack_problem import B, N, in_a_stack, one_by_one, stack_inputs, stack_loss, stack_losses, stack_start

CLOSE = 1e-6
"""Of exact, in float64; measured 1e-7 under AdamW, less elsewhere."""


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", CASES)
def test_finite_differences_are_close_to_exact(name: str, micro_batch: int | None) -> None:
    case = clipped(CASES[name], CLIP)
    given = inputs(case, 3)
    exact = meta_gradients(ours(case, 3), *given)
    assert 0 < worst_error(meta_gradients(ours(case, 3, micro_batch, mode="finite_difference"), *given), exact) < CLOSE


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * bar


def cubes(power: Callable[[Tensor], Tensor], params: Params, index: Tensor | None) -> Tensor:
    return toy_losses({name: power(p) for name, p in params.items()}, index)


def attention(backend: SDPBackend, params: Params, index: Tensor | None) -> Tensor:
    x = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(1)).double()
    x = x if index is None else x[index]
    with sdpa_kernel(backend):
        mixed = scaled_dot_product_attention(x @ params["q"], x, x @ params["v"], is_causal=True)
    return mixed.square().mean((1, 2, 3))


def attention_start() -> Params:
    generator = torch.Generator().manual_seed(2)
    return {name: 0.5 * torch.randn(8, 8, generator=generator).double() for name in "qv"}


ONCE = {
    "custom function": (functools.partial(cubes, Cube.apply), functools.partial(cubes, lambda x: x**3), toy_start()),
    "fused attention": (
        functools.partial(attention, SDPBackend.FLASH_ATTENTION),
        functools.partial(attention, SDPBackend.MATH),
        attention_start(),
    ),
}


def through(losses: Any, start: Params, mode: str) -> Params:
    def run(params: Params, w: Tensor, lr: Any) -> Params:
        return adapt(losses, params, w, SGD(lr=lr, momentum=0.5), 3, 2, mode=mode)

    return meta_gradients(run, start, make_weights()[:3] * 3, torch.tensor(0.2, dtype=torch.float64), sines)


@pytest.mark.parametrize("name", ONCE)
def test_finite_differences_need_no_second_derivative(name: str) -> None:
    once, twice, start = ONCE[name]
    exact = through(twice, start, "exact")
    assert worst_error(through(once, start, "finite_difference"), exact) < CLOSE


@pytest.mark.parametrize("name", ONCE)
def test_losses_without_a_second_derivative_raise(name: str) -> None:
    """A wrong number instead: torch leaves the node that would raise out of a gradient for chosen inputs."""
    once, _, start = ONCE[name]
    with pytest.raises((ConfigError, RuntimeError)):
        through(once, start, "exact")


def test_checkpointed_layers_without_a_second_derivative_raise() -> None:
    def losses(params: Params, index: Tensor | None) -> Tensor:
        a, b = checkpoint(lambda a, b: (Cube.apply(a), Cube.apply(b)), params["a"], params["b"])
        return toy_losses({"a": a, "b": b}, index)

    with pytest.raises((ConfigError, RuntimeError)):
        through(losses, toy_start(), "exact")


@pytest.mark.parametrize("name", CASES)
def test_finite_differences_in_a_zero_direction(name: str) -> None:
    """An outer loss that does not depend on θ_K: u = 0 at each step."""
    case = CASES[name]

    def nothing(params: Params) -> Tensor:
        return sum(0.0 * p.sum() for p in params.values())

    got = meta_gradients(ours(case, 2, mode="finite_difference"), *inputs(case, 2), nothing)
    assert not any(value.any() for name, value in got.items() if not name.startswith("adapted "))


def test_finite_differences_do_not_hide_what_is_not_finite() -> None:
    """AdamW at g = 0 without eps_root: the exact meta-gradient is NaN, and so must this be."""
    start = {**toy_start(), "b": torch.tensor(0.0, dtype=torch.float64)}

    def run(params: Params, w: Tensor, lr: Any) -> Params:
        return adapt(toy_losses, params, w, AdamW(lr=lr, eps_root=0.0), mode="finite_difference")

    rate = torch.tensor(0.1, dtype=torch.float64)
    got = meta_gradients(run, start, make_weights()[:3], rate, sines)
    assert got["w"].isnan().all()


def test_finite_differences_with_weights_in_float32() -> None:
    """The scorer's weights may be narrower than the losses; the quotient must not be."""

    def run(mode: str) -> Tensor:
        weights = make_weights()[:3].float().requires_grad_()
        adapted = adapt(toy_losses, toy_start(), weights, SGD(lr=0.1), 3, mode=mode)
        return torch.autograd.grad(sines(adapted), weights)[0]

    assert float((run("finite_difference") - run("exact")).norm() / run("exact").norm()) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_finite_differences_of_a_clipped_stack(name: str) -> None:
    make = functools.partial(CASES[name].optimizer, clip_norm=0.5)
    run = in_a_stack(make, 3, 5, stacked=True, mode="finite_difference")
    expected = meta_gradients(one_by_one(make, 3), *stack_inputs(), stack_loss)
    assert worst_error(meta_gradients(run, *stack_inputs(), stack_loss), expected) < CLOSE


# ------------------------------------------------------------------------------- a step for each adapter


@pytest.mark.parametrize("name", CASES)
def test_finite_differences_of_adapters_that_matter_unequally(name: str) -> None:
    """Each adapter of a stack is as accurate as alone, however small its outer loss is beside the others'."""
    scale = torch.tensor([1.0, 1e-4, 1e-8], dtype=torch.float64)
    loss, make = functools.partial(stack_loss, scale=scale), CASES[name].optimizer
    expected = meta_gradients(one_by_one(make, 3), *stack_inputs(), loss)
    got = meta_gradients(in_a_stack(make, 3, stacked=True, mode="finite_difference"), *stack_inputs(), loss)
    for b in range(B):
        rows = {name: expected[name][b] for name in ("w", "a", "b")}
        assert worst_error({name: got[name][b] for name in rows}, rows) < CLOSE


def test_a_task_with_a_small_outer_gradient_in_float32() -> None:
    """1e-4 of the others': 18% off with one step for all, 1e-4 with its own."""
    scale = torch.tensor([1.0, 1e-4, 1.0])
    loss = functools.partial(stack_loss, scale=scale)
    params, weights, rate = stack_inputs()
    narrow = {name: p.float() for name, p in params.items()}, weights.float(), rate.float()
    expected = meta_gradients(in_a_stack(SGD, 3, stacked=True), params, weights, rate, loss)
    got = meta_gradients(in_a_stack(SGD, 3, stacked=True, mode="finite_difference"), *narrow, loss)
    for b in range(B):
        rows = {name: expected[name][b] for name in ("w", "a", "b")}
        assert worst_error({name: got[name][b] for name in rows}, rows) < 2e-3


def test_an_adapter_that_does_not_matter_gets_zeros_and_one_that_is_not_finite_says_so() -> None:
    scale = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    run = in_a_stack(SGD, 2, stacked=True, mode="finite_difference")
    got = meta_gradients(run, *stack_inputs(), functools.partial(stack_loss, scale=scale))
    assert not any(got[name][1].any() for name in ("w", "a", "b"))
    assert all(bool(got[name][b].all()) for name in ("w", "a", "b") for b in (0, 2))
    scale[1] = torch.nan
    broken = meta_gradients(run, *stack_inputs(), functools.partial(stack_loss, scale=scale))
    assert broken["w"][1].isnan().all()
    assert all(torch.equal(broken[name][b], got[name][b]) for name in ("w", "a", "b") for b in (0, 2))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_owner_of_each_example_is_found(count: int, dtype: torch.dtype) -> None:
    """In any order, also at LoRA's start, where A has no influence yet; an adapter may own none."""
    generator = torch.Generator().manual_seed(count)
    start = {
        "A": torch.randn(count, 2, 6, generator=generator, dtype=dtype),
        "B": torch.zeros(count, 4, 2, dtype=dtype),
    }
    x = torch.randn(11, 6, generator=generator, dtype=dtype)
    owners = torch.randint(0, count, (11,), generator=generator)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        rows = torch.arange(11) if index is None else index
        mine = {name: p[owners[rows]] for name, p in params.items()}
        return (1 + mine["B"] @ mine["A"] @ x[rows, :, None]).square().mean((1, 2))

    objective = Objective(losses, autocast_state("cpu"))
    for chunks in ((None,), tuple(torch.arange(11).split(4))):
        assert torch.equal(differences.owners(objective, chunks, start, torch.zeros(11)), owners)


def test_examples_without_weights_to_learn_need_no_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "owners", None)
    params = {name: p.requires_grad_() for name, p in stack_start().items()}
    weights = torch.full((B * N,), 0.1, dtype=torch.float64)
    modes = ("exact", "finite_difference")
    both = [adapt(stack_losses, params, weights, SGD(lr=0.1), 2, stacked=True, mode=mode) for mode in modes]
    exact, close = (torch.autograd.grad(stack_loss(adapted), list(params.values())) for adapted in both)
    assert all(float((a - b).norm()) < CLOSE * float(b.norm()) for a, b in zip(close, exact, strict=True))


# --- planted faults are caught


def everyone_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mass.metagrad.recursion.owners", lambda *rest: torch.zeros_like(rest[-1], dtype=torch.long))


def one_step_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    right = differences.adapter_norms
    monkeypatch.setattr(differences, "adapter_norms", lambda params, _: right(params).expand(B))


@pytest.mark.parametrize("fault", [everyone_is_the_first, one_step_for_all])
def test_a_planted_fault_is_far_above_the_tolerance(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = functools.partial(stack_loss, scale=torch.tensor([1.0, 1e-4, 1e-8], dtype=torch.float64))
    run = in_a_stack(SGD, 3, stacked=True, mode="finite_difference")
    expected = meta_gradients(in_a_stack(SGD, 3, stacked=True), *stack_inputs(), loss)

    def error() -> float:
        got = meta_gradients(run, *stack_inputs(), loss)
        return max(worst_error({"w": got["w"][b]}, {"w": expected["w"][b]}) for b in range(B))

    assert error() < CLOSE
    fault(monkeypatch)
    assert error() > 100 * CLOSE
