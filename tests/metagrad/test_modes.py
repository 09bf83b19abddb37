"""Clipping, truncation, first order and update rules of a user's own against a plain unroll."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from inner_problem import (
    CASES,
    CLIP,
    Adapt,
    Params,
    clipped,
    inputs,
    make_weights,
    meta_gradients,
    ours,
    outer,
    reference,
    sines,
    toy_losses,
    toy_start,
    worst_error,
)
from mass.errors import ConfigError
from mass.metagrad import SGD, AdamW, Optimizer, adapt, recursion, update
from mass.metagrad import inner_loop as adaptation
from mass.metagrad.recursion import Plan
from stack_problem import in_a_stack, one_by_one, stack_inputs, stack_loss
from unroll import Clip

EXACT = 1e-9


# ------------------------------------------------------------------------------- clipping by norm


@pytest.mark.parametrize("kind", ["scalar", "per tensor", "per step", "both"])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("name", CASES)
def test_clipping_equals_an_unroll_that_clips(name: str, steps: int, kind: str) -> None:
    case, clip = CASES[name], Clip(CLIP)
    given = inputs(case, steps, kind)
    expected = meta_gradients(reference(case, steps, clip=clip), *given)
    assert set(clip.active) == {True, False}
    assert worst_error(meta_gradients(ours(clipped(case, CLIP), steps), *given), expected) < EXACT


@pytest.mark.parametrize(("clip_norm", "micro_batch"), [(None, 2), (CLIP, None)])
@pytest.mark.parametrize("name", CASES)
def test_sixteen_steps_are_exact(name: str, clip_norm: float | None, micro_batch: int | None) -> None:
    case = CASES[name]
    given, options = inputs(case, 16), {}
    if clip_norm:
        options["clip"] = clip = Clip(clip_norm)
    expected = meta_gradients(reference(case, 16, **options), *given)
    assert not clip_norm or set(clip.active) == {True, False}
    case = clipped(case, clip_norm) if clip_norm else case
    assert worst_error(meta_gradients(ours(case, 16, micro_batch), *given), expected) < EXACT


TORCH = {
    "sgd": (SGD(lr=0.9, clip_norm=0.25), functools.partial(torch.optim.SGD, lr=0.9)),
    "momentum": (SGD(lr=0.3, momentum=0.9, clip_norm=0.25), functools.partial(torch.optim.SGD, lr=0.3, momentum=0.9)),
    "adamw": (
        AdamW(lr=0.1, eps_root=0.0, weight_decay=0.3, clip_norm=0.25),
        functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_clipped_updates_are_those_of_torch(name: str) -> None:
    optimizer, other = TORCH[name]
    weights, params = make_weights()[:3] * 3, {name: p.requires_grad_() for name, p in toy_start().items()}
    adapted = adapt(toy_losses, toy_start(), weights, optimizer, steps=6)
    torch_optimizer, norms = other(params.values()), list[float]()
    for _ in range(6):
        torch_optimizer.zero_grad()
        (weights * toy_losses(params)).sum().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), 0.25)))
        torch_optimizer.step()
    assert min(norms) < 0.25 < max(norms)
    assert all(torch.allclose(adapted[n], p, rtol=1e-12, atol=1e-14) for n, p in params.items())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("zero", ["all", "one tensor"])
def test_a_zero_gradient_under_clipping_has_finite_meta_gradients(name: str, zero: str) -> None:
    """At the minimum of all losses, where ‖g‖ has no derivative; or in LoRA's A at B = 0."""

    def at_the_minimum(params: Params, index: Tensor | None) -> Tensor:
        x = torch.arange(1.0, 4).double()
        return (x if index is None else x[index]) * sum(p.square().sum() for p in params.values())

    case = clipped(CASES[name], 0.1)
    weights, rate = make_weights()[:3], torch.tensor(0.1, dtype=torch.float64)
    start = {n: torch.zeros_like(p) for n, p in toy_start().items()}
    losses, start = (at_the_minimum, start) if zero == "all" else (toy_losses, {**toy_start(), "b": start["b"]})

    def run(params: Params, w: Tensor, lr: Any) -> Params:
        return adapt(losses, params, w, case.optimizer(lr=lr), 3)

    got = meta_gradients(run, start, weights, rate, lambda p: sum(x.exp().sum() for x in p.values()))
    assert all(bool(value.isfinite().all()) for value in got.values())
    assert any(bool(got[name].any()) for name in start)


def test_a_norm_that_is_never_reached_changes_nothing() -> None:
    case = CASES["momentum"]
    given = inputs(case, 2)
    expected = meta_gradients(ours(case, 2), *given)
    assert worst_error(meta_gradients(ours(clipped(case, 1e30), 2), *given), expected) < 1e-14


# --- a stack


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("name", CASES)
def test_a_clipped_stack_equals_the_loop_over_adapters(name: str, micro_batch: int | None) -> None:
    make = functools.partial(CASES[name].optimizer, clip_norm=0.5)
    expected = meta_gradients(one_by_one(make, 3), *stack_inputs(), stack_loss)
    got = meta_gradients(in_a_stack(make, 3, micro_batch, stacked=True), *stack_inputs(), stack_loss)
    assert worst_error(got, expected) < 1e-11
    together = meta_gradients(in_a_stack(make, 3, micro_batch, stacked=False), *stack_inputs(), stack_loss)
    assert worst_error(together, expected) > 1e-3


# ------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("last", range(6))
@pytest.mark.parametrize("name", CASES)
def test_truncation_equals_an_unroll_whose_first_steps_are_detached(name: str, last: int) -> None:
    case, steps = CASES[name], 4
    given = inputs(case, steps)
    got = meta_gradients(ours(case, steps, 2, mode=f"truncated({last})"), *given)
    assert worst_error(got, meta_gradients(reference(case, steps, last=last), *given)) < EXACT
    earlier = max(0, steps - last)
    assert not got["w"][:earlier].any()
    assert not any(got[name][:earlier].any() for name in got if name.startswith("rate "))
    assert got["w"][earlier:].all()
    if last >= steps:
        exact = meta_gradients(ours(case, steps, 2), *given)
        assert all(torch.equal(got[name], exact[name]) for name in exact)


def test_without_differentiated_steps_the_start_gets_the_cotangent() -> None:
    given = inputs(CASES["adamw"], 3)
    got = meta_gradients(ours(CASES["adamw"], 3, mode="truncated(0)"), *given)
    at = {name: got[f"adapted {name}"].requires_grad_() for name in given[0]}
    cotangents = torch.autograd.grad(outer(at), list(at.values()))
    assert all(torch.equal(got[name], bar) for name, bar in zip(at, cotangents, strict=True))
    assert not any(got[name].any() for name in got if name == "w" or name.startswith("rate "))


@pytest.mark.parametrize("last", [0, 1, 3, 5, 9])
def test_the_tape_holds_the_last_steps_only(last: int) -> None:
    case, steps = CASES["momentum"], 5
    params, weights, lr = inputs(case, steps, "scalar")
    weights.requires_grad_()
    adapted = ours(case, steps, mode=f"truncated({last})")(params, weights, lr)
    node = next(iter(adapted.values())).grad_fn
    assert len(node.saved_tensors) == len(params) + 2 + 3 * len(params) * min(last, steps)


# ------------------------------------------------------------------------------- first order


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_first_order_equals_an_unroll_with_constant_gradients(name: str, steps: int) -> None:
    case, clip = CASES[name], Clip(CLIP)
    given = inputs(case, steps)
    expected = meta_gradients(reference(case, steps, first_order=True), *given)
    assert worst_error(meta_gradients(ours(case, steps, 2, mode="first_order"), *given), expected) < EXACT
    expected = meta_gradients(reference(case, steps, first_order=True, clip=clip), *given)
    got = meta_gradients(ours(clipped(case, CLIP), steps, mode="first_order"), *given)
    assert worst_error(got, expected) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_first_order_is_not_exact(name: str) -> None:
    case = CASES[name]
    given = inputs(case, 3)
    first, exact = (meta_gradients(ours(case, 3, mode=mode), *given) for mode in ("first_order", "exact"))
    for wanted in ("w", *given[0], *(name for name in exact if name.startswith("rate "))):
        assert float((first[wanted] - exact[wanted]).norm() / exact[wanted].norm()) > 1e-3


# ------------------------------------------------------------------------------- what modes there are


@pytest.mark.parametrize(
    ("mode", "close"),
    [
        ("exakt", "exact"),
        ("first-order", "first_order"),
        ("truncated", "truncated(n)"),
        ("truncated(-1)", "truncated(n)"),
        ("truncated(two)", "truncated(n)"),
        ("finite difference", "finite_difference"),
    ],
)
def test_an_unknown_mode_names_the_nearest(mode: str, close: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"did you mean '{close}'?")) as caught:
        adapt(toy_losses, toy_start(), make_weights()[:3], SGD(lr=0.1), mode=mode)
    assert "\n" not in str(caught.value)
    assert repr(mode) in str(caught.value)


# ------------------------------------------------------------------------------- update rules of a user's own


@dataclass(frozen=True)
class Shampoo:
    """g preconditioned by one matrix over all tensors at once, Σ g gᵀ: state that couples them."""

    lr: Any
    clip_norm: float | None = None

    def init(self, params: Params) -> Params:
        count = sum(p.numel() for p in params.values())
        return {"all": torch.eye(count, dtype=torch.float64)}

    def update(self, params: Params, grads: Params, state: Params, rates: Params, step: int) -> tuple[Params, Params]:
        g = torch.cat([g.flatten() for g in grads.values()])
        matrix = state["all"] + torch.outer(g, g) / (step + 1)
        direction = torch.linalg.solve(matrix, g).split([p.numel() for p in params.values()])
        return {name: p - rates[name] * d.view_as(p) for (name, p), d in zip(params.items(), direction, strict=True)}, {
            "all": matrix
        }


@dataclass(frozen=True)
class Proximal:
    """SGD that is pulled back to where it started, which its state holds."""

    lr: Any
    clip_norm: float | None = None

    def init(self, params: Params) -> Params:
        return dict(params)

    def update(self, params: Params, grads: Params, state: Params, rates: Params, step: int) -> tuple[Params, Params]:
        del step
        return {n: p - rates[n] * (grads[n] + 0.5 * (p - state[n])) for n, p in params.items()}, state


@dataclass(frozen=True)
class Counting:
    """SGD with a state that no gradient passes through: a decaying count, and a detached second moment."""

    lr: Any
    clip_norm: float | None = None

    def init(self, params: Params) -> Params:
        return {"count": torch.tensor(1.0), **{name: torch.ones_like(p) for name, p in params.items()}}

    def update(self, params: Params, grads: Params, state: Params, rates: Params, step: int) -> tuple[Params, Params]:
        del step
        scale = {name: (0.9 * state[name] + grads[name] ** 2).detach() for name in params}
        new = {n: p - rates[n] * grads[n] / (scale[n].sqrt() + state["count"]) for n, p in params.items()}
        return new, {"count": state["count"].detach() / 2, **scale}


@dataclass(frozen=True)
class Lazy:
    """Momentum whose state begins with the first gradient."""

    lr: Any
    clip_norm: float | None = None

    def init(self, params: Params) -> Params:
        del params
        return {}

    def update(self, params: Params, grads: Params, state: Params, rates: Params, step: int) -> tuple[Params, Params]:
        del step
        new = {name: 0.8 * state[name] + g if name in state else g for name, g in grads.items()}
        return {name: p - rates[name] * new[name] for name, p in params.items()}, new


def by_hand(optimizer: Optimizer, steps: int) -> Adapt:
    """The unroll of an update rule, clipping left out."""

    def run(params: Params, weights: Tensor, lr: Any) -> Params:
        theta, state, rates = params, optimizer.init(params), dict.fromkeys(params, lr)
        for step in range(steps):
            total = (weights * toy_losses(theta)).sum()
            grads = torch.autograd.grad(total, list(theta.values()), create_graph=True)
            theta, state = optimizer.update(theta, dict(zip(theta, grads, strict=True)), state, rates, step)
        return theta

    return run


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(
    "rule",
    [
        Shampoo,
        Proximal,
        Counting,
        Lazy,
    ],
)
def test_an_update_rule_of_a_users_own_is_exact(rule: Any, micro_batch: int | None) -> None:
    """Or refused with a ConfigError that says what a rule may not do; never a wrong number."""
    rate, weights = torch.tensor(0.3, dtype=torch.float64), make_weights()[:3] * 3

    def run(params: Params, w: Tensor, lr: Any) -> Params:
        return adapt(toy_losses, params, w, rule(lr=lr), 4, micro_batch)

    expected = meta_gradients(by_hand(rule(lr=rate), 4), toy_start(), weights, rate, sines)
    assert worst_error(meta_gradients(run, toy_start(), weights, rate, sines), expected) < EXACT


# ------------------------------------------------------------------------------- planted faults are caught


def clipping_without_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    right = update.clip_by_norm

    def without(grads: Params, *rest: Any) -> Params:
        factor = {name: (g / grads[name]).detach() for name, g in right(grads, *rest).items()}
        return {name: g * factor[name] for name, g in grads.items()}

    monkeypatch.setattr(update, "clip_by_norm", without)


def truncation_a_step_early(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Plan.differentiated
    monkeypatch.setattr(Plan, "differentiated", lambda plan, steps: range(right(plan, steps).start - 1, steps))


def truncation_a_step_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Plan.differentiated
    monkeypatch.setattr(Plan, "differentiated", lambda plan, steps: range(right(plan, steps).start + 1, steps))


def kept_graph_of_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adaptation.pull_back

    def swapped(plan: Plan, weights: Tensor, rates: Tensor, tape: Any, *rest: Any) -> Any:
        steps = len(weights)
        tape.graphs = {((j + 1) % steps, c): graph for (j, c), graph in tape.graphs.items()}
        return right(plan, weights, rates, tape, *rest)

    monkeypatch.setattr(adaptation, "pull_back", swapped)


def chunk_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward alone."""
    right = recursion.second_order_pass

    def twice(plan: Plan, *rest: Any, **wanted: Any) -> Any:
        chunks = plan.schedule.chunks
        schedule = dataclasses.replace(plan.schedule, chunks=(*chunks, chunks[0]))
        return right(dataclasses.replace(plan, schedule=schedule), *rest, **wanted)

    monkeypatch.setattr(recursion, "second_order_pass", twice)


FAULTS: dict[Callable[[pytest.MonkeyPatch], None], dict[str, Any]] = {
    clipping_without_derivative: {},
    truncation_a_step_early: {"mode": "truncated(2)"},
    truncation_a_step_late: {"mode": "truncated(2)"},
    kept_graph_of_another_step: {"memory_gb": 10.0},
    chunk_counted_twice: {"micro_batch": 2},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_far_above_the_tolerance(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, options = CASES["momentum"], FAULTS[fault]
    given, last = inputs(case, 4), 2 if "mode" in options else None
    expected = meta_gradients(reference(case, 4, clip=Clip(CLIP), last=last), *given)
    run = ours(clipped(case, CLIP), 4, **options)
    assert worst_error(meta_gradients(run, *given), expected) < EXACT
    fault(monkeypatch)
    if fault in (kept_graph_of_another_step, chunk_counted_twice):
        with pytest.raises(ConfigError, match="off the forward's"):
            meta_gradients(run, *given)
        monkeypatch.setattr(recursion, "_check_same_gradient", lambda *_: None)
    assert worst_error(meta_gradients(run, *given), expected) > 1e-3
