"""The reference the engine is tested against: a plain differentiable unroll, formulas written out a second time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass
class Clip:
    """g · c / (‖g‖ + 1e-6) where that is smaller than g, ‖g‖² the sum of squares over all tensors."""

    norm: float
    active: list[bool] = field(default_factory=list[bool])
    """Whether it changed the gradient, for each step so far."""

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor]:
        factor = self.norm / (sum((g * g).sum() for g in grads) ** 0.5 + 1e-6)
        self.active.append(bool(factor < 1))
        return [g * factor for g in grads] if self.active[-1] else list(grads)


def unroll(
    losses: Callable[..., Tensor],
    params: Mapping[str, Tensor],
    weights: Tensor,
    rule: Rule,
    rates: Mapping[str, Tensor],
    steps: int,
    *,
    clip: Callable[[Sequence[Tensor]], list[Tensor]] = list,
    last: int | None = None,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """θ_K with its whole graph. `weights` [m] or [steps, m]; each rate 0-d or [steps].

    `last`: only so many steps have a graph, those before count as θ + constant. `first_order`: the gradients of each
    example are constants, their weights are not.
    """
    theta, memory = dict(params), {name: dict[str, Tensor]() for name in params}
    detached = 0 if last is None else max(0, steps - last)
    for step in range(steps):
        w = weights[step] if weights.ndim == 2 else weights
        grads = constant_gradients(losses, theta, w) if first_order else graph_gradients(losses, theta, w)
        rate = {name: r[step] if r.ndim else r for name, r in rates.items()}
        theta = {
            name: rule(p, g, memory[name], rate[name], step + 1)
            for (name, p), g in zip(theta.items(), clip(grads), strict=True)
        }
        if step < detached:
            theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
            memory = {name: {key: s.detach() for key, s in m.items()} for name, m in memory.items()}
        if step == detached - 1:
            theta = {name: params[name] + (p - params[name]).detach() for name, p in theta.items()}
    return theta


def graph_gradients(losses: Callable[..., Tensor], theta: Mapping[str, Tensor], w: Tensor) -> Sequence[Tensor]:
    return torch.autograd.grad((w * losses(theta, None)).sum(), list(theta.values()), create_graph=True)


def constant_gradients(losses: Callable[..., Tensor], theta: Mapping[str, Tensor], w: Tensor) -> Sequence[Tensor]:
    at = {name: p.detach().requires_grad_() for name, p in theta.items()}
    per_example = [torch.autograd.grad(loss, list(at.values()), retain_graph=True) for loss in losses(at, None)]
    return [sum(share * g for share, g in zip(w, column, strict=True)) for column in zip(*per_example, strict=True)]
