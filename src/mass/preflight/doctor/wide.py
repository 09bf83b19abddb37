"""Remove the float32 parts from a float64 model.

Models of transformers compute some parts in float32 whatever their precision: RMSNorm, the angles of rotary embeddings,
the softmax of eager attention, the softmax of a mixture's router. Their rounding, about 1e-7, would hide everything
else in a measured derivative.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def widen(model: nn.Module) -> None:
    """Make every conversion to float32 inside the model's modules give float64 from now on.

    Every module's forward is wrapped, so that a layer which is recomputed alone computes the same.
    """
    for module in model.modules():
        module.forward = _without_float32(module.forward)


class _NoFloat32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        return func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


_active = threading.local()


def _without_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if getattr(_active, "on", False):  # already active, in an outer module
            return forward(*args, **kwargs)
        _active.on = True
        try:
            with _NoFloat32():
                return forward(*args, **kwargs)
        finally:
            _active.on = False

    return run
