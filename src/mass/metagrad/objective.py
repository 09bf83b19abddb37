"""Evaluate the weighted sum Σ_i w_i ℓ_i(θ) of losses and its gradient, with or without a graph.

Legend: m examples, n of them in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mass.errors import ConfigError, ShapeError
from mass.metagrad import layerwise
from mass.metagrad.optimizers import wide
from mass.types import Params

Losses = Callable[[Params, Tensor | None], Tensor]
"""(params, index) -> losses [len(index)] of the examples `index` (int64), or of all m examples for None."""


@dataclass(frozen=True)
class Objective:
    """The weighted sum of losses, and the context in which the backward evaluates it again."""

    losses: Losses
    autocast: dict[str, Any]
    """Arguments of `torch.autocast` that restore the state of the forward."""
    wants_layers: bool = False
    """True if the caller requested layer checkpointing: losses that run no such layer are then an error."""

    def terms(self, params: Params, weights_m: Tensor, index: Tensor | None, checkpoint: bool) -> tuple[Tensor, Tensor]:
        """Return w_i [n] and ℓ_i(θ) [n] of the examples `index`, the losses with their graph.

        Raises ShapeError for losses of another shape than the weights; ConfigError where they do not depend on `params`
        or run no layer that can be checkpointed although the caller requested it.
        """
        with torch.enable_grad(), torch.autocast(**self.autocast), layerwise.checkpointing(checkpoint) as checkpointed:
            values = self.losses(params, index)
        if checkpoint and self.wants_layers and not checkpointed.layers:
            raise ConfigError(
                "checkpoint=True, but losses ran no layer that can be checkpointed, expected at least one; wrap a "
                "model's with mass.lm.layers.checkpoint_layers, yours with mass.metagrad.layerwise.checkpoint, or "
                "leave it unset"
            )
        with torch.enable_grad():
            chosen = weights_m if index is None else weights_m[index]
        if values.shape != chosen.shape:
            raise ShapeError(
                f"losses gave shape {list(values.shape)}, expected {list(chosen.shape)}: "
                f"one loss for each of the {len(chosen)} weights; make both the number of examples"
            )
        if not values.requires_grad:
            raise ConfigError(
                "losses gave values that do not depend on params, expected a differentiable function of them; "
                "use the params it is given, without detach or no_grad"
            )
        return chosen.to(values.device), values

    def gradient(
        self,
        params: Params,
        weights_m: Tensor,
        index: Tensor | None,
        *,
        checkpoint: bool = False,
        create_graph: bool = False,
    ) -> tuple[Params, Tensor]:
        """Return ∇_θ Σ_i w_i ℓ_i(θ) over the examples `index` at the leaves `params`, and their losses [n] detached."""
        chosen, values = self.terms(params, weights_m, index, checkpoint)
        with torch.enable_grad():
            total = (chosen * values).sum()
            grads = torch.autograd.grad(
                total, list(params.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
        return dict(zip(params, grads, strict=True)), values.detach()

    @torch.no_grad()
    def values(self, params: Params, index: Tensor | None) -> Tensor:
        """Return ℓ_i(θ) [n] of the examples `index`, without a graph."""
        with torch.autocast(**self.autocast), layerwise.checkpointing(False):
            return self.losses(params, index)


class Sum:
    """A sum of parameter-like tensors over micro-batches, in float32 or wider."""

    def __init__(self) -> None:
        self.value: Params = {}

    def add(self, part: Params) -> None:
        """Add the tensors of one micro-batch."""
        for name, tensor in part.items():
            # Widened before it is added: sums of many bfloat16 terms would lose the small ones.
            value = tensor.detach().to(wide(tensor))
            if name in self.value:
                self.value[name].add_(value)
            else:
                self.value[name] = value.clone()  # a copy, as later parts are added to it in place


def autocast_state(device: str) -> dict[str, Any]:
    """Return arguments of `torch.autocast` that restore the present state, also in another thread or after it ended.

    The cache is off: it would keep casts made without a graph.
    """
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return {"device_type": device, "enabled": enabled, "dtype": dtype, "cache_enabled": False}


def leaves(params: Params) -> Params:
    """Return the parameters as leaves of a new graph, which share their memory."""
    return {name: p.detach().requires_grad_() for name, p in params.items()}
