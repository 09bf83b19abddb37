"""Inner losses and an outer loss, as functions of parameters -> exact gradients through the adaptation.

Gives `u = dL/ds` (attribution), `dL/dtheta` (the solver term) and `dL/d log rate` for a stack of B tasks that share
theta and the rates. Knows nothing of language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import InnerConfig
from mass.metagrad.inner_loop import adapt
from mass.metagrad.objective import Losses
from mass.metagrad.optimizers import SGD, AdamW, Optimizer, beside
from mass.types import Params


@dataclass(frozen=True)
class MetaGradients:
    """Gradients of the sum of the outer losses of the B tasks whose gradient is finite."""

    outer_loss: float
    """The sum over all B tasks: not finite where that of one is not."""
    scores: Float[Tensor, "B m"]
    theta: Params
    log_rates: Params
    finite: Tensor
    """[B] bool; a task whose gradient is not finite adds nothing."""
    norms: Float[Tensor, " B"]
    """Of each task's gradient with respect to its start, before clipping."""


InnerLoop = Callable[[Params, Tensor, Params], Params]
"""(stack of starts [B, ...], weights of the practice losses, rates by tensor name) -> stack of adapted parameters."""


def inner_loop(
    losses: Losses, config: InnerConfig, micro_batch: int | None, spare_gb: float | None = None
) -> InnerLoop:
    """The inner loop as configured, on the practice losses of a stack; `micro_batch` and `spare_gb` are used without a
    memory limit."""

    def run(stack: Params, weights: Tensor, rates: Params) -> Params:
        return adapt(
            losses,
            stack,
            weights,
            optimizer=optimizer_of(config, rates),
            steps=config.steps,
            micro_batch=micro_batch if config.memory_gb is None else config.micro_batch,
            mode=config.mode,
            stacked=True,
            memory_gb=config.memory_gb,
            checkpoint=config.checkpoint,
            spare_gb=spare_gb,
        )

    return run


def optimizer_of(config: InnerConfig, rates: Params) -> Optimizer:
    """The inner update with these learning rates by tensor name."""
    if config.optimizer == "adamw":
        return AdamW(
            rates,
            betas=config.betas,
            eps_root=config.eps_root,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )
    return SGD(rates, momentum=config.momentum, clip_norm=config.clip_norm)


def meta_gradients(
    inner: InnerLoop,
    weigh: Callable[[Tensor, Tensor], Tensor],
    scores: Float[Tensor, "B m"],
    theta: Params,
    log_rates: Params,
    outer: Callable[[Params], Iterable[Tensor]],
    max_norm: float = math.inf,
) -> MetaGradients:
    """Adapt a stack of B copies of `theta` on losses weighted by `weigh(scores)`, and differentiate `outer` back.

    Args:
        weigh: (scores [B, m], alive [B] bool) -> the weights of the practice losses, differentiable in the scores,
            and 0 for tasks that are not alive.
        log_rates: logarithm of each tensor's inner learning rate, scalars.
        outer: adapted parameters (stacked, without history) -> parts that sum to the outer loss; each part is
            differentiated before the next is asked for, so only one part's graph is alive at a time.
        max_norm: a task whose gradient with respect to its start is longer counts less, so that it has this norm. Else
            a task at which the inner loop is steep would speak for all.
    """
    scores = scores.detach().requires_grad_()
    rates = {name: t.detach().exp().expand(1, len(scores)).clone().requires_grad_() for name, t in log_rates.items()}
    stack = {name: t.expand(len(scores), *t.shape).detach().requires_grad_() for name, t in theta.items()}

    def adapt_alive(alive: Tensor) -> Params:
        return inner(stack, weigh(scores, alive).flatten(), rates)

    adapted = adapt_alive(torch.ones(len(scores), dtype=torch.bool, device=scores.device))
    total, cotangent = outer_gradient(outer, adapted)
    finite = _finite_tasks(cotangent, adapted)
    if not finite.all():  # its steps hold what is not finite, and 0 times that is NaN: take them out of the tape
        del adapted  # and what it kept, before as much is kept again
        adapted = adapt_alive(finite)
    cotangent = [for_tasks(finite.to(scores), c) for c in cotangent]
    inputs = [scores, *stack.values(), *rates.values()]
    by_scores, *found = torch.autograd.grad(list(adapted.values()), inputs, cotangent, materialize_grads=True)
    by_start, by_rates = found[: len(stack)], found[len(stack) :]
    norms = problem_norms(by_start)
    factors = finite * shortening(norms, max_norm) if max_norm < math.inf else finite.to(scores)
    return MetaGradients(
        total,
        for_tasks(factors, by_scores),
        {name: for_tasks(factors, g).sum(0) for name, g in zip(stack, by_start, strict=True)},
        {
            name: for_tasks(factors, g[0]).sum() * rates[name][0, 0].detach()
            for name, g in zip(rates, by_rates, strict=True)
        },
        finite,
        norms,
    )


def problem_norms(grads: Iterable[Tensor]) -> Float[Tensor, " B"]:
    """Of each task's gradient, over all tensors [B, ...]; infinite where it is not finite."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0)
    return squares.sqrt().nan_to_num(nan=math.inf, posinf=math.inf)


def shortening(norms: Float[Tensor, " B"], max_norm: float) -> Float[Tensor, " B"]:
    """What brings each gradient to a finite `max_norm`: 1 where it is not longer, 0 where it is infinite."""
    return max_norm / norms.clamp_min(max_norm)


def for_tasks(factors: Float[Tensor, " B"], values: Tensor) -> Tensor:
    """`values` [B, ...] times a factor for each task; a factor of 0 also silences what is not finite."""
    factors = beside(factors, values)
    return (factors * values).masked_fill(factors == 0, 0.0)


def outer_gradient(outer: Callable[[Params], Iterable[Tensor]], params: Params) -> tuple[float, list[Tensor]]:
    """Sum of the parts and its gradient with respect to `params`, one part's graph at a time."""
    leaves = {name: t.detach().requires_grad_() for name, t in params.items()}
    total = 0.0
    for part in outer(leaves):
        part.backward()
        total += float(part.detach())
    return total, [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves.values()]


def _finite_tasks(cotangent: list[Tensor], adapted: Params) -> Tensor:
    both = [*cotangent, *(t.detach() for t in adapted.values())]
    return torch.stack([t.flatten(1).isfinite().all(1) for t in both]).all(0)
