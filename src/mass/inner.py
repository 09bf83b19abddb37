"""weights, losses, starting parameters -> adapted parameters, with exact meta-gradients in flat memory.

Inner loop: g_j = ∇_θ Σ_i w_{j,i} ℓ_i(θ_j),  (θ_{j+1}, s_{j+1}) = U(θ_j, g_j, s_j, r_j),  j = 0..K-1.

`adapt` is one autograd node: the gradient of anything computed from θ_K reaches the weights w, the start θ_0 and the
learning rates r. Its backward is the adjoint recursion derived in docs/engine.md. Losses are functions of parameters
only; nothing here knows what a language model is.

Legend: K steps, m examples, P parameter tensors.

References: arXiv 2603.03524 (the method); Franceschi et al. 2017, arXiv 1703.01785 (reverse hyper-gradients);
Pearlmutter 1994 (Hessian-vector products).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mass.errors import ConfigError, ShapeError, nearest
from mass.optimizers import SGD, AdamW, Optimizer, Rate, Rates, State, wide
from mass.types import Params

__all__ = ["SGD", "AdamW", "Losses", "Optimizer", "Rate", "Rates", "SecondDerivativeError", "State", "adapt"]

Losses = Callable[[Params, Tensor | None], Tensor]
"""(params, index) -> losses [len(index)] of the examples `index` (int64), of all m examples when it is None."""


class SecondDerivativeError(ConfigError, RuntimeError):
    """The gradient of an adaptation was itself differentiated."""


def adapt(
    losses: Losses,
    params: Params,
    weights: Float[Tensor, " m"] | Float[Tensor, "K m"],
    optimizer: Optimizer,
    steps: int = 1,
    micro_batch: int | None = None,
) -> Params:
    """Parameters after `steps` steps of `optimizer` on Σ_i w_i ℓ_i, as one autograd node; 0 steps are the identity.

    Gradients flow to `weights`, to `params` and to rate tensors; NOT to other tensors that `losses` captures. Where
    none of the three requires grad this costs K plain gradient passes and keeps nothing.

    The forward keeps K copies of (θ, g, state) and no graph. The backward calls `losses` again, so it must be the same
    function then: no dropout, and captured tensors unchanged. The autocast state of the forward is restored; any other
    context it needs (`sdpa_kernel(SDPBackend.MATH)`: fused attention has no second derivative) belongs inside
    `losses`. Losses must be finite where the weight is 0 too: the gradient of that weight depends on them.

    With `micro_batch=n` examples pass n at a time, in forward and backward: the memory is that of n examples' graphs.
    A stack of B tasks is B·m examples over parameters with a leading axis B: the gradient of the sum separates.

    Raises ConfigError or ShapeError on what cannot be used; SecondDerivativeError (from the second backward) when the
    meta-gradient itself is differentiated.
    """
    _check_arguments(params, weights, steps, micro_batch)
    graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(graph):
        params = {name: _ordinary(p) for name, p in params.items()}
        weights_Km = _weights_per_step(_ordinary(weights), steps)
        rates_KP = _rates_per_step(optimizer.lr, params, steps)
        chunks = _chunks(weights_Km.shape[1], micro_batch, weights.device)
        plan = _Plan(losses, optimizer, tuple(params), chunks, _autocast_state(weights.device.type))
        tensors = (weights_Km, rates_KP, *params.values())
        if graph and any(t.requires_grad for t in tensors):
            return dict(zip(params, _apply(_Adaptation, plan, *tensors), strict=True))
        with torch.no_grad():
            return _run(plan, weights_Km, rates_KP, params)


@dataclass(frozen=True)
class _Plan:
    """What an adaptation needs beside tensors."""

    losses: Losses
    optimizer: Optimizer
    names: tuple[str, ...]
    chunks: tuple[Tensor | None, ...]
    """Micro-batches: indices of examples, or one None for all."""
    autocast: dict[str, Any]


class _Step(NamedTuple):
    """One entry of the tape: where step j started, and the gradient it took."""

    params: Params
    grads: Params
    state: State


class _Adaptation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, weights_Km: Tensor, rates_KP: Tensor, *params: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        tape: list[_Step] = []
        adapted = _run(plan, weights_Km, rates_KP, dict(zip(plan.names, params, strict=True)), tape)
        ctx.plan = plan
        ctx.keys = [tuple(part) for part in tape[0]] if tape else []
        flat = [tensor for step in tape for part in step for tensor in part.values()]
        ctx.save_for_backward(weights_Km, rates_KP, *params, *flat)
        return tuple(adapted.values())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        plan: _Plan = ctx.plan
        weights_Km, rates_KP, *rest = ctx.saved_tensors
        tape = _unpack(rest[len(plan.names) :], ctx.keys)
        with torch.no_grad():
            grads = _recursion(plan, weights_Km, rates_KP, tape, cotangents, ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():  # create_graph=True
            return (None, *_Guard.guard(grads))
        return (None, *grads)


def _unpack(flat: Sequence[Tensor], keys: Sequence[tuple[str, ...]]) -> list[_Step]:
    stream, tape = iter(flat), list[_Step]()
    for _ in range(len(flat) // max(1, sum(map(len, keys)))):
        tape.append(_Step(*({key: next(stream) for key in part} for part in keys)))
    return tape


def _run(plan: _Plan, weights_Km: Tensor, rates_KP: Tensor, params: Params, tape: list[_Step] | None = None) -> Params:
    """The K steps, without a graph; writes them on the tape when there is one."""
    if len(weights_Km) == 0:
        return {name: p.detach().clone() for name, p in params.items()}
    params = {name: p.detach() for name, p in params.items()}
    state = plan.optimizer.init(params)
    for j, weights_m in enumerate(weights_Km):
        grads = _gradient(plan, params, weights_m)
        if tape is not None:
            tape.append(_Step(params, grads, state))
        params, state = plan.optimizer.update(params, grads, state, _rates_of(rates_KP[j], params), j)
    return params


def _recursion(
    plan: _Plan,
    weights_Km: Tensor,
    rates_KP: Tensor,
    tape: Sequence[_Step],
    cotangents: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Cotangents of θ_K -> those of (weights, rates, *θ_0): docs/engine.md, from the last step to the first."""
    needs_weights, needs_params = needs[0], any(needs[2:])
    bar_weights, bar_rates = torch.zeros_like(weights_Km), torch.zeros_like(rates_KP)
    bar_params = dict(zip(plan.names, cotangents, strict=True))
    bar_state = {name: torch.zeros_like(s) for name, s in tape[-1].state.items()} if tape else {}
    for j in reversed(range(len(tape))):
        bar_params, u, bar_state, bar_rates[j] = _pull_through_update(
            plan.optimizer, tape[j], rates_KP[j], j, bar_params, bar_state
        )
        wants_params = j > 0 or needs_params
        if wants_params or needs_weights:
            products, bar_weights[j] = _second_order_pass(
                plan, tape[j], weights_Km[j], u, wants_params=wants_params, wants_weights=needs_weights
            )
            bar_params = {name: bar + products[name] for name, bar in bar_params.items()} if wants_params else {}
    grads = (bar_weights, bar_rates, *(bar_params.get(name) for name in plan.names))
    return tuple(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


def _pull_through_update(
    optimizer: Optimizer, at: _Step, rates_P: Tensor, step: int, bar_params: Params, bar_state: State
) -> tuple[Params, Params, State, Tensor]:
    """Cotangents of (θ_{j+1}, s_{j+1}) -> those of θ_j, g_j (`u`), s_j and the rates, through U alone."""
    params, grads, state = (_leaves(part) for part in at)
    rates_P = rates_P.detach().requires_grad_()
    with torch.enable_grad():
        new_params, new_state = optimizer.update(params, grads, state, _rates_of(rates_P, params), step)
    pairs = [(new_params[k], bar) for k, bar in bar_params.items()] + [(new_state[k], b) for k, b in bar_state.items()]
    pulled = iter(
        torch.autograd.grad(
            [value for value, _ in pairs],
            [*params.values(), *grads.values(), *state.values(), rates_P],
            [bar for _, bar in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    )
    bars = [{name: next(pulled) for name in part} for part in (params, grads, state)]
    return bars[0], bars[1], bars[2], next(pulled)


def _second_order_pass(
    plan: _Plan, at: _Step, weights_m: Tensor, u: Params, *, wants_params: bool, wants_weights: bool
) -> tuple[Params, Tensor]:
    """H_j u (empty unless wanted) and J_j u [m] (zeros unless wanted), a micro-batch at a time.

    Both are the gradient of ⟨∇_θ Σ_i w_i ℓ_i, u⟩: for θ and for w. Without the former autograd walks only the path from
    the inner gradient to the weights, not the one through the activations.
    """
    params = _leaves(at.params)
    weights_m = weights_m.detach().requires_grad_(wants_weights)
    inputs = (*(params.values() if wants_params else ()), *((weights_m,) if wants_weights else ()))
    sums = [torch.zeros_like(tensor) for tensor in inputs]
    again = {name: torch.zeros_like(g) for name, g in at.grads.items()}
    for index in plan.chunks:
        objective = _objective(plan, params, weights_m, index)
        with torch.enable_grad():
            grads = _grad(objective, params, create_graph=True)
            along = torch.stack([(g * u[name]).sum().to(objective) for name, g in grads.items()]).sum()
        again = {name: total + grads[name].detach() for name, total in again.items()}
        if along.requires_grad:  # not so where the losses are linear in the parameters
            products = torch.autograd.grad(along, inputs, allow_unused=True, materialize_grads=True)
            sums = [total + product for total, product in zip(sums, products, strict=True)]
        del objective, grads, along
    _check_same_gradient(again, at.grads)
    bar_weights = sums.pop() if wants_weights else torch.zeros_like(weights_m)
    return dict(zip(params, sums, strict=False)), bar_weights


def _gradient(plan: _Plan, params: Params, weights_m: Tensor) -> Params:
    """g = ∇_θ Σ_i w_i ℓ_i(θ), a micro-batch at a time."""
    leaves = _leaves(params)
    total: Params = {}
    for index in plan.chunks:
        part = _grad(_objective(plan, leaves, weights_m.detach(), index), leaves)
        total = {name: total[name] + g for name, g in part.items()} if total else part
    return total


def _objective(plan: _Plan, params: Params, weights_m: Tensor, index: Tensor | None) -> Tensor:
    """Σ_i w_i ℓ_i(θ) over the examples `index`, with its graph."""
    with torch.enable_grad():
        with torch.autocast(**plan.autocast):
            values = plan.losses(params, index)
        chosen = weights_m if index is None else weights_m[index]
        if values.shape != chosen.shape:
            raise ShapeError(
                f"losses gave shape {list(values.shape)}, expected {list(chosen.shape)}: "
                f"one loss for each of the {len(chosen)} weights; make both the number of examples"
            )
        objective = (chosen.to(values.device) * values).sum()
    if not values.requires_grad:
        raise ConfigError(
            "losses gave values that do not depend on params, expected a differentiable function of them; "
            "use the params it is given, without detach or no_grad"
        )
    return objective


def _grad(objective: Tensor, params: Params, create_graph: bool = False) -> Params:
    grads = torch.autograd.grad(
        objective, list(params.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(params, grads, strict=True))


class _Guard(torch.autograd.Function):
    """Identity whose backward refuses."""

    @staticmethod
    def guard(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        anchor, kept = torch.zeros((), requires_grad=True), [g for g in grads if g is not None]
        stream = iter(_apply(_Guard, anchor, *kept))
        return [None if g is None else next(stream) for g in grads]

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004  # pyright: ignore
        return tuple(t.clone() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:  # noqa: ARG004  # pyright: ignore
        raise SecondDerivativeError(
            "the gradient of mass.inner.adapt was differentiated again, expected one backward only; "
            "detach it, or unroll the inner loop by hand with create_graph=True"
        )


def _apply(function: Any, *inputs: Any) -> tuple[Tensor, ...]:
    return function.apply(*inputs)  # `apply` is untyped


def _leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _rates_of(rates_P: Tensor, params: Params) -> dict[str, Tensor]:
    return {name: rate.to(p.device) for (name, p), rate in zip(params.items(), rates_P.unbind(), strict=True)}


def _chunks(count: int, size: int | None, device: torch.device) -> tuple[Tensor | None, ...]:
    if size is None or size >= count:
        return (None,)
    return torch.split(torch.arange(count, device=device), size)


def _autocast_state(device: str) -> dict[str, Any]:
    """Arguments of `torch.autocast` that bring the present state back, in another thread or after leaving it."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return {"device_type": device, "enabled": enabled, "dtype": dtype, "cache_enabled": False}


def _weights_per_step(weights: Tensor, steps: int) -> Tensor:
    if weights.ndim == 2 and len(weights) != steps:
        raise ShapeError(f"weights have shape {list(weights.shape)}, expected [m] or [steps, m] with steps = {steps}")
    return weights if weights.ndim == 2 else weights.expand(steps, -1)


def _rates_per_step(lr: Rate, params: Params, steps: int) -> Tensor:
    """Rates [K, P] in the order of `params`, differentiable in the tensors of `lr`."""
    named = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(params, lr)
    if unknown := [name for name in named if name not in params]:
        raise ConfigError(f"a learning rate for {unknown[0]!r}, which is no parameter{nearest(unknown[0], params)}")
    if missing := [name for name in params if name not in named]:
        raise ConfigError(f"no learning rate for {missing[0]!r}, expected one for each parameter; 0.0 freezes it")
    device = next(iter(params.values())).device
    columns: list[Tensor] = []
    for name, p in params.items():
        rate = named[name]
        rate = _ordinary(rate) if isinstance(rate, Tensor) else torch.tensor(rate, dtype=wide(p))
        if rate.shape not in ((), (steps,)):
            raise ShapeError(f"the rate of {name!r} has shape {list(rate.shape)}, expected [] or [steps] = [{steps}]")
        columns.append(rate.to(device, torch.promote_types(rate.dtype, wide(p))).expand(steps))
    rates_KP = torch.stack(columns, dim=1)
    if not bool(((rates_KP >= 0) & rates_KP.isfinite()).all()):
        low, high = float(rates_KP.min()), float(rates_KP.max())
        raise ConfigError(f"learning rates of {low:g} to {high:g}, expected finite ones of at least 0; clamp them")
    return rates_KP


def _check_arguments(params: Params, weights: Tensor, steps: int, micro_batch: int | None) -> None:
    if not params:
        raise ConfigError("params is empty, expected a dict of at least one tensor; give the adapter's parameters")
    for name, p in params.items():
        if not p.is_floating_point() or p.numel() == 0:
            raise ShapeError(
                f"parameter {name!r} is {p.dtype} of shape {list(p.shape)}, "
                "expected a non-empty floating-point tensor; leave it out or convert it"
            )
    if weights.ndim not in (1, 2) or weights.shape[-1] == 0 or not weights.is_floating_point():
        raise ShapeError(
            f"weights are {weights.dtype} of shape {list(weights.shape)}, "
            "expected floating-point [m] or [steps, m] with at least one example; skip the adaptation without examples"
        )
    if steps < 0:
        raise ConfigError(f"steps = {steps}, expected at least 0; 0 returns the parameters unchanged")
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"micro_batch = {micro_batch}, expected at least 1; None passes all examples at once")


def _check_same_gradient(again: Params, taken: Params) -> None:
    """Losses that changed since the forward (dropout, base weights updated in place) would give wrong gradients."""
    norm, error = _norm(taken), _norm({name: g - taken[name] for name, g in again.items()})
    if error > 0.05 * norm:
        raise ConfigError(
            f"losses gave a gradient in backward that is {error / norm if norm else error:.0%} off the forward's, "
            "expected the same; turn dropout off, and leave the tensors they capture unchanged until backward"
        )


def _norm(params: Params) -> float:
    squares = [p.to(wide(p)).square().sum() for p in params.values()]
    return float(torch.stack([square.to(squares[0]) for square in squares]).sum().sqrt())
