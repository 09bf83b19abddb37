"""What an adaptation holds, measured, against what was promised; and budgets, which change nothing but that."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from budgets import least, needed
from inner_problem import (
    CASES,
    Adapt,
    Params,
    lora_start,
    make_rates,
    make_weights,
    meta_gradients,
    outer,
    practice,
    toy_losses,
    toy_start,
    worst_error,
)
from mass.config import LoraConfig
from mass.errors import ConfigError
from mass.lm.lora import LoraSites
from mass.metagrad import SGD, AdamW, Optimizer, adapt, recursion
from mass.metagrad.memory import Schedule
from peak import Peak
from small_lms import make_lm, make_model, random_adapter
from unroll import sgd, unroll

SAME = 1e-12
"""Relative, in float64: what sums in another order may change."""


# ------------------------------------------------------------------------------- the measurement itself


def test_the_peak_is_that_of_storages_alive_at_once() -> None:
    before = torch.ones(1000)
    with Peak() as peak:
        a = before.view(10, 100)  # no storage of its own
        assert peak.live == 0
        b = a + 1
        c = b[3:]
        del b
        assert peak.live == 4000
        del c
        assert (peak.live, peak.peak) == (0, 4000)
        d = a.sum() + (a * 2).sum()
    assert peak.peak == 4004 + 4
    assert peak.live == 4
    del d
    assert peak.live == 0


def test_the_peak_sees_what_graphs_hold() -> None:
    x = torch.ones(1000, requires_grad=True)
    with Peak() as peak:
        y = x
        for _ in range(5):
            y = y.sin()  # saves its input
        assert peak.live == 5 * 4000
        torch.autograd.grad(y.sum(), x)
        del y
        assert peak.live == 0
    assert 5 * 4000 < peak.peak <= 8 * 4000


# ------------------------------------------------------------------------------- peaks of adaptations

EXAMPLES = 6
Losses = Callable[[Params, Tensor | None], Tensor]


@dataclass(frozen=True)
class Problem:
    start: Params
    losses: Losses
    """Through `LM`, as training does."""
    plain: Losses
    """The same through the model as transformers makes it: what a plain unroll differentiates."""


@functools.cache
def problem(layers: int = 2, width: int = 64, length: int = 64) -> Problem:
    """Losses whose graphs are large beside the adapter, as with real models."""
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "initializer_range": 0.1,
    }
    targets, half = ("q_proj", "down_proj"), length // 2
    lm = make_lm("Llama", torch.float32, rank=1, targets=targets, **shape)
    ids = torch.randint(0, 200, (EXAMPLES, length), generator=torch.Generator().manual_seed(0))
    batch = lm.batch([(row[:half], row[half:]) for row in ids.tolist()])
    model = make_model("Llama", torch.float32, attn_implementation="eager", **shape)
    sites = LoraSites(model, LoraConfig(r=1, lora_alpha=2.0, target_modules=targets))

    def plain(params: Params, index: Tensor | None) -> Tensor:
        rows = ids if index is None else ids[index]
        with sites.use(params):
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=length - half + 1).logits[:, :-1]
        return cross_entropy(logits.mT, rows[:, half:], reduction="none").mean(1)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return lm.losses(batch if index is None else batch.select(index), params)

    return Problem(random_adapter(lm), losses, plain)


def test_both_losses_are_the_same() -> None:
    of = problem()
    torch.testing.assert_close(of.losses(of.start, None), of.plain(of.start, None))


def peak_of(run: Callable[[Params, Tensor], Params], start: Params) -> int:
    """Of one adaptation and its meta-gradient; the outer loss needs next to nothing."""
    params = {name: p.clone().requires_grad_() for name, p in start.items()}
    weights = torch.full((EXAMPLES,), 1 / EXAMPLES, requires_grad=True)
    with Peak() as peak:
        adapted = run(params, weights)
        if adapted[next(iter(adapted))].requires_grad:
            torch.autograd.grad(sum(p.sum() for p in adapted.values()), [weights, *params.values()])
    return peak.peak


def adapted_peak(
    of: Problem, steps: int, micro_batch: int | None = 1, optimizer: Optimizer | None = None, **options: Any
) -> int:
    rule = optimizer or SGD(lr=0.1)
    return peak_of(lambda p, w: adapt(of.losses, p, w, rule, steps, micro_batch, **options), of.start)


def unrolled_peak(of: Problem, steps: int) -> int:
    rates = dict.fromkeys(of.start, torch.tensor(0.1))
    return peak_of(lambda p, w: unroll(of.plain, p, w, sgd(), rates, steps), of.start)


def size(params: Params) -> int:
    return sum(p.numel() * p.element_size() for p in params.values())


def test_the_peak_grows_with_steps_by_the_tape_alone() -> None:
    """θ, g and momentum a step; the plain unroll's grows by a graph a step."""
    few, many = (adapted_peak(problem(), steps, None, SGD(lr=0.1, momentum=0.9)) for steps in (1, 16))
    tape = 3 * size(problem().start)
    assert many - 16 * tape <= 1.05 * (few - tape)
    assert unrolled_peak(problem(), 8) > 5 * unrolled_peak(problem(), 1)


STUDIED = {"layers": 4, "width": 256, "length": 128}


@pytest.mark.parametrize(("shape", "share"), [({}, 1 / 40), pytest.param(STUDIED, 1 / 55, marks=pytest.mark.slow)])
def test_the_share_of_the_plain_unrolls_peak(shape: dict[str, int], share: float) -> None:
    """K = 8, m = 6, one example at a time; 1/42 and 1/62 measured."""
    of = problem(**shape)
    assert adapted_peak(of, 8) <= share * unrolled_peak(of, 8)


@pytest.mark.parametrize("grad", [True, False])
def test_the_peak_is_proportional_to_the_micro_batch(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        peaks = {n: adapted_peak(problem(), 2, n) for n in (1, 2, 3, 6)}
    for n, peak in peaks.items():
        assert 0.9 * n * peaks[1] <= peak <= n * peaks[1]


def test_checkpointed_layers_keep_little_more_than_their_inputs() -> None:
    layer_input = 64 * 64 * 4
    shallow, deep = (adapted_peak(problem(layers), 1, checkpoint=True) for layers in (2, 4))
    assert deep - shallow <= 2 * 5 * layer_input
    plain = adapted_peak(problem(4), 1) - adapted_peak(problem(2), 1)
    assert plain > 10 * (deep - shallow)


# ------------------------------------------------------------------------------- peaks within a budget


FEW, MANY = (1.0, 1.7, 3.0, 9.0), (1.0, 1.3, 1.7, 2.2, 3.0, 4.0, 6.0, 9.0, 14.0, 20.0)
BUDGETED = [
    (SGD(lr=0.1), 1, FEW),
    pytest.param(SGD(lr=0.1), 1, MANY, marks=pytest.mark.slow),
    pytest.param(AdamW(lr=0.01), 3, MANY, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("optimizer", "steps", "factors"), BUDGETED)
def test_the_peak_stays_within_the_budget(optimizer: Optimizer, steps: int, factors: tuple[float, ...]) -> None:
    def peak(budget: float) -> int:
        return adapted_peak(problem(), steps, None, optimizer, memory_gb=budget)

    smallest = least(peak)
    peaks = {f * smallest * 1e9: peak(f * smallest) for f in factors}
    over = {f"{budget / 1e6:.2f} MB": round(p / budget, 2) for budget, p in peaks.items() if p > 1.05 * budget}
    assert not over


def test_a_larger_budget_is_used(schedules: list[Schedule]) -> None:
    """Larger micro-batches, then more graphs that are kept, in the end all."""
    peaks = [adapted_peak(problem(), 2, None, memory_gb=budget) for budget in (0.002, 0.004, 0.01, 0.1)]
    assert all(1.5 * small < large for small, large in itertools.pairwise(peaks))
    kept = [s.kept * EXAMPLES / len(s.chunks) for s in schedules]
    assert kept == sorted(kept)
    assert kept[0] < kept[2] < kept[3] == 2 * EXAMPLES


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_the_peak_stays_within_the_budget_at_test_time(factor: float) -> None:
    with torch.no_grad():

        def peak(budget: float) -> int:
            return adapted_peak(problem(), 2, None, memory_gb=budget)

        smallest = least(peak)
        assert peak(factor * smallest) <= 1.05 * factor * smallest * 1e9
        assert peak(factor * smallest) < peak(1.0)


def test_a_micro_batch_that_does_not_fit_the_budget_is_refused() -> None:
    """Both were asked for; holding more than the budget without a word is neither."""
    fits = 1.05e-9 * adapted_peak(problem(), 1, 1)
    with pytest.raises(ConfigError, match="memory_gb"):
        adapted_peak(problem(), 1, EXAMPLES, memory_gb=fits)


# ------------------------------------------------------------------------------- the same numbers


def ragged(params: Params, index: Tensor | None = None) -> Tensor:
    """Examples of 1 to 9 terms, the largest last."""
    rows = torch.arange(5) if index is None else index
    return torch.stack([((i + 1) * toy_losses(params)[: 1 + i % 3].repeat(1 + i)).mean() for i in rows.tolist()])


def budgeted(name: str, steps: int, losses: Any = practice, micro_batch: int | None = None, **options: Any) -> Adapt:
    def run(params: Params, weights: Tensor, lr: Any) -> Params:
        return adapt(losses, params, weights, CASES[name].optimizer(lr=lr), steps, micro_batch, **options)

    return run


MODES = ["truncated(2)", "first_order", "finite_difference"]


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "exact") for name in CASES), *(("momentum", mode) for mode in MODES)]
)
def test_a_budget_changes_no_number(name: str, mode: str, schedules: list[Schedule]) -> None:
    given = lora_start(), make_weights(3), make_rates("both", CASES[name].rate, list(lora_start()), 3)

    def run(budget: float | None) -> Params:
        return meta_gradients(budgeted(name, 3, mode=mode, memory_gb=budget), *given)

    expected, smallest = run(None), least(run)
    schedules.clear()
    for factor in (1, 1.5, 2, 3, 4, 6, 100):
        tolerance = 1e-7 if mode == "finite_difference" else SAME
        assert worst_error(run(factor * smallest), expected) < tolerance
    kept = [(s.kept, len(s.chunks)) for s in schedules]
    steps = 2 if mode == "truncated(2)" else 3
    if mode == "finite_difference":
        assert {k for k, _ in kept} == {0}
    else:
        assert any(0 < k < steps * chunks and k % chunks for k, chunks in kept)  # a step's graphs are kept in part
        assert kept[-1] == (steps, 1)


@pytest.mark.parametrize("name", CASES)
def test_backward_twice_gives_the_same_gradients(name: str, schedules: list[Schedule]) -> None:
    """The kept graphs are used up by the first."""
    for budget in (None, 1.0):
        weights, rate = make_weights().requires_grad_(), torch.tensor(CASES[name].rate, dtype=torch.float64)
        params = {n: p.requires_grad_() for n, p in lora_start().items()}
        inputs = [weights, rate.requires_grad_(), *params.values()]
        loss = outer(budgeted(name, 3, memory_gb=budget)(params, weights, rate))
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        again = [torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2)]
        assert all(
            torch.allclose(a, b, rtol=SAME, atol=1e-15) for other in again for a, b in zip(other, first, strict=True)
        )
    assert schedules[-1].kept == 3


def test_the_same_budget_gives_the_same_schedule_and_bits(schedules: list[Schedule]) -> None:
    given = lora_start(), make_weights(), make_rates("scalar", 0.2, [], 3)
    smallest = least(lambda gb: meta_gradients(budgeted("momentum", 3, memory_gb=gb), *given))
    for factor in (1.0, 2.0, 4.0):
        schedules.clear()
        one, two = (meta_gradients(budgeted("momentum", 3, memory_gb=factor * smallest), *given) for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert described(schedules[0]) == described(schedules[1])


def described(schedule: Schedule) -> list[Any]:
    return [
        [None if index is None else index.tolist() for index in value] if isinstance(value, tuple) else value
        for value in (getattr(schedule, f.name) for f in dataclasses.fields(schedule))
    ]


def test_examples_of_unequal_size() -> None:
    given = toy_start(), make_weights()[:5], torch.tensor(0.05, dtype=torch.float64)
    expected = meta_gradients(budgeted("adamw", 3, ragged), *given, sines)
    smallest = least(lambda gb: meta_gradients(budgeted("adamw", 3, ragged, memory_gb=gb), *given, sines))
    for factor in (1.0, 1.5, 3.0, 10.0):
        got = meta_gradients(budgeted("adamw", 3, ragged, memory_gb=factor * smallest), *given, sines)
        assert worst_error(got, expected) < SAME


def sines(params: Params) -> Tensor:
    return sum(p.sin().sum() for p in params.values())


@pytest.mark.parametrize("budget", [1e-12, 1e-7, 1e-6])
@pytest.mark.parametrize("grad", [True, False])
def test_a_budget_that_is_too_small_names_the_amount_that_is_enough(budget: float, grad: bool) -> None:
    """Also where not even the tape fits."""
    start, losses = problem().start, problem().losses
    weights = torch.full((EXAMPLES,), 0.1, requires_grad=grad)

    def run(memory_gb: float) -> Params:
        return adapt(losses, start, weights, AdamW(lr=0.1), 8, memory_gb=memory_gb)

    with pytest.raises(ConfigError, match=re.escape(f"memory_gb = {budget:g}")) as caught:
        run(budget)
    enough = needed(caught.value)
    run(enough)
    with pytest.raises(ConfigError):
        run(0.7 * enough)


@settings(max_examples=40)
@given(
    count=st.integers(1, 7),
    steps=st.integers(0, 5),
    micro_batch=st.none() | st.integers(1, 8),
    exponent=st.floats(-7.5, -4.0),
    name=st.sampled_from(sorted(CASES)),
    mode=st.sampled_from(["exact", "truncated(0)", "truncated(1)", "truncated(3)", "first_order"]),
)
def test_no_budget_and_no_micro_batch_changes_a_number(count, steps, micro_batch, exponent, name, mode) -> None:
    def losses(params: Params, index: Tensor | None = None) -> Tensor:
        rows = torch.arange(count) if index is None else index
        return toy_losses(params, rows % 3) * (1.0 + rows)

    given = toy_start(), torch.linspace(0.02, 0.1, count).double(), torch.tensor(0.1).double()
    expected = meta_gradients(budgeted(name, steps, losses, mode=mode), *given, sines)
    try:
        run = budgeted(name, steps, losses, micro_batch, mode=mode, memory_gb=10**exponent)
        got = meta_gradients(run, *given, sines)
    except ConfigError as error:
        run = budgeted(name, steps, losses, micro_batch, mode=mode, memory_gb=needed(error))
        got = meta_gradients(run, *given, sines)
    assert worst_error(got, expected) < 1e-9  # AdamW's near sign enlarges rounding


def test_a_micro_batch_beyond_the_examples_counts_as_all_of_them() -> None:
    of = problem()
    fits = 1.2e-9 * adapted_peak(of, 1, EXAMPLES)
    assert adapted_peak(of, 1, 10_000, memory_gb=fits) <= 1.05e9 * fits


def test_rounding_near_a_stationary_point_is_no_changed_loss() -> None:
    """There the gradient is what cancellation leaves, and micro-batches leave something else."""
    of = problem()
    one = adapt(of.losses, of.start, torch.ones(EXAMPLES) / EXAMPLES, SGD(lr=0.0), 1)
    scale = max(float(p.norm()) for p in one.values())
    recursion._check_same_gradient({"a": torch.tensor([1e-6])}, {"a": torch.tensor([-1e-6])}, scale)
    with pytest.raises(ConfigError, match="turn dropout off"):
        recursion._check_same_gradient({"a": torch.tensor([1e-6])}, {"a": torch.tensor([-1e-6])}, 0.0)
