"""A causal language model -> its hidden states before the output head, and the head as a function of them.

A head gives logits s = c tanh(a z / c) with z = W h + b: c caps them (Gemma 2 and 3), a scales them (Granite, Cohere);
most models do neither, s = z. What a model does is found by trying: its head is given a ramp instead of its own output,
and what the model makes of that must be one of these functions. A model of another kind keeps its logits whole.

Legend: N rows, L tokens of a row, n tokens, d width of the states, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mass.metagrad.layerwise import autocast_kind
from mass.metagrad.optimizers import wide

FARTHEST = 1e9
"""The ramp's end: every cap is reached there."""
TOLERANCE = 1e-5
"""Relative; models that widen their logits to float32 leave 1e-7."""


@dataclass(frozen=True)
class Head:
    """s = cap tanh(scale z / cap) with z = W h + b; without a cap s = scale z."""

    weight: Tensor
    """[V, d], frozen."""
    bias: Tensor | None = None
    """[V], frozen."""
    scale: float = 1.0
    cap: float | None = None

    @property
    def plain(self) -> bool:
        """Whether the logits are the product itself."""
        return self.scale == 1.0 and self.cap is None

    def logits(self, states: Tensor) -> Tensor:
        """[n, d] -> s [n, V] in float32 or wider. Differentiable."""
        product = nn.functional.linear(states, self.weight, self.bias)
        return self.shaped(product.to(wide(product)))

    def shaped(self, z: Tensor) -> Tensor:
        """s of z."""
        if self.plain:
            return z
        return z * self.scale if self.cap is None else (z * (self.scale / self.cap)).tanh() * self.cap

    def in_autocast(self, states: Tensor) -> tuple[Head, Tensor]:
        """Head and states in the precision in which autocast would multiply them; the same without autocast."""
        device = autocast_kind(states)
        if not torch.is_autocast_enabled(device) or states.dtype == torch.float64:
            return self, states
        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return Head(self.weight.to(dtype), bias, self.scale, self.cap), states.to(dtype)


@dataclass
class _Asked:
    """What the hooks of a head are to do within a pass, and what they saw."""

    ramp: Tensor | None = None
    states: list[Tensor] = field(default_factory=list[Tensor])


_asked: ContextVar[_Asked | None] = ContextVar("states_asked", default=None)


def _keep_states(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:  # noqa: ARG001
    """The head then gets no token, so that it gives no logits."""
    asked = _asked.get()
    if asked is None or len(args) != 1 or args[0].dim() != 3:
        return None
    asked.states.append(args[0])
    return (args[0][:, :0],)


def _give_ramp(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:  # noqa: ARG001
    asked = _asked.get()
    return None if asked is None else asked.ramp


@contextmanager
def _asking(ramp: Tensor | None) -> Generator[_Asked, None, None]:
    asked = _Asked(ramp)
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


class HeadReader:
    """Reads the head of one model, and the states that go into it. Outside its methods the model computes what it did
    before."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shape: tuple[float, float | None] | None = None
        self._tried = False
        module = self._module
        if module is not None and _keep_states not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_keep_states)
            module.register_forward_hook(_give_ramp)

    def states(self, **inputs: Any) -> Tensor:
        """[N, L, d] what goes into the output head in a pass of the model, which computes no logits. Only for a model
        that has a `head`."""
        with _asking(None) as asked:
            self._model(**inputs, use_cache=False)
        return asked.states[0]

    def head(self) -> Head | None:
        """The head with what the model makes of its output; None for one that is no such function, or is not frozen.

        The first call runs the model on one token. Without weights (on the meta device) a linear head counts as one
        without scale and cap, whose passes hold as much.
        """
        module = self._module
        if not isinstance(module, nn.Linear) or any(p.requires_grad for p in module.parameters()):
            return None
        weight, bias = module.weight, module.bias
        if not weight.is_floating_point() or weight.shape != (module.out_features, module.in_features):  # packed
            return None
        if weight.is_meta:
            return Head(weight, bias)
        if not self._tried:
            self._shape, self._tried = self._tried_out(module), True
        return None if self._shape is None else Head(weight, bias, *self._shape)

    @property
    def _module(self) -> Any:
        return getattr(self._model, "get_output_embeddings", lambda: None)()

    def _tried_out(self, module: nn.Linear) -> tuple[float, float | None] | None:
        """Scale and cap, from what the model makes of a ramp."""
        ramp = _ramp(module.out_features, module.weight.device)
        token = torch.zeros(1, 1, dtype=torch.int64, device=self._model.get_input_embeddings().weight.device)
        with torch.no_grad(), torch.autocast(autocast_kind(token), enabled=False), _asking(ramp) as asked:
            made = self._model(input_ids=token, use_cache=False).logits
        if [states.shape[:2] for states in asked.states] != [(1, 1)] or made.shape != ramp.shape:
            return None
        return _fitted(ramp.flatten(), made.flatten().double())


def _ramp(vocabulary: int, device: torch.device) -> Tensor:
    """[1, 1, V] logits of both signs and of all sizes: the largest first, then 1."""
    ends = torch.tensor([FARTHEST, 1.0], dtype=torch.float64)
    return torch.cat([ends, torch.linspace(-60, 60, vocabulary, dtype=torch.float64)])[None, None, :vocabulary].to(
        device
    )


def _fitted(given: Tensor, made: Tensor) -> tuple[float, float | None] | None:
    """The scale and the cap that turn one into the other; None where none do."""
    far, one = made[:2].tolist()
    if len(given) < 2 or not (math.isfinite(far) and 0 < one < far):
        return None
    scale, cap = one, None
    if abs(far / FARTHEST - one) > TOLERANCE * one:
        cap = far
        scale = cap * math.atanh(one / cap)
    if abs(scale - 1) < TOLERANCE:
        scale = 1.0
    fits = torch.allclose(made, Head(given, None, scale, cap).shaped(given), TOLERANCE, TOLERANCE)
    return (scale, cap) if fits else None
