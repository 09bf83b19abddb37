"""Get a causal language model's hidden states before the output head, and the head as a function of them.

A head gives logits s = c tanh(a z / c) with z = W h + b: c caps them (Gemma 2 and 3), a scales them (Granite, Cohere);
most models do neither, s = z. What a model does is found by a test: the output of its head is replaced by a ramp of
known numbers, and the model's logits for them must be one of these functions. Other models keep all their logits.

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
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from mass.metagrad.layerwise import autocast_kind
from mass.metagrad.optimizers import wide

FARTHEST = 1e9
"""Largest number of the ramp, at which every cap is reached."""
TOLERANCE = 1e-5
"""Relative error allowed in the test; models that convert their logits to float32 leave 1e-7."""


@dataclass(frozen=True)
class Head:
    """An output head: s = cap tanh(scale z / cap) with z = W h + b; without a cap s = scale z."""

    weight: Tensor
    """W [V, d], frozen."""
    bias: Tensor | None = None
    """b [V], frozen."""
    scale: float = 1.0
    cap: float | None = None

    @property
    def plain(self) -> bool:
        """True if the logits are z itself."""
        return self.scale == 1.0 and self.cap is None

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits s [n, V] of states [n, d], in float32 or wider. Differentiable."""
        product = nn.functional.linear(states, self.weight, self.bias)
        return self.shaped(product.to(wide(product)))

    def shaped(self, z: Tensor) -> Tensor:
        """Return s for z: scaled and capped."""
        if self.plain:
            return z
        return z * self.scale if self.cap is None else (z * (self.scale / self.cap)).tanh() * self.cap

    def in_autocast(self, states: Tensor) -> tuple[Head, Tensor]:
        """Return head and states in the precision in which autocast would multiply them; unchanged without autocast."""
        device = autocast_kind(states)
        if not torch.is_autocast_enabled(device) or states.dtype == torch.float64:
            return self, states
        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return Head(self.weight.to(dtype), bias, self.scale, self.cap), states.to(dtype)


@dataclass
class _Asked:
    """Instructions for the hooks of a head within one pass, and the states that they saw."""

    ramp: Tensor | None = None
    """Output to return instead of the head's own; None for no replacement."""
    states: list[Tensor] = field(default_factory=list[Tensor])


_asked: ContextVar[_Asked | None] = ContextVar("states_asked", default=None)


def _keep_states(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:  # noqa: ARG001
    """Keep the head's input, and give the head an input without tokens, so that it computes no logits."""
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
    """Within the block, the hooks keep the head's input, and replace its output by `ramp` if there is one."""
    asked = _Asked(ramp)
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


class HeadReader:
    """Reads the head of one model, and the states that go into it.

    The hooks that it registers act only within its own methods; otherwise the model computes what it did before.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shape: tuple[float, float | None] | None = None
        self._tried = False
        module = self._module
        if module is not None and _keep_states not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_keep_states)
            module.register_forward_hook(_give_ramp)

    def states(self, **inputs: Any) -> Tensor:
        """Run the model, and return the states [N, L, d] that go into its output head, without computing logits.

        Only for a model whose `head` is known.
        """
        with _asking(None) as asked:
            self._model(**inputs, use_cache=False)
        return asked.states[0]

    def head(self) -> Head | None:
        """Return the head with its scale and cap; None for a head that is another function, or is not frozen.

        The first call runs the model on one token. On the meta device there are no numbers to test; a linear head then
        counts as one without scale and cap, whose passes hold as much memory.
        """
        module = self._module
        if not isinstance(module, nn.Linear) or any(p.requires_grad for p in module.parameters()):
            return None
        weight, bias = module.weight, module.bias
        # Quantised weights are packed into integers or another shape.
        if not weight.is_floating_point() or weight.shape != (module.out_features, module.in_features):
            return None
        if weight.is_meta:
            return Head(weight, bias)
        if not self._tried:
            # The first loss may be one whose passes are being recorded: its tensors have no numbers, the model's have.
            with _disable_current_modes():
                self._shape, self._tried = self._tried_out(module), True
        return None if self._shape is None else Head(weight, bias, *self._shape)

    @property
    def _module(self) -> Any:
        return getattr(self._model, "get_output_embeddings", lambda: None)()

    def _tried_out(self, module: nn.Linear) -> tuple[float, float | None] | None:
        """Return scale and cap, from the model's logits for a ramp; None where they are another function."""
        ramp = _ramp(module.out_features, module.weight.device)
        token = torch.zeros(1, 1, dtype=torch.int64, device=self._model.get_input_embeddings().weight.device)
        with torch.no_grad(), torch.autocast(autocast_kind(token), enabled=False), _asking(ramp) as asked:
            made = self._model(input_ids=token, use_cache=False).logits
        if [states.shape[:2] for states in asked.states] != [(1, 1)] or made.shape != ramp.shape:
            return None
        return _fitted(ramp.flatten(), made.flatten().double())


def _ramp(vocabulary: int, device: torch.device) -> Tensor:
    """Return numbers [1, 1, V] of both signs and many sizes; the first is the largest, the second is 1."""
    ends = torch.tensor([FARTHEST, 1.0], dtype=torch.float64)
    return torch.cat([ends, torch.linspace(-60, 60, vocabulary, dtype=torch.float64)])[None, None, :vocabulary].to(
        device
    )


def _fitted(given: Tensor, made: Tensor) -> tuple[float, float | None] | None:
    """Return the scale and cap that turn `given` into `made`; None where no such numbers do."""
    # At the far end a cap is reached, and shows itself; without one both numbers show the same scale.
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
