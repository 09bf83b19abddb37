"""Apply one update (θ_{j+1}, s_{j+1}) = U(θ_j, clip(g_j), s_j, r_j), and pull cotangents back through it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mass.metagrad.live import LiveMemory
from mass.metagrad.objective import leaves
from mass.metagrad.optimizers import Optimizer, State, beside, clip_by_norm, wide
from mass.types import Params


@dataclass(frozen=True)
class Update:
    """The update rule with its clipping."""

    optimizer: Optimizer
    stacked: bool = False
    """True if each adapter of a stack is clipped by its own norm."""

    def __call__(self, params: Params, grads: Params, state: State, rates_P: Tensor, step: int) -> tuple[Params, State]:
        if (clip_norm := getattr(self.optimizer, "clip_norm", None)) is not None:
            grads = clip_by_norm(grads, clip_norm, self.stacked)
        pairs = zip(params.items(), rates_P.unbind(), strict=True)
        rates = {name: (beside(r, p) if r.ndim else r).to(p.device) for (name, p), r in pairs}
        return self.optimizer.update(params, grads, state, rates, step)


class Step(NamedTuple):
    """One entry of the tape: the parameters and state at which step j started, and its gradient before clipping."""

    params: Params
    grads: Params
    state: State


def pull_through_update(
    update: Update, at: Step, rates_P: Tensor, step: int, bar_params: Params, bar_state: State
) -> tuple[Params, Params, State, Tensor]:
    """Pull the cotangents of (θ_{j+1}, s_{j+1}) back to θ_j, g_j (`u`), s_j and the rates, through U alone.

    Everything is in float32 or wider: rounding θ_{j+1} to a narrow type counts as the identity.
    """
    # θ_j, g_j and s_j become independent leaves: that g_j depends on θ_j is left to the second-order pass.
    params, grads, state = (leaves({name: p.to(wide(p)) for name, p in part.items()}) for part in at)
    rates_P = rates_P.detach().requires_grad_()
    with torch.enable_grad():
        new_params, new_state = update(params, grads, state, rates_P, step)
    pairs = [(new_params[k], bar) for k, bar in bar_params.items()] + [(new_state[k], b) for k, b in bar_state.items()]
    pulled = iter(pull(pairs, [*params.values(), *grads.values(), *state.values(), rates_P]))
    bars = [{name: next(pulled) for name in part} for part in (params, grads, state)]
    return bars[0], bars[1], bars[2], next(pulled)


def pull(pairs: Sequence[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the vector-Jacobian product of values with their cotangents; zeros for inputs without influence."""
    pairs = [(value, bar.to(value.dtype)) for value, bar in pairs if value.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    values, bars = zip(*pairs, strict=True)
    return torch.autograd.grad(values, inputs, bars, allow_unused=True, materialize_grads=True)


def update_bytes(update: Update, params: Params, *, differentiated: bool) -> int:
    """Measure the most bytes that an update, or `pull_through_update`, holds in addition to its arguments."""
    zeros = {name: torch.zeros_like(p, dtype=wide(p)) for name, p in params.items()}
    at = Step({name: p.detach() for name, p in params.items()}, zeros, update.optimizer.init(zeros))
    rates_P = torch.zeros(len(params), device=next(iter(params.values())).device)
    with LiveMemory(rates_P.device) as live, torch.no_grad():
        if differentiated:
            pull_through_update(update, at, rates_P, 0, zeros, at.state)
        else:
            update(*at, rates_P, 0)
    return live.peak
