"""B tasks of N examples, each with an adapter: as a stack, and one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inner_problem import Adapt, Params
from mass.metagrad import Optimizer, adapt

B, N = 3, 4


def stack_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, N, 2, generator=generator).double(), torch.randn(B, N, generator=generator).double()


def stack_losses(params: Params, index: Tensor | None) -> Tensor:
    x, y = (t.to(params["a"]) for t in stack_data())
    values = (torch.einsum("bmd,bd->bm", x, params["a"]).tanh() * params["b"][:, None] - y) ** 2
    return values.flatten() if index is None else values.flatten()[index]


def stack_start() -> Params:
    generator = torch.Generator().manual_seed(6)
    return {"a": torch.randn(B, 2, generator=generator).double(), "b": torch.randn(B, generator=generator).double()}


def one_of_the_stack(b: int) -> Callable[[Params, Tensor | None], Tensor]:
    def losses(params: Params, index: Tensor | None) -> Tensor:
        x, y = (t[b] for t in stack_data())
        values = ((x @ params["a"]).tanh() * params["b"] - y) ** 2
        return values if index is None else values[index]

    return losses


def stack_loss(params: Params, scale: Tensor | None = None) -> Tensor:
    values = params["a"].sin().sum(1) * params["b"]
    return (values if scale is None else values * scale).sum()


def in_a_stack(make: Callable[..., Optimizer], steps: int, micro_batch: int | None = None, **options: Any) -> Adapt:
    def run(params: Params, w: Tensor, lr: Any) -> Params:
        return adapt(stack_losses, params, w.flatten(), make(lr=lr), steps, micro_batch, **options)

    return run


def one_by_one(make: Callable[..., Optimizer], steps: int, **options: Any) -> Adapt:
    def run(params: Params, w: Tensor, lr: Any) -> Params:
        rows = [{n: p[b] for n, p in params.items()} for b in range(B)]
        done = [adapt(one_of_the_stack(b), row, w[b], make(lr=lr), steps, **options) for b, row in enumerate(rows)]
        return {n: torch.stack([row[n] for row in done]) for n in params}

    return run


def stack_inputs(rate: float = 0.1) -> tuple[Params, Tensor, Tensor]:
    weights = torch.rand(B, N, generator=torch.Generator().manual_seed(7)).double()
    return stack_start(), weights, torch.tensor(rate, dtype=torch.float64)
