"""The reference the engine is tested against: a plain differentiable unroll, formulas written out a second time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, dict[str, Tensor], Tensor, int], Tensor]


def sgd(momentum: float = 0.0) -> Rule:
    def rule(p: Tensor, g: Tensor, memory: dict[str, Tensor], rate: Tensor, _: int) -> Tensor:
        memory["d"] = momentum * memory["d"] + g if "d" in memory else g
        return p - rate * memory["d"]

    return rule


def adamw(betas: Sequence[float], eps: float, eps_root: float, weight_decay: float) -> Rule:
    def rule(p: Tensor, g: Tensor, memory: dict[str, Tensor], rate: Tensor, step: int) -> Tensor:
        first, second = betas
        memory["m"] = first * memory.get("m", torch.zeros_like(p)) + (1 - first) * g
        memory["v"] = second * memory.get("v", torch.zeros_like(p)) + (1 - second) * g**2
        unbiased_m, unbiased_v = memory["m"] / (1 - first**step), memory["v"] / (1 - second**step)
        return p * (1 - rate * weight_decay) - rate * unbiased_m / ((unbiased_v + eps_root) ** 0.5 + eps)

    return rule


def unroll(
    losses: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    weights: Tensor,
    rule: Rule,
    rates: Mapping[str, Tensor],
    steps: int,
) -> dict[str, Tensor]:
    """θ_K with its whole graph. `weights` [m] or [steps, m]; each rate 0-d or [steps]."""
    theta, memory = dict(params), {name: dict[str, Tensor]() for name in params}
    for step in range(steps):
        w = weights[step] if weights.ndim == 2 else weights
        total = (w * losses(theta, None)).sum()
        grads = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        rate = {name: r[step] if r.ndim else r for name, r in rates.items()}
        theta = {
            name: rule(p, g, memory[name], rate[name], step + 1)
            for (name, p), g in zip(theta.items(), grads, strict=True)
        }
    return theta
