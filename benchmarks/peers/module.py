"""The LoRA parameters as an `nn.Module`, for libraries that unroll optimisers of modules."""

from __future__ import annotations

from metagrad_problem import Params, Problem
from torch import Tensor, nn


class Practice(nn.Module):
    """θ -> the losses of the practice examples; `forward(outer=True)` gives the target's."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.names = list(problem.params)
        for name, p in problem.params.items():
            self.register_parameter(mangled(name), nn.Parameter(p.clone()))

    def adapter(self) -> Params:
        return {name: getattr(self, mangled(name)) for name in self.names}

    def forward(self, outer: bool = False) -> Tensor:
        return self.problem.outer(self.adapter()) if outer else self.problem.losses(self.adapter())


def mangled(name: str) -> str:
    return name.replace(".", "__")
