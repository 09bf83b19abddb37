"""Check the arguments of `adapt`, and bring them into the shapes that the recursion uses.

Legend: K steps, m examples, P parameter tensors, B adapters of a stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import STEP_PATTERN
from mass.errors import ConfigError, ShapeError, nearest
from mass.metagrad.optimizers import Rate, wide
from mass.types import Params

MODES = ("exact", "truncated(n)", "first_order", "finite_difference", "finite_difference(step)")
"""The forms that the argument `mode` may have, as error messages list them."""


@dataclass(frozen=True)
class Mode:
    """The treatment, in the backward, of the dependence of inner gradients on the parameters."""

    hessian: Literal["exact", "dropped", "difference"] = "exact"
    """The product H_j u: exact, left out, or a central difference of gradients."""
    last: int | None = None
    """Number of steps, counted from the end, that are differentiated; None for all."""
    step: float | None = None
    """Step of the differences, relative to the norm of the parameters; None for the cube root of their machine
    epsilon."""

    @staticmethod
    def parse(text: str) -> Mode:
        """Read a mode from its text. Raises ConfigError for anything but one of `MODES`."""
        text = str(text)
        if truncated := re.fullmatch(r"truncated\((\d+)\)", text):
            return Mode(last=int(truncated[1]))
        if stepped := re.fullmatch(rf"finite_difference\(({STEP_PATTERN})\)", text):
            return Mode("difference", step=float(stepped[1]))
        kinds: dict[str, Mode] = {
            "exact": Mode(),
            "first_order": Mode("dropped"),
            "finite_difference": Mode("difference"),
        }
        if text not in kinds:
            raise ConfigError(f"mode = {text!r}, expected one of {', '.join(MODES)}{nearest(text, MODES)}")
        return kinds[text]


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can record: a copy of one that was made inside `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() else tensor


def weights_per_step(weights: Tensor, steps: int) -> Float[Tensor, "K m"]:
    """Repeat weights [m] for each step, as a view whose gradient sums over the steps. Raises ShapeError."""
    if weights.ndim == 2 and len(weights) != steps:
        raise ShapeError(f"weights have shape {list(weights.shape)}, expected [m] or [steps, m] with steps = {steps}")
    return weights if weights.ndim == 2 else weights.expand(steps, -1)


def rates_per_step(lr: Rate, params: Params, steps: int, *, stacked: bool) -> Float[Tensor, "K P *B"]:
    """Return the learning rates, in the order of `params`, differentiable in the tensors of `lr`.

    The axis B is there only where at least one rate has a value for each adapter of the stack. Raises ConfigError for
    a name that is missing or unknown, or a rate that is negative or not finite, and ShapeError for another shape.
    """
    named = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(params, lr)
    if unknown := [name for name in named if name not in params]:
        raise ConfigError(f"a learning rate for {unknown[0]!r}, which is not a parameter{nearest(unknown[0], params)}")
    if missing := [name for name in params if name not in named]:
        raise ConfigError(f"no learning rate for {missing[0]!r}, expected one for each parameter; 0.0 freezes it")
    device = next(iter(params.values())).device
    columns: list[Tensor] = []
    for name, p in params.items():
        rate = named[name]
        rate = ordinary(rate) if isinstance(rate, Tensor) else torch.tensor(rate, dtype=wide(p))
        # A 1-d rate is always [steps]; a rate for each adapter must be 2-d, so that the two cannot be mistaken.
        by_task = [(count, len(p)) for count in (1, steps)] if stacked else []
        if rate.shape not in ((), (steps,), *by_task):
            task = f", or [1 or steps, tasks] = [{steps}, {len(p)}]" if stacked else ""
            raise ShapeError(
                f"the rate of {name!r} has shape {list(rate.shape)}, expected [] or [steps] = [{steps}]{task}"
            )
        rate = rate.to(device, torch.promote_types(rate.dtype, wide(p)))
        columns.append(rate.expand(steps, len(p)) if rate.ndim == 2 else rate.expand(steps))
    if any(column.ndim == 2 for column in columns):
        columns = [column if column.ndim == 2 else column[:, None] for column in columns]
        columns = list(torch.broadcast_tensors(*columns))
    rates_KP = torch.stack(columns, dim=1)
    if not bool(((rates_KP >= 0) & rates_KP.isfinite()).all()):
        low, high = float(rates_KP.min()), float(rates_KP.max())
        raise ConfigError(f"learning rates of {low:g} to {high:g}, expected finite ones of at least 0; clamp them")
    return rates_KP


def check(
    params: Params,
    weights: Tensor,
    steps: int,
    micro_batch: int | None,
    *,
    stacked: bool,
    memory_gb: float | None,
    spare_gb: float | None,
) -> None:
    """Check the arguments of `adapt` before anything is computed. Raises ConfigError or ShapeError."""
    if not params:
        raise ConfigError("params is empty, expected a dict of at least one tensor; give the adapter's parameters")
    for name, p in params.items():
        if not p.is_floating_point() or p.numel() == 0:
            raise ShapeError(
                f"parameter {name!r} is {p.dtype} of shape {list(p.shape)}, "
                "expected a non-empty floating-point tensor; leave it out or convert it"
            )
    if stacked:
        _check_stack(params)
    _check_weights(params, weights)
    if steps < 0:
        raise ConfigError(f"steps = {steps}, expected at least 0; 0 returns the parameters unchanged")
    if micro_batch is not None and micro_batch < 1:
        raise ConfigError(f"micro_batch = {micro_batch}, expected at least 1; None passes all examples at once")
    if memory_gb is not None and not 0 < memory_gb < float("inf"):
        raise ConfigError(f"memory_gb = {memory_gb}, expected a finite number above 0; None sets no limit")
    if spare_gb is not None and not spare_gb >= 0:
        raise ConfigError(f"spare_gb = {spare_gb}, expected a number of at least 0; None sets no limit")


def _check_weights(params: Params, weights: Tensor) -> None:
    if weights.ndim not in (1, 2) or weights.shape[-1] == 0 or not weights.is_floating_point():
        raise ShapeError(
            f"weights are {weights.dtype} of shape {list(weights.shape)}, "
            "expected floating-point [m] or [steps, m] with at least one example; skip the adaptation without examples"
        )
    devices = {str(p.device) for p in params.values()}
    if str(weights.device) not in devices:
        raise ShapeError(
            f"weights are on {weights.device} and the parameters on {', '.join(sorted(devices))}, expected one device; "
            f"give weights.to({sorted(devices)[0]!r})"
        )


def _check_stack(params: Params) -> None:
    first, shape = next((name, p.shape) for name, p in params.items())
    for name, p in params.items():
        if p.ndim == 0 or not shape or p.shape[0] != shape[0]:
            raise ShapeError(
                f"parameters {first!r} {list(shape)} and {name!r} {list(p.shape)} are not a stack, expected one "
                "leading axis of the same length, the adapters; give stacked=False for a single adapter"
            )
