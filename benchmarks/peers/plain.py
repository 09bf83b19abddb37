"""The plain unroll, and the unroll that recomputes each inner step (torch.utils.checkpoint)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from metagrad_problem import Gradients, MetaGradient, Params, Problem
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def prepare(problem: Problem, checkpointed: bool = False) -> MetaGradient:
    def meta_gradient() -> Gradients:
        params, weights = problem.leaves()
        adapted = unroll(problem.losses, params, weights, problem.setting.rate, problem.setting.steps, checkpointed)
        return gradients(problem.outer(adapted), params, weights)

    return meta_gradient


def unroll(
    losses: Callable[[Params], Tensor], params: Params, weights: Tensor, rate: float, steps: int, checkpointed: bool
) -> Params:
    """θ_K of SGD with its whole graph, or with that of one step at a time."""
    names = list(params)

    def step(weights: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        theta = dict(zip(names, values, strict=True))
        with torch.enable_grad():
            loss = (weights * losses(theta)).sum()
            grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        return tuple(p - rate * g for p, g in zip(theta.values(), grads, strict=True))

    values = tuple(params.values())
    for _ in range(steps):
        values = checkpoint(step, weights, *values, use_reentrant=False) if checkpointed else step(weights, *values)
    return dict(zip(names, values, strict=True))


def gradients(loss: Tensor, params: Params, weights: Tensor) -> Gradients:
    found = torch.autograd.grad(loss, [weights, *params.values()])
    return dict(zip(["w", *params], found, strict=True))
