from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from inner_problem import (
    CASES,
    Adapt,
    M,
    Params,
    lora_start,
    make_rates,
    make_weights,
    meta_gradients,
    ours,
    outer,
    practice,
    reference,
    toy_losses,
    toy_start,
    worst_error,
)
from mass.errors import ConfigError, MassError, ShapeError
from mass.metagrad import SGD, AdamW, Optimizer, SecondDerivativeError, adapt, memory, recursion
from mass.metagrad import inner_loop as adaptation
from mass.metagrad.recursion import Plan


@pytest.mark.parametrize("kind", ["scalar", "per tensor", "per step", "both"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_unroll(name: str, steps: int, kind: str) -> None:
    case, params = CASES[name], lora_start()
    weights = make_weights(steps if kind == "both" else None)
    lr = make_rates(kind, case.rate, list(params), steps)
    expected = meta_gradients(reference(case, steps), params, weights, lr)
    assert worst_error(meta_gradients(ours(case, steps), params, weights, lr), expected) < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_unroll_after_eight_steps_in_micro_batches(name: str) -> None:
    case, params = CASES[name], lora_start()
    inputs = params, make_weights(8), make_rates("both", case.rate, list(params), 8)
    expected = meta_gradients(reference(case, 8), *inputs)
    assert worst_error(meta_gradients(ours(case, 8, micro_batch=2), *inputs), expected) < 1e-9


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_change_nothing(name: str, micro_batch: int) -> None:
    case, params = CASES[name], lora_start()
    inputs = params, make_weights(), make_rates("per tensor", case.rate, list(params), 2)
    whole = meta_gradients(ours(case, 2), *inputs)
    assert worst_error(meta_gradients(ours(case, 2, micro_batch), *inputs), whole) < 1e-11


def test_adamw_from_a_zero_b_is_finite_and_exact() -> None:
    """There the gradient of A is exactly zero, where √v̂ has no derivative."""
    case, params = CASES["adamw"], lora_start(zero_b=True)
    inputs = params, make_weights(), make_rates("per tensor", case.rate, list(params), 2)
    got = meta_gradients(ours(case, 2), *inputs)
    assert all(bool(value.isfinite().all()) for value in got.values())
    assert worst_error(got, meta_gradients(reference(case, 2), *inputs)) < 1e-9


@pytest.mark.parametrize("wanted", ["weights", "params", "rates"])
def test_one_input_alone_gets_the_same_gradient(wanted: str) -> None:
    """The passes that are skipped for it were not needed."""
    case, params, weights = CASES["momentum"], lora_start(), make_weights()
    lr = make_rates("scalar", case.rate, list(params), 3)
    full = meta_gradients(ours(case, 3), params, weights, lr)
    alone = {"weights": [weights], "params": list(params.values()), "rates": [lr]}[wanted]
    names = {"weights": ["w"], "params": list(params), "rates": ["rate all"]}[wanted]
    for tensor in alone:
        tensor.requires_grad_()
    grads = torch.autograd.grad(outer(ours(case, 3)(params, weights, lr)), alone)
    assert all(torch.allclose(g, full[n], rtol=1e-11, atol=1e-14) for n, g in zip(names, grads, strict=True))


# ------------------------------------------------------------------------------- planted faults are caught


def first_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recursion.second_order_pass

    def wrong(*args, **kwargs):
        products, bar_weights = right(*args, **kwargs)
        return {name: torch.zeros_like(p) for name, p in products.items()}, bar_weights

    monkeypatch.setattr(recursion, "second_order_pass", wrong)


def weights_of_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adaptation.pull_back
    monkeypatch.setattr(adaptation, "pull_back", lambda plan, weights, *rest: right(plan, weights.roll(1, 0), *rest))
    monkeypatch.setattr(recursion, "_check_same_gradient", lambda *_: None)


def forgotten_state(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recursion.pull_through_update

    def wrong(*args):
        params, u, state, rates = right(*args)
        return params, u, {name: torch.zeros_like(s) for name, s in state.items()}, rates

    monkeypatch.setattr(recursion, "pull_through_update", wrong)


def bias_correction_of_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    right = recursion.pull_through_update
    monkeypatch.setattr(
        recursion, "pull_through_update", lambda plan, at, rates, step, *bars: right(plan, at, rates, step + 1, *bars)
    )


def last_step_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Plan.differentiated
    monkeypatch.setattr(Plan, "differentiated", lambda plan, steps: right(plan, steps)[:-1])


def micro_batch_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = memory._chunks
    monkeypatch.setattr(memory, "_chunks", lambda *args: right(*args)[:-1])


FAULTS = [
    first_order,
    weights_of_another_step,
    forgotten_state,
    bias_correction_of_the_next_step,
    last_step_missed,
    micro_batch_missed,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_far_above_the_tolerance(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, params = CASES["adamw"], lora_start()
    inputs = params, make_weights(2), make_rates("scalar", case.rate, list(params), 2)
    expected = meta_gradients(reference(case, 2), *inputs)
    assert worst_error(meta_gradients(ours(case, 2, micro_batch=2), *inputs), expected) < 1e-9
    fault(monkeypatch)
    assert worst_error(meta_gradients(ours(case, 2, micro_batch=2), *inputs), expected) > 1e-3


def test_the_first_order_gradient_differs() -> None:
    """Computed apart: θ_K with the inner gradients of each step held constant in θ."""
    params, weights, rate = lora_start(), make_weights(), torch.tensor(0.2, dtype=torch.float64)
    w, theta = weights.clone().requires_grad_(), params
    for _ in range(2):
        at = {name: p.detach().requires_grad_() for name, p in theta.items()}
        per_example = [torch.autograd.grad(loss, list(at.values()), retain_graph=True) for loss in practice(at)]
        theta = {
            name: p - rate * sum(w[i] * g[k] for i, g in enumerate(per_example))
            for k, (name, p) in enumerate(theta.items())
        }
    first = torch.autograd.grad(outer(theta), w)[0]
    exact = meta_gradients(ours(CASES["sgd"], 2), params, weights, rate)["w"]
    assert float((first - exact).norm() / exact.norm()) > 1e-3


# ------------------------------------------------------------------------------- other proofs of the numbers


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str, steps: int) -> None:
    def run(weights: Tensor, a: Tensor, b: Tensor, rate_a: Tensor, rate_b: Tensor) -> tuple[Tensor, ...]:
        lr = {"a": rate_a, "b": rate_b}
        params = {"a": a, "b": b}
        return tuple(adapt(toy_losses, params, weights, CASES[name].optimizer(lr=lr), steps, micro_batch=2).values())

    rate = torch.tensor(0.1, dtype=torch.float64)
    inputs = [make_weights(steps)[:, :3], *toy_start().values(), rate.expand(steps), 2 * rate]
    assert gradcheck(run, [t.clone().requires_grad_() for t in inputs], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_closed_form_of_quadratics(steps: int) -> None:
    """ℓ_i = ½(θ - c_i)²: θ_K = c̄ + q^K (θ - c̄) with W = Σ w_i, c̄ = Σ w_i c_i / W, q = 1 - rW."""
    c, w, rate = torch.tensor([1.0, -2.0, 4.0]).double(), torch.tensor([0.5, 0.3, 0.4]).double(), 0.25
    start, lr = torch.tensor(3.0).double(), torch.tensor(rate).double()
    inputs = [t.requires_grad_() for t in (w, start, lr)]
    adapted = adapt(lambda p, _: 0.5 * (p["t"] - c) ** 2, {"t": start}, w, SGD(lr=lr), steps)["t"]
    got = torch.autograd.grad(0.5 * (adapted - 7.0) ** 2, inputs)

    total = float(w.detach().sum())
    w = w.detach()
    mean, q = float((w * c).sum()) / total, 1 - rate * total
    final = mean + q**steps * (3.0 - mean)
    slope = steps * q ** (steps - 1) * (3.0 - mean) if steps else 0.0
    by_weight = -rate * slope + (1 - q**steps) * (c - mean) / total
    assert float(adapted.detach()) == pytest.approx(final, rel=1e-12)
    assert torch.allclose(got[0], (final - 7.0) * by_weight, rtol=1e-12, atol=1e-14)
    assert float(got[1]) == pytest.approx((final - 7.0) * q**steps, rel=1e-12)
    assert float(got[2]) == pytest.approx((final - 7.0) * -total * slope, rel=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "other"),
    [
        (SGD(lr=0.1), functools.partial(torch.optim.SGD, lr=0.1)),
        (SGD(lr=0.1, momentum=0.9), functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        (AdamW(lr=0.1, eps_root=0.0), functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.0)),
        (AdamW(lr=0.1, eps_root=0.0, weight_decay=0.3), functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.3)),
    ],
)
def test_updates_are_those_of_torch(optimizer: Optimizer, other: Callable[..., torch.optim.Optimizer]) -> None:
    weights, params = make_weights()[:3], {name: p.requires_grad_() for name, p in toy_start().items()}
    adapted = adapt(toy_losses, toy_start(), weights, optimizer, steps=4)
    torch_optimizer = other(params.values())
    for _ in range(4):
        torch_optimizer.zero_grad()
        (weights * toy_losses(params)).sum().backward()
        torch_optimizer.step()
    assert all(torch.allclose(adapted[n], p, rtol=1e-12, atol=1e-14) for n, p in params.items())


RATES_OF_A_STACK = {
    "shared": torch.tensor(0.1).double(),
    "of each adapter": torch.tensor([[0.1, 0.02, 0.3]]).double(),
    "of each adapter and step": torch.tensor([[0.1, 0.02, 0.3], [0.2, 0.1, 0.0], [0.05, 0.4, 0.1]]).double(),
    "of one tensor": {"a": torch.tensor([[0.1, 0.02, 0.3]]).double(), "b": torch.tensor(0.2).double()},
}


def of_adapter(lr: Tensor | dict[str, Tensor], b: int) -> Tensor | dict[str, Tensor]:
    """The rates of adapter b of a stack, [] or [steps]."""
    if isinstance(lr, dict):
        return {name: of_adapter(rate, b) for name, rate in lr.items()}
    return lr if lr.ndim < 2 else lr[0, b] if len(lr) == 1 else lr[:, b]


@pytest.mark.parametrize("rates", RATES_OF_A_STACK)
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_stack_of_tasks_equals_the_loop(name: str, micro_batch: int | None, rates: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(3, 4, 2, generator=generator).double(), torch.randn(3, 4, generator=generator).double()
    start = {"a": torch.randn(3, 2, generator=generator).double(), "b": torch.randn(3, generator=generator).double()}
    weights, rate = torch.rand(3, 4, generator=generator).double(), RATES_OF_A_STACK[rates]

    def stacked(params: Params, index: Tensor | None) -> Tensor:
        values = (torch.einsum("bmd,bd->bm", x, params["a"]).tanh() * params["b"][:, None] - y) ** 2
        return values.flatten() if index is None else values.flatten()[index]

    def one(b: int) -> Callable[[Params, Tensor | None], Tensor]:
        def losses(params: Params, index: Tensor | None) -> Tensor:
            values = ((x[b] @ params["a"]).tanh() * params["b"] - y[b]) ** 2
            return values if index is None else values[index]

        return losses

    def run_stack(params: Params, w: Tensor, lr: Tensor | dict[str, Tensor]) -> Params:
        return adapt(stacked, params, w.flatten(), CASES[name].optimizer(lr=lr), 3, micro_batch, stacked=True)

    def run_loop(params: Params, w: Tensor, lr: Tensor | dict[str, Tensor]) -> Params:
        rows = [{n: p[b] for n, p in params.items()} for b in range(3)]
        update = [CASES[name].optimizer(lr=of_adapter(lr, b)) for b in range(3)]
        done = [adapt(one(b), row, w[b], update[b], 3) for b, row in enumerate(rows)]
        return {n: torch.stack([row[n] for row in done]) for n in params}

    def loss(params: Params) -> Tensor:
        return (params["a"].sin().sum(1) * params["b"]).sum()

    got, expected = (meta_gradients(run, start, weights, rate, loss) for run in (run_stack, run_loop))
    assert worst_error(got, expected) < 1e-11


# ------------------------------------------------------------------------------- properties


numbers = st.floats(-2, 2, allow_nan=False, width=32)
shares = st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3)
OPTIMIZERS = [SGD, functools.partial(SGD, momentum=0.9), functools.partial(AdamW, weight_decay=0.5)]


def small_start(values: list[float]) -> Params:
    return {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2])}


def small_losses(params: Params, index: Tensor | None = None) -> Tensor:
    return toy_losses({name: p.double() for name, p in params.items()}, index).to(params["a"].dtype)


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=3), shares, st.sampled_from(OPTIMIZERS), st.sampled_from([None, 1, 2]))
def test_rate_zero_is_the_identity_bitwise(values, weights, make, micro_batch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        params = {name: p.to(dtype) for name, p in small_start(values).items()}
        params["negative zero"] = torch.tensor([-0.0, 0.0], dtype=dtype)
        adapted = adapt(small_losses, params, torch.tensor(weights), make(lr=0.0), 3, micro_batch)
        for name, p in params.items():
            assert adapted[name].dtype == dtype
            assert torch.equal(adapted[name], p)
            assert torch.equal(adapted[name].signbit(), p.signbit())


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=3), shares, st.sampled_from(OPTIMIZERS))
def test_an_example_of_weight_zero_changes_nothing(values, weights, make) -> None:
    def without_last(params: Params, index: Tensor | None) -> Tensor:
        return small_losses(params, torch.arange(2) if index is None else index)

    w = torch.tensor([weights[0], weights[1], 0.0])
    three = adapt(small_losses, small_start(values), w, make(lr=0.1), 3, micro_batch=1)
    two = adapt(without_last, small_start(values), w[:2], make(lr=0.1), 3, micro_batch=1)
    assert all(torch.equal(three[name], two[name]) for name in three)


@settings(max_examples=20, deadline=None)
@given(st.lists(numbers, min_size=3, max_size=3), shares, st.sampled_from(OPTIMIZERS), st.sampled_from([None, 2]))
def test_the_same_inputs_repeat_bitwise(values, weights, make, micro_batch) -> None:
    def once() -> list[Tensor]:
        params = {name: p.requires_grad_() for name, p in small_start(values).items()}
        w, lr = torch.tensor(weights, requires_grad=True), torch.tensor(0.1, requires_grad=True)
        adapted = adapt(small_losses, params, w, make(lr=lr), 3, micro_batch)
        grads = torch.autograd.grad(sum(p.square().sum() for p in adapted.values()), [w, lr, *params.values()])
        return [*adapted.values(), *grads]

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


def test_a_rate_of_zero_still_gets_its_gradient() -> None:
    lr = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    params, weights = toy_start(), make_weights()[:3]
    sum(p.sum() for p in adapt(toy_losses, params, weights, SGD(lr=lr)).values()).backward()
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    grads = torch.autograd.grad((weights * toy_losses(leaves)).sum(), list(leaves.values()))
    assert float(lr.grad) == pytest.approx(-float(sum(g.sum() for g in grads)))


# ------------------------------------------------------------------------------- cost


def counted(calls: list[Tensor | None]) -> Callable[[Params, Tensor | None], Tensor]:
    def losses(params: Params, index: Tensor | None) -> Tensor:
        calls.append(index)
        return toy_losses(params, index)

    return losses


@pytest.mark.parametrize(("wanted", "expected"), [("none", 0), ("weights", 4), ("params", 4), ("rates", 3)])
def test_passes(wanted: str, expected: int) -> None:
    """K plain ones; one more for each step whose gradient is asked for."""
    calls: list[Tensor | None] = []
    params, weights, lr = toy_start(), make_weights()[:3], torch.tensor(0.1, dtype=torch.float64)
    for tensor in {"none": [], "weights": [weights], "params": params.values(), "rates": [lr]}[wanted]:
        tensor.requires_grad_()
    adapted = adapt(counted(calls), params, weights, SGD(lr=lr), steps=4)
    assert len(calls) == 4
    assert adapted["a"].requires_grad is (wanted != "none")
    if wanted != "none":
        adapted["a"].sum().backward()
    assert len(calls) == 4 + expected


def test_without_grad_mode_nothing_is_kept() -> None:
    params = {name: p.requires_grad_() for name, p in toy_start().items()}
    with torch.no_grad():
        assert not adapt(toy_losses, params, make_weights()[:3], SGD(lr=0.1))["a"].requires_grad


class Saved:
    """Stands for a tensor saved by an autograd graph, and counts how many live."""

    live = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.live += 1
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self) -> None:
        Saved.live -= 1


def saved_tensors(run: Adapt, steps: int) -> tuple[int, int]:
    """Saved by graphs after the forward, and at most until the end of the backward."""
    params = {name: p.requires_grad_() for name, p in lora_start().items()}
    weights = make_weights(steps).requires_grad_()
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        adapted = run(params, weights, torch.tensor(0.1, dtype=torch.float64))
        after_forward = Saved.live
        sum(p.sum() for p in adapted.values()).backward()
    return after_forward, Saved.peak


def test_the_tape_holds_no_graphs() -> None:
    """θ, g and momentum of each step, with the weights, rates and start; the peak grows by the tape alone."""
    case, tensors = CASES["momentum"], len(lora_start())
    ends = {steps: saved_tensors(ours(case, steps), steps) for steps in (1, 2, 6)}
    for steps, (after_forward, _) in ends.items():
        assert after_forward == 2 + tensors + 3 * tensors * steps
    assert ends[6][1] - ends[2][1] == 3 * tensors * 4
    plain = {steps: saved_tensors(reference(case, steps), steps)[1] for steps in (1, 6)}
    assert plain[6] > 4 * plain[1]


def test_micro_batches_hold_the_graphs_of_their_examples_only() -> None:
    sizes: list[int] = []

    def losses(params: Params, index: Tensor | None) -> Tensor:
        sizes.append(M if index is None else len(index))
        return practice(params, index)

    weights = make_weights().requires_grad_()
    sum(p.sum() for p in adapt(losses, lora_start(), weights, SGD(lr=0.1), 2, micro_batch=2).values()).backward()
    assert sizes == [2, 2, 1] * 2 + [1, 2, 2] * 2  # the backward goes from the last to the first


# ------------------------------------------------------------------------------- traps


def test_double_backward_raises_a_clear_error() -> None:
    weights = make_weights()[:3].requires_grad_()
    adapted = adapt(toy_losses, toy_start(), weights, SGD(lr=0.1))
    (first,) = torch.autograd.grad(adapted["a"].square().sum(), weights, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="differentiated again"):
        first.sum().backward()


def test_losses_that_changed_before_backward_raise() -> None:
    dropout, weights = torch.nn.Dropout(0.5), make_weights()[:3].requires_grad_()
    torch.manual_seed(0)
    start = {"a": torch.ones(50, dtype=torch.float64)}
    adapted = adapt(lambda p, _: dropout(p["a"]).exp().sum() * torch.ones(3).double(), start, weights, SGD(lr=0.1))
    with pytest.raises(ConfigError, match="turn dropout off"):
        adapted["a"].sum().backward()


def test_a_start_updated_in_place_before_backward_raises() -> None:
    params = {name: p.requires_grad_() for name, p in toy_start().items()}
    adapted = adapt(toy_losses, params, make_weights()[:3], SGD(lr=0.1))
    with torch.no_grad():
        params["a"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        adapted["a"].sum().backward()


def test_backward_runs_under_the_autocast_state_of_forward() -> None:
    def losses(params: Params, index: Tensor | None) -> Tensor:
        x = torch.linspace(-1, 1, 24).reshape(3, 8)[torch.arange(3) if index is None else index]
        return (x @ params["a"]).tanh().float().square().sum(1)

    def gradient(inside: bool) -> Tensor:
        weights = torch.ones(3, requires_grad=True)
        start = {"a": torch.linspace(-0.5, 0.7, 32).reshape(8, 4)}
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(p.square().sum() for p in adapt(losses, start, weights, SGD(lr=0.1), 2, 2).values())
            if inside:
                return torch.autograd.grad(loss, weights)[0]
        return torch.autograd.grad(loss, weights)[0]

    assert torch.equal(gradient(inside=True), gradient(inside=False))
    plain = torch.ones(3, requires_grad=True)
    start = {"a": torch.linspace(-0.5, 0.7, 32).reshape(8, 4)}
    exact = torch.autograd.grad(adapt(losses, start, plain, SGD(lr=0.1), 2)["a"].square().sum(), plain)[0]
    assert not torch.equal(gradient(inside=False), exact)
    assert torch.allclose(gradient(inside=False), exact, rtol=0.05)


def test_inference_mode_adapts_too() -> None:
    expected = adapt(toy_losses, toy_start(), make_weights()[:3], SGD(lr=torch.tensor(0.1)), 2)
    with torch.inference_mode():
        adapted = adapt(toy_losses, toy_start(), make_weights()[:3], SGD(lr=torch.tensor(0.1)), 2)
    assert all(torch.equal(adapted[name], p) for name, p in expected.items())


def test_losses_linear_in_the_parameters() -> None:
    c, w = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5], requires_grad=True)
    start = torch.tensor(1.0, requires_grad=True)
    adapt(lambda p, _: c * p["t"], {"t": start}, w, SGD(lr=0.1), 3)["t"].backward()
    assert torch.allclose(w.grad, -0.3 * c)
    assert float(start.grad) == 1.0
    (alone,) = torch.autograd.grad(adapt(lambda p, _: c * p["t"], {"t": start}, w.detach(), SGD(lr=0.1), 3)["t"], start)
    assert float(alone) == 1.0


def test_a_parameter_the_losses_ignore_keeps_its_value_and_gradient() -> None:
    spare = torch.ones(2, dtype=torch.float64, requires_grad=True)
    adapted = adapt(toy_losses, {**toy_start(), "spare": spare}, make_weights()[:3], AdamW(lr=0.1), 2)
    assert torch.equal(adapted["spare"], spare)
    adapted["spare"].sum().backward()
    assert torch.equal(spare.grad, torch.ones(2, dtype=torch.float64))


def test_zero_steps_are_the_identity_and_share_no_memory() -> None:
    params = toy_start()
    adapted = adapt(toy_losses, params, make_weights()[:3], AdamW(lr=0.1), steps=0)
    assert all(torch.equal(adapted[name], p) and adapted[name] is not p for name, p in params.items())


# ------------------------------------------------------------------------------- what cannot be used

GOOD = {"params": toy_start(), "weights": torch.ones(3, dtype=torch.float64), "optimizer": SGD(lr=0.1), "steps": 2}
BAD: dict[str, tuple[dict, type[MassError], str]] = {
    "no params": ({"params": {}}, ConfigError, "params is empty"),
    "integer params": ({"params": {"a": torch.ones(2, dtype=torch.int64)}}, ShapeError, "floating-point"),
    "empty tensor": ({"params": {"a": torch.ones(0)}}, ShapeError, r"shape \[0\]"),
    "too many weights": ({"weights": torch.ones(4)}, ShapeError, r"\[3\], expected \[4\]"),
    "no weights": ({"weights": torch.ones(0)}, ShapeError, "at least one example"),
    "integer weights": ({"weights": torch.ones(3, dtype=torch.int64)}, ShapeError, "floating-point"),
    "weights of other steps": ({"weights": torch.ones(3, 3)}, ShapeError, "steps = 2"),
    "three axes of weights": ({"weights": torch.ones(2, 3, 1)}, ShapeError, "floating-point"),
    "weights elsewhere": (
        {"weights": torch.ones(3, device="meta")},
        ShapeError,
        r"weights are on meta and the parameters on cpu, expected one device; give weights\.to\('cpu'\)",
    ),
    "no layers": ({"checkpoint": True}, ConfigError, "checkpoint=True, but losses ran no layer"),
    "no layers in a budget": ({"checkpoint": True, "memory_gb": 1.0}, ConfigError, "checkpoint=True, but losses ran"),
    "negative steps": ({"steps": -1}, ConfigError, "steps = -1"),
    "micro_batch 0": ({"micro_batch": 0}, ConfigError, "micro_batch = 0"),
    "negative rate": ({"optimizer": SGD(lr=-0.1)}, ConfigError, "-0.1"),
    "negative rate tensor": ({"optimizer": AdamW(lr=torch.tensor(-1.0))}, ConfigError, "at least 0"),
    "nan rate": ({"optimizer": SGD(lr=math.nan)}, ConfigError, "finite"),
    "unknown rate name": ({"optimizer": SGD(lr={"a": 0.1, "b": 0.1, "bb": 1.0})}, ConfigError, "did you mean 'b'"),
    "missing rate name": ({"optimizer": SGD(lr={"a": 0.1})}, ConfigError, "no learning rate for 'b'"),
    "rates of other steps": ({"optimizer": SGD(lr=torch.ones(3))}, ShapeError, r"\[steps\] = \[2\]"),
    "rates of adapters": ({"optimizer": SGD(lr=torch.ones(1, 3))}, ShapeError, r"shape \[1, 3\], expected \[\] or"),
    "detached": ({"losses": lambda p, i: toy_losses(p, i).detach()}, ConfigError, "do not depend on params"),
    "scalar loss": ({"losses": lambda p, i: toy_losses(p, i).sum()}, ShapeError, r"\[\], expected \[3\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_raises_one_line(name: str) -> None:
    change, kind, text = BAD[name]
    with pytest.raises(kind, match=text) as caught:
        adapt(**{"losses": toy_losses, **GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(lr=0.1, momentum=1.0),
        lambda: AdamW(lr=0.1, betas=(0.9, 1.5)),
        lambda: AdamW(lr=0.1, eps_root=-1e-8),
        lambda: AdamW(lr=0.1, weight_decay=-1.0),
    ],
)
def test_optimizers_reject_bad_settings(make: Callable[[], Optimizer]) -> None:
    with pytest.raises(ConfigError, match="expected a number in"):
        make()


def test_state_is_float32_for_narrow_parameters_and_starts_at_zero() -> None:
    params = {"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}
    for optimizer in (SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1)):
        state = optimizer.init(params)
        assert all(s.dtype == torch.float32 and not s.any() and not s.requires_grad for s in state.values())
    assert SGD(lr=0.1).init(params) == {}
