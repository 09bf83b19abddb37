"""Approximate H u and J u by central differences of gradients and losses at θ ± ε u.

No second derivative is needed. Each adapter of a stack has a step ε of its own, so that a task whose outer gradient is
small compared with the others' is as accurate as alone. Unless the mode sets it, ‖ε u‖ is ∛(machine epsilon) · ‖θ‖:
there the errors from rounding and from curvature are about equal.

Legend: m examples, B adapters of a stack (one without a stack).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mass.metagrad.memory import Chunks, Schedule
from mass.metagrad.objective import Objective, Sum, leaves
from mass.metagrad.optimizers import adapter_norms, scale_adapters, wide
from mass.types import Params

LEAST_NORM = 1e-3
"""Least ‖θ‖ that the step is computed from, so that a start at zero has a step too."""
REVEALING_STEP = 0.1
"""Distance, relative to ‖θ‖, by which adapters are moved to see whose losses change."""


def central_differences(
    objective: Objective,
    schedule: Schedule,
    at: Params,
    weights_m: Float[Tensor, " m"],
    u: Params,
    owners_m: Int[Tensor, " m"] | None,
    relative: float | None,
) -> tuple[Params, Float[Tensor, " m"]]:
    """Return H u and J u [m].

    Args:
        owners_m: the adapter of each example in a stack; None without a stack.
        relative: ‖ε u‖ / ‖θ‖; None for the cube root of the parameters' machine epsilon.
    """
    stacked = owners_m is not None
    if relative is None:
        relative = float(max(torch.finfo(p.dtype).eps for p in at.values()) ** (1 / 3))
    sizes_B = adapter_norms(u, stacked)
    # An adapter with u = 0 is not moved, as its step would be infinite; a norm that is not finite makes its result NaN.
    moves = sizes_B != 0
    if not moves.any():
        return {name: torch.zeros_like(d) for name, d in u.items()}, torch.zeros_like(weights_m)
    steps_B = relative * adapter_norms(at, stacked).clamp_min(LEAST_NORM) / sizes_B.where(moves, 1.0)
    inverse_B = (0.5 / steps_B).where(moves, 0.0)
    move = scale_adapters({name: d.to(wide(d)) for name, d in u.items()}, steps_B.where(moves, 0.0))
    # float64: the difference of two nearly equal losses would lose most digits of a float32 sum.
    products, values_m = Sum(), torch.zeros(len(weights_m), dtype=torch.float64, device=weights_m.device)
    for sign in (1.0, -1.0):
        params = leaves(_moved(at, move, sign))
        for index in schedule.gradient_chunks:
            grads, values = objective.gradient(
                params, weights_m.detach(), index, checkpoint=schedule.checkpoint_gradient
            )
            products.add(scale_adapters({name: g.to(wide(g)) for name, g in grads.items()}, sign * inverse_B))
            values_m.index_add_(0, _rows(index, values_m), values.to(values_m), alpha=sign)
            del grads  # so that two micro-batches' gradients are never alive together
    inverse_m = inverse_B[owners_m] if stacked else inverse_B
    return products.value, (values_m * inverse_m.to(values_m)).to(weights_m.dtype)


@torch.no_grad()
def owners(objective: Objective, chunks: Chunks, at: Params, like: Float[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Find the adapter of a stack that each example belongs to, from which losses change with which adapters.

    The losses function alone knows which row uses which adapter, and J u of an example needs that adapter's step.
    Every adapter is moved, to one side or the other according to one bit of its number at a time: ⌈log2 B⌉ + 2 forward
    passes. An example whose loss depends on no adapter gets an arbitrary one.
    """
    count = len(next(iter(at.values())))
    if count == 1:
        return torch.zeros(len(like), dtype=torch.long, device=like.device)
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(p.shape, generator=generator).to(p.device, wide(p)) for name, p in at.items()}
    steps_B = REVEALING_STEP * adapter_norms(at, True).clamp_min(LEAST_NORM) / adapter_norms(noise, True)
    move, numbers_B = scale_adapters(noise, steps_B), torch.arange(count, device=like.device)
    ones_B = torch.ones_like(steps_B)

    def losses(signs_B: Tensor) -> Tensor:
        params, values_m = _moved(at, scale_adapters(move, signs_B), 1.0), torch.zeros_like(like, dtype=torch.float64)
        for index in chunks:
            values_m[_rows(index, values_m)] = objective.values(params, index).to(values_m)
        return values_m

    above_m, below_m, found_m = losses(ones_B), losses(-ones_B), torch.zeros_like(like, dtype=torch.long)
    for bit in range((count - 1).bit_length()):
        set_B = (numbers_B >> bit & 1).bool()
        values_m = losses(torch.where(set_B, ones_B, -ones_B))
        # An example's loss is that of its own adapter's side, whatever the others do: this reads one bit of its number.
        found_m += ((values_m - above_m).abs() < (values_m - below_m).abs()).long() << bit
    return found_m.clamp_max(count - 1)


def _moved(at: Params, move: Params, sign: float) -> Params:
    return {name: (p + sign * move[name]).to(p.dtype) for name, p in at.items()}


def _rows(index: Tensor | None, like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device) if index is None else index
