"""What a pass of n examples holds, from passes of a few; and stacks of adapters, which use a budget and keep it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from budgets import least
from inner_problem import Params
from mass.metagrad import SGD, AdamW, Losses, Optimizer, adapt, probe
from mass.metagrad.memory import Schedule
from mass.metagrad.objective import Objective, autocast_state
from mass.metagrad.probe import Probe
from peak import Peak
from small_lms import make_lm, random_adapter

# ------------------------------------------------------------------------------- passes of a few examples

LINES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), min_size=1, max_size=20)


def seen(lines: Sequence[tuple[int, int]], examples: int, *, history: bool = True) -> Any:
    """A pass whose moments are these lines."""
    alive = [fixed + examples * each for fixed, each in lines]
    return probe._Pass(examples, alive[-1], max(alive), alive if history else (), in_full=True)


@given(LINES, st.integers(1, 200))
def test_the_peak_of_any_number_of_examples_is_that_of_two_and_three_drawn_out(
    lines: list[tuple[int, int]], n: int
) -> None:
    """Also where it comes at another moment."""
    cost = probe._joined([seen(lines, k) for k in (1, 2, 3)])
    expected = seen(lines, n)
    assert cost.peak(n) == expected.peak
    assert cost.held(n) == expected.held


@given(LINES, st.integers(2, 9), st.integers(1, 200))
def test_where_only_peaks_are_known_the_estimate_is_never_too_low(
    lines: list[tuple[int, int]], examples: int, n: int
) -> None:
    few = [seen(lines, k, history=False) for k in (1, examples)]
    cost = probe._joined(few)
    expected = seen(lines, n)
    if n == 1 or n >= examples:
        assert cost.peak(n) >= expected.peak - 1e-9
    assert cost.peak(n) <= n * few[0].peak + 1e-9


@given(LINES, st.floats(1, 1e5))
def test_the_largest_pass_fits_and_one_more_does_not(lines: list[tuple[int, int]], free: float) -> None:
    cost = probe._joined([seen(lines, k) for k in (1, 2, 3)])
    most = cost.largest(free)
    if most < 1:
        assert cost.peak(1) > free
    elif most == float("inf"):
        assert cost.peak(10**6) <= free
    else:
        assert cost.peak(int(most)) <= free < cost.peak(int(most) + 1)


# ------------------------------------------------------------------------------- stacks

B, M = 8, 3


@functools.cache
def stack(length: int = 12) -> tuple[Params, Losses]:
    """Adapters that are large beside the graph of an example, in an order of examples that mixes them."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    lm = make_lm("Llama", torch.float32, rank=12, **shape)
    ids = torch.randint(0, 200, (B * M, length), generator=torch.Generator().manual_seed(0)).tolist()
    batch = lm.batch([(row[: length // 2], row[length // 2 :]) for row in ids])
    owners = torch.arange(B).repeat(M)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return lm.losses(batch.select(index), params, owners if index is None else owners[index])

    return random_adapter(lm, count=B), losses


def peak_of(steps: int, optimizer: Optimizer, **options: Any) -> int:
    start, losses = stack()
    params = {name: p.clone().requires_grad_() for name, p in start.items()}
    weights = torch.full((B * M,), 1 / M, requires_grad=True)
    with Peak() as peak:
        adapted = adapt(losses, params, weights, optimizer, steps, stacked=True, **options)
        if torch.is_grad_enabled():
            torch.autograd.grad(sum(p.square().sum() for p in adapted.values()), [weights, *params.values()])
    return peak.peak


FEW, MANY = (1.0, 1.5, 4.0), (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
BUDGETED = [
    (SGD(lr=0.1, clip_norm=1.0), 1, FEW),
    (AdamW(lr=0.01), 2, FEW),
    pytest.param(SGD(lr=0.1, clip_norm=1.0), 3, MANY, marks=pytest.mark.slow),
    pytest.param(AdamW(lr=0.01), 3, MANY, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("optimizer", "steps", "factors"), BUDGETED)
def test_a_stack_uses_its_budget_and_keeps_it(
    optimizer: Optimizer, steps: int, factors: tuple[float, ...], schedules: list[Schedule]
) -> None:
    """Of AdamW also while its update is differentiated, which takes more than a small pass."""

    def peak(budget: float) -> int:
        return peak_of(steps, optimizer, memory_gb=budget)

    smallest = least(peak)
    for factor in factors:
        used = peak(factor * smallest) / (factor * smallest * 1e9)
        everything = schedules[-1].kept == steps * len(schedules[-1].chunks)
        assert (0 if everything else 0.75) < used <= 1, f"{used:.3f} of {factor} times the smallest budget"


@pytest.mark.parametrize("mode", ["finite_difference", "first_order"])
def test_a_stack_keeps_its_budget_in_other_modes(mode: str) -> None:
    def peak(budget: float) -> int:
        return peak_of(2, SGD(lr=0.1, momentum=0.9), memory_gb=budget, mode=mode)

    smallest = least(peak)
    for factor in (1.0, 2.0):
        assert peak(factor * smallest) <= factor * smallest * 1e9


def test_a_stack_keeps_its_budget_at_test_time() -> None:
    with torch.no_grad():
        smallest = least(lambda budget: peak_of(2, AdamW(lr=0.01), memory_gb=budget))
        for factor in (1.0, 2.0):
            assert peak_of(2, AdamW(lr=0.01), memory_gb=factor * smallest) <= factor * smallest * 1e9


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_passes_over_a_stack_are_twice_as_large_as_by_counting_its_gradient_for_each_example(
    second_order: bool, checkpoint: bool
) -> None:
    """And hold what is left for them, measured by another tracker."""
    start, losses = stack()
    weights, objective = torch.full((B * M,), 0.1), Objective(losses, autocast_state("cpu"))
    free = 4.0 * Probe(objective, start, weights, 1.0, 2)._run(1, second_order, checkpoint, float("inf")).peak
    measured = Probe(objective, start, weights, free, 2)._cost(second_order, checkpoint, True)
    examples = int(measured.largest(free))
    assert 8 <= examples < B * M
    assert pass_peak(objective, examples, second_order, checkpoint) <= free
    assert pass_peak(objective, examples + 1, second_order, checkpoint) > free


def pass_peak(objective: Objective, examples: int, second_order: bool, checkpoint: bool) -> int:
    params = {name: p.clone().requires_grad_() for name, p in stack()[0].items()}
    weights = torch.full((B * M,), 0.1, requires_grad=True)
    with Peak() as peak:
        grads, _ = objective.gradient(
            params, weights, torch.arange(examples), checkpoint=checkpoint, create_graph=second_order
        )
        if second_order:
            outputs = list(grads.values())
            torch.autograd.grad(outputs, [*params.values(), weights], outputs, allow_unused=True)
    return peak.peak
