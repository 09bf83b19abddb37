"""(parameters, weights, examples, direction u) -> gradient, H u and J u of one micro-batch, by autograd.

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
    """The gradient of one micro-batch, and what `Passes.finish` needs beside it."""

    grads: Params
    rest: Any


class Wanted(NamedTuple):
    """What of a second-order pass is wanted."""

    params: bool = True
    """H u."""
    weights: bool = True
    """J u."""
    inspection: bool = False
    """Whether to look through the graph for what has no second derivative."""


class _Leaves(NamedTuple):
    """Where the graph of a gradient begins."""

    params: Params
    weights_m: Tensor


class Passes:
    """The passes of an objective. `mass.metagrad.compiled` has others, which compute the same."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def gradient(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Params:
        return self.objective.gradient(leaves(params), weights_m, index, checkpoint=checkpoint)[0]

    def begin(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Begun:
        """The gradient, with its graph."""
        at = _Leaves(leaves(params), weights_m.detach().requires_grad_())
        return Begun(self.objective.gradient(*at, index, checkpoint=checkpoint, create_graph=True)[0], at)

    def finish(self, begun: Begun, u: Params, wanted: Wanted) -> tuple[Params, Tensor]:
        """H u (empty unless wanted) and J u [m] (zeros unless wanted, and for examples of other micro-batches).

        Without the former autograd walks only the path from the inner gradient to the weights, not the one through the
        activations.
        """
        at: _Leaves = begun.rest
        if wanted.inspection:
            refuse_once_differentiable(begun.grads.values())
        params = at.params if wanted.params else {}
        inputs = [*params.values(), *([at.weights_m] if wanted.weights else [])]
        outputs = {name: g for name, g in begun.grads.items() if g.requires_grad}  # none of losses linear in θ and w
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
        """The gradient, H u and J u."""
        begun = self.begin(params, weights_m, index, checkpoint=checkpoint)
        products, bar_weights = self.finish(begun, u, wanted)
        return {name: g.detach() for name, g in begun.grads.items()}, products, bar_weights
