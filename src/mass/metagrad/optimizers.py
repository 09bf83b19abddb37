"""Update rules U as pure, differentiable functions: (parameters, gradients, state, rates) -> (parameters, state).

References: optax (the style); Loshchilov & Hutter, arXiv 1711.05101 (decoupled weight decay).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mass.errors import ConfigError
from mass.types import Params

State = dict[str, Tensor]
"""Optimiser state as one flat dict, as `init` makes it and `update` returns it."""
Scalar = float | Tensor
"""A number, a 0-d tensor, or a [K] tensor with a value for each step; for a stack also [1, B] or [K, B], with a value
for each adapter."""
Rate = Scalar | Mapping[str, Scalar]
"""A learning rate for all tensors, or one for each tensor by name. Tensors may require grad."""
Rates = Mapping[str, Tensor]
"""The rates of one step, by name: 0-d, or [B, 1, ...] with as many axes as the parameter of a stack."""


class Optimizer(Protocol):
    """An update rule U as a pair of pure functions (optax style), elementwise and differentiable by autograd."""

    @property
    def lr(self) -> Rate:
        """The learning rates."""
        ...

    @property
    def clip_norm(self) -> float | None:
        """Largest norm of a gradient; None for no limit. The caller of `update` clips, with `clip_by_norm`."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before step 0."""
        ...

    def update(self, params: Params, grads: Params, state: State, rates: Rates, step: int) -> tuple[Params, State]:
        """Return parameters and state after step `step` (0 is the first) at the rates of this step; mutates nothing."""
        ...


@dataclass(frozen=True)
class SGD:
    """SGD with momentum, as in `torch.optim.SGD`: θ - r·d with d = momentum·d + g.

    A rate of 0 is the identity bit for bit, as long as gradients are finite. Raises ConfigError for momentum outside
    [0, 1) or a norm that is not positive.
    """

    lr: Rate
    momentum: float = 0.0
    clip_norm: float | None = None
    """Largest norm of a gradient over all tensors; None for no limit."""

    def __post_init__(self) -> None:
        _check_range("momentum", self.momentum, 0.0, 1.0)
        _check_clip(self.clip_norm)

    def init(self, params: Params) -> State:
        """Return the state before step 0: none without momentum."""
        return {} if self.momentum == 0 else {name: _zeros(p) for name, p in params.items()}

    def update(self, params: Params, grads: Params, state: State, rates: Rates, step: int) -> tuple[Params, State]:
        """Return parameters and state after a step; the rule is the same at each step."""
        del step
        state = {name: self.momentum * d + grads[name] for name, d in state.items()}
        return {name: _descend(p, rates[name], state.get(name, grads[name])) for name, p in params.items()}, state


@dataclass(frozen=True)
class AdamW:
    """Adam with bias correction and decoupled weight decay, as `optax.adamw`: m̂ / (√(v̂ + eps_root) + eps).

    `eps_root` keeps the meta-gradient finite where a gradient is exactly zero, since √v̂ has no derivative there: the
    gradient of LoRA's A is zero while B = 0. With `eps_root=0` the values are those of `torch.optim.AdamW`, and the
    meta-gradient is NaN at such entries.

    A rate of 0 is the identity bit for bit, while gradients are finite. Raises ConfigError for values out of range.
    """

    lr: Rate
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    """Largest norm of a gradient over all tensors; None for no limit."""

    def __post_init__(self) -> None:
        _check_clip(self.clip_norm)
        for beta in self.betas:
            _check_range("betas", beta, 0.0, 1.0)
        for name in ("eps", "eps_root", "weight_decay"):
            _check_range(name, getattr(self, name), 0.0, float("inf"))

    def init(self, params: Params) -> State:
        """Return the state before step 0: both moments of each parameter are zero."""
        return {f"{moment}.{name}": _zeros(p) for name, p in params.items() for moment in ("mean", "square")}

    def update(self, params: Params, grads: Params, state: State, rates: Rates, step: int) -> tuple[Params, State]:
        """Return parameters and state after step `step`, on which the bias correction depends."""
        beta1, beta2 = self.betas
        new_params: Params = {}
        new_state: State = {}
        for name, p in params.items():
            g = grads[name].to(wide(p))
            mean = beta1 * state[f"mean.{name}"] + (1 - beta1) * g
            square = beta2 * state[f"square.{name}"] + (1 - beta2) * g * g
            # eps_root is inside the root: at square = 0 the root alone has an infinite derivative.
            root = (square / (1 - beta2 ** (step + 1)) + self.eps_root).sqrt() + self.eps
            direction = mean / (1 - beta1 ** (step + 1)) / root + self.weight_decay * p
            new_params[name] = _descend(p, rates[name], direction)
            new_state[f"mean.{name}"], new_state[f"square.{name}"] = mean, square
        return new_params, new_state


def clip_by_norm(grads: Params, norm: float, stacked: bool = False) -> Params:
    """Scale gradients by min(1, norm / ‖g‖), ‖g‖ over all tensors, as `torch.nn.utils.clip_grad_norm_`. Differentiable.

    With `stacked` the tensors have a leading axis of adapters [B, ...], and each adapter is clipped by its own norm.
    """
    factor_B = (norm / (adapter_norms(grads, stacked) + 1e-6)).clamp_max(1.0)
    return scale_adapters(grads, factor_B)


def adapter_norms(params: Params, stacked: bool = False) -> Float[Tensor, " B"]:
    """Return the norm over all tensors, B = 1, or with `stacked` that of each adapter.

    It is in float32 or wider, on the device of the first tensor.
    """
    first = next(iter(params.values()))
    count = len(first) if stacked else 1
    norms_B = [
        torch.linalg.vector_norm(p.to(wide(p)).reshape(count, -1), dim=1).to(first.device) for p in params.values()
    ]
    return torch.linalg.vector_norm(torch.stack(norms_B), dim=0)


def beside(values_B: Float[Tensor, " B"], tensor: Float[Tensor, "B ..."]) -> Tensor:
    """Reshape to [B, 1, ...], so that each adapter of a stack's tensor can be multiplied by its own value."""
    return values_B.view(-1, *[1] * (tensor.ndim - 1))


def scale_adapters(params: Params, factor_B: Float[Tensor, " B"]) -> Params:
    """Multiply each adapter of a stack by its factor, or all tensors by the only one, and keep their precision."""
    return {
        name: (p.reshape(len(factor_B), -1) * factor_B[:, None].to(p.device)).reshape(p.shape).to(p.dtype)
        for name, p in params.items()
    }


def wide(p: Tensor) -> torch.dtype:
    """Return the type that updates are computed in: float32, or the parameter's own where that is wider."""
    return torch.promote_types(p.dtype, torch.float32)


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, dtype=wide(p), requires_grad=False)


def _descend(p: Tensor, rate: Tensor, direction: Tensor) -> Tensor:
    # + 0.0 turns -0.0 into 0.0, and subtracting 0.0 leaves p = -0.0 unchanged too: a rate of 0 is the identity.
    dtype = wide(p)
    return (p.to(dtype) - (rate.to(dtype) * direction.to(dtype) + 0.0)).to(p.dtype)


def _check_clip(norm: float | None) -> None:
    if norm is not None and not 0 < norm < float("inf"):
        raise ConfigError(f"clip_norm = {norm}, expected a finite number above 0; None does not clip")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise ConfigError(f"{name} = {value}, expected a number in [{low:g}, {high:g}); change it")
