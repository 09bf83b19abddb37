"""TorchOpt's MetaSGD (Ren et al., arXiv 2211.06934): a differentiable optimiser of a module's parameters."""

from __future__ import annotations

import torch
from metagrad_problem import Gradients, MetaGradient, Problem, Unavailable

from peers.module import Practice


def prepare(problem: Problem) -> MetaGradient:
    try:
        import torchopt
    except Exception as error:
        raise Unavailable(f"torchopt does not import: {type(error).__name__}: {error}") from error

    def meta_gradient() -> Gradients:
        _, weights = problem.leaves()
        module = Practice(problem)
        start = module.adapter()
        optimizer = torchopt.MetaSGD(module, lr=problem.setting.rate)
        for _ in range(problem.setting.steps):
            optimizer.step((weights * module()).sum())
        found = torch.autograd.grad(module(outer=True), [weights, *start.values()])
        return dict(zip(["w", *start], found, strict=True))

    return meta_gradient
