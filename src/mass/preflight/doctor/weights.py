"""Copy a model several times in another precision, with one set of weights shared by all copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class SharedWeights:
    """Weights and buffers of a model, converted once; the model's own tensors where they have the precision already."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model = model
        self._tensors: dict[int, Any] = {id(t): _converted(t, dtype) for t in (*model.parameters(), *model.buffers())}

    def copy(self) -> Any:
        """Return a model whose modules may be changed, but not its tensors."""
        # The memo of deepcopy says which object stands for which: every tensor counts as copied already.
        return copy.deepcopy(self._model, dict(self._tensors))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    wide = tensor.detach().to(dtype)
    return nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide
