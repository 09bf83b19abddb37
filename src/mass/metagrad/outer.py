"""Differentiate an outer loss through the inner loop of a stack of tasks.

The results are `u = dL/ds` (attribution), `dL/dtheta` (the solver term) and `dL/d log rate` for a stack of B tasks that
share theta and the rates. Inner and outer losses are functions of parameters; nothing here knows language models.
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
from mass.metagrad.recursion import Watch
from mass.types import Params


@dataclass(frozen=True)
class MetaGradients:
    """Gradients of the sum of outer losses, over those of the B tasks whose gradient is finite."""

    outer_loss: float
    """Sum over all B tasks; not finite if one task's loss is not."""
    scores: Float[Tensor, "B m"]
    theta: Params
    log_rates: Params
    finite: Tensor
    """[B] bool, True for a task whose gradient is finite; the others add nothing."""
    norms: Float[Tensor, " B"]
    """Norm of each task's gradient with respect to its start, before clipping."""


InnerLoop = Callable[[Params, Tensor, Params], Params]
"""(stack of starts [B, ...], weights of the practice losses, rates by tensor name) -> stack of adapted parameters."""


def inner_loop(
    losses: Losses,
    config: InnerConfig,
    micro_batch: int | None,
    spare_gb: float | None = None,
    watch: Watch | None = None,
) -> InnerLoop:
    """Return the configured inner loop on the practice losses of a stack.

    `micro_batch` (examples in a pass) applies only where the configuration sets no memory limit, and so does `spare_gb`
    (gigabytes that the device can spare). `watch` is called after each step with the number of steps done and the
    parameters.
    """

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
            watch=watch,
        )

    return run


def optimizer_of(config: InnerConfig, rates: Params) -> Optimizer:
    """Return the configured update rule with these learning rates by tensor name."""
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
        weigh: (scores [B, m], alive [B] bool) -> the weights of the practice losses, differentiable in the scores, and
            0 for tasks that are not alive.
        log_rates: logarithm of each tensor's inner learning rate, scalars.
        outer: adapted parameters (stacked, detached) -> parts that sum to the outer loss; each part is differentiated
            before the next is requested, so only one part's graph is alive at a time.
        max_norm: largest norm of one task's gradient with respect to its start; a longer gradient is scaled down to it.
            Otherwise one task with a steep inner loop could dominate the batch.
    """
    scores = scores.detach().requires_grad_()
    # A rate and a start for each task, so that one backward gives every task's own gradient, to check and to clip.
    rates = {name: t.detach().exp().expand(1, len(scores)).clone().requires_grad_() for name, t in log_rates.items()}
    stack = {name: t.expand(len(scores), *t.shape).detach().requires_grad_() for name, t in theta.items()}

    def adapt_alive(alive: Tensor) -> Params:
        return inner(stack, weigh(scores, alive).flatten(), rates)

    adapted = adapt_alive(torch.ones(len(scores), dtype=torch.bool, device=scores.device))
    total, cotangent = outer_gradient(outer, adapted)
    finite = _finite_tasks(cotangent, adapted)
    # A zero cotangent does not remove a task from the backward: its steps on the tape are not finite, and 0 times
    # infinity is NaN. So the stack is adapted again with zero weights for such tasks.
    if not finite.all():
        del adapted  # frees its tape before as much memory is needed again
        adapted = adapt_alive(finite)
    cotangent = [for_tasks(finite.to(scores), c) for c in cotangent]
    inputs = [scores, *stack.values(), *rates.values()]
    by_scores, *found = torch.autograd.grad(list(adapted.values()), inputs, cotangent, materialize_grads=True)
    by_start, by_rates = found[: len(stack)], found[len(stack) :]
    norms = problem_norms(by_start)
    factors = finite * shortening(norms, max_norm) if max_norm < math.inf else finite.to(scores)
    # d/d log r = r · d/dr, hence the factor of the rates.
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
    """Return the norm of each task's gradient over all tensors [B, ...]; infinite where it is not finite."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0)
    return squares.sqrt().nan_to_num(nan=math.inf, posinf=math.inf)


def shortening(norms: Float[Tensor, " B"], max_norm: float) -> Float[Tensor, " B"]:
    """Return the factor that brings each norm down to a finite `max_norm`: at most 1, and 0 for an infinite norm."""
    return max_norm / norms.clamp_min(max_norm)


def for_tasks(factors: Float[Tensor, " B"], values: Tensor) -> Tensor:
    """Multiply `values` [B, ...] by a factor for each task; a factor of 0 gives 0 also where a value is not finite."""
    factors = beside(factors, values)
    return (factors * values).masked_fill(factors == 0, 0.0)


def outer_gradient(outer: Callable[[Params], Iterable[Tensor]], params: Params) -> tuple[float, list[Tensor]]:
    """Return the sum of the parts and its gradient with respect to `params`, with one part's graph alive at a time."""
    leaves = {name: t.detach().requires_grad_() for name, t in params.items()}
    total = 0.0
    for part in outer(leaves):
        part.backward()
        total += float(part.detach())
    return total, [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves.values()]


def _finite_tasks(cotangent: list[Tensor], adapted: Params) -> Tensor:
    """Return [B] bool: True where a task's adapted parameters, and the outer gradient in them, are finite."""
    both = [*cotangent, *(t.detach() for t in adapted.values())]
    return torch.stack([t.flatten(1).isfinite().all(1) for t in both]).all(0)
