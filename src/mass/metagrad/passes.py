"""Compute the gradient, H u and J u of one micro-batch by autograd.

H is the Hessian of Σ_i w_i ℓ_i in θ, (J u)_i = ⟨∇ℓ_i, u⟩. Both are derivatives of ⟨∇_θ Σ_i w_i ℓ_i, u⟩, one for θ and
one for w, so one double backward gives them.

Legend: m examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mass.metagrad.layerwise import refuse_once_differentiable
from mass.metagrad.objective import Objective, leaves
from mass.types import Params


class Begun(NamedTuple):
    """The gradient of one micro-batch, and the state that `Passes.finish` needs."""

    grads: Params
    rest: Any


class Wanted(NamedTuple):
    """The results of a second-order pass that are needed."""

    params: bool = True
    """True for H u."""
    weights: bool = True
    """True for J u."""
    inspection: bool = False
    """True to search the graph for kernels without a second derivative."""


class _Leaves(NamedTuple):
    """The leaves of the graph of a gradient."""

    params: Params
    weights_m: Tensor


class Passes:
    """The passes of an objective by autograd. `mass.metagrad.compiled` has others with the same results."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def gradient(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Params:
        """Return the gradient of the examples `index`, without a graph."""
        return self.objective.gradient(leaves(params), weights_m, index, checkpoint=checkpoint)[0]

    def begin(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Begun:
        """Return the gradient with its graph, for `finish`."""
        at = _Leaves(leaves(params), weights_m.detach().requires_grad_())
        return Begun(self.objective.gradient(*at, index, checkpoint=checkpoint, create_graph=True)[0], at)

    def finish(self, begun: Begun, u: Params, wanted: Wanted) -> tuple[Params, Tensor]:
        """Return H u (empty unless wanted) and J u [m] (zeros unless wanted, and for examples of other micro-batches).

        If only J u is wanted, autograd walks only the path from the inner gradient to the weights, not the longer one
        through the activations. Raises ConfigError if the inspection finds a kernel without a second derivative.
        """
        at: _Leaves = begun.rest
        if wanted.inspection:
            refuse_once_differentiable(begun.grads.values())
        params = at.params if wanted.params else {}
        inputs = [*params.values(), *([at.weights_m] if wanted.weights else [])]
        # A gradient that depends neither on θ nor on w has no graph; its products are the zeros below.
        outputs = {name: g for name, g in begun.grads.items() if g.requires_grad}
        found: Sequence[Tensor] = [torch.zeros_like(tensor) for tensor in inputs]
        if outputs:
            directions = [u[name].to(g.dtype) for name, g in outputs.items()]
            found = torch.autograd.grad(
                list(outputs.values()), inputs, directions, allow_unused=True, materialize_grads=True
            )
        bar_weights = found[-1] if wanted.weights else torch.zeros_like(at.weights_m)
        return dict(zip(params, found, strict=False)), bar_weights.detach()

    def second_order(
        self, params: Params, weights_m: Tensor, index: Tensor | None, u: Params, wanted: Wanted, *, checkpoint: bool
    ) -> tuple[Params, Params, Tensor]:
        """Return the gradient, H u and J u."""
        begun = self.begin(params, weights_m, index, checkpoint=checkpoint)
        products, bar_weights = self.finish(begun, u, wanted)
        return {name: g.detach() for name, g in begun.grads.items()}, products, bar_weights
