"""Betty (Choe et al., arXiv 2207.02849): multilevel problems; implicit differentiation at the last step, or an unroll.

Betty differentiates for the upper problem's parameters alone, here w; there is no gradient for the start θ_0. Its
default, "darts", takes a finite difference of the inner gradient at the last step only and leaves the rate out, so it
is another quantity, not this one with noise: its error is measured like that of every route.
"""

from __future__ import annotations

from typing import Any

import torch
from metagrad_problem import Gradients, MetaGradient, Problem, Unavailable
from torch import Tensor, nn

from peers.module import Practice


def prepare(problem: Problem, way: str) -> MetaGradient:
    """`way`: "darts" or "unroll" (IterativeProblem)."""
    try:
        import betty.engine
        import betty.problems  # noqa: F401
    except Exception as error:
        raise Unavailable(f"betty does not import: {type(error).__name__}: {error}") from error

    def meta_gradient() -> Gradients:
        return {"w": _run(problem, way)}

    return meta_gradient


class _Weights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())

    def forward(self) -> Tensor:
        return self.w


def _run(problem: Problem, way: str) -> Tensor:
    """K steps of the lower problem, one of the upper, and the gradient that the upper's optimiser was handed."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine

    upper_kind, lower_kind = _problems(way)
    implicit = way == "darts"
    steps = problem.setting.steps
    weights, practice = _Weights(problem.weights), Practice(problem)
    upper = upper_kind(
        "upper",
        Config(type="darts", first_order=implicit, retain_graph=not implicit),
        weights,
        torch.optim.SGD(weights.parameters(), lr=0.0),
        train_data_loader=[(problem.target,)],
        device=problem.setting.device,
    )
    lower = lower_kind(
        "lower",
        Config(type="darts", unroll_steps=steps, retain_graph=not implicit),
        practice,
        torch.optim.SGD(practice.parameters(), lr=problem.setting.rate),
        train_data_loader=[(problem.practice,)],
        device=problem.setting.device,
    )
    config = EngineConfig(train_iters=steps, valid_step=10**9)
    Engine([upper, lower], config, {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}).run()
    return upper.found


def _problems(way: str) -> tuple[Any, Any]:
    from betty.problems import ImplicitProblem, IterativeProblem

    class Upper(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:  # noqa: ARG002
            return self.lower(outer=True)

        def custom_optimizer_step(self) -> None:
            self.found = self.module.w.grad.detach().clone()

    class Implicit(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:  # noqa: ARG002
            return (self.upper() * self.module()).sum()

    class Iterative(IterativeProblem):
        def training_step(self, batch: Any) -> Tensor:  # noqa: ARG002
            return (self.upper() * self.forward()).sum()

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return self.fmodule(self.params, self.buffers, *args, **kwargs)

    return Upper, Implicit if way == "darts" else Iterative
