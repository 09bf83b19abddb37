"""higher (Grefenstette et al., arXiv 1910.01727): a module made functional and a differentiable torch optimiser."""

from __future__ import annotations

import torch
from metagrad_problem import Gradients, MetaGradient, Problem, Unavailable

from peers.module import Practice, mangled


def prepare(problem: Problem) -> MetaGradient:
    try:
        import higher
    except Exception as error:
        raise Unavailable(f"higher does not import: {type(error).__name__}: {error}") from error

    def meta_gradient() -> Gradients:
        _, weights = problem.leaves()
        module = Practice(problem)
        optimizer = torch.optim.SGD(module.parameters(), lr=problem.setting.rate)
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (inner, steps):
            for _ in range(problem.setting.steps):
                steps.step((weights * inner()).sum())
            start = [module.get_parameter(mangled(name)) for name in problem.params]
            found = torch.autograd.grad(inner(outer=True), [weights, *start])
        return dict(zip(["w", *problem.params], found, strict=True))

    return meta_gradient
