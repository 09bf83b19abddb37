"""The input and the output of a training step, `Stack` and `Gradients`, and their sums over stacks and processes.

Nothing here depends on the method: `mass_step` and `solver_step` compute the gradients, `trainer` takes the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mass.adaptation.checkpoint import MetaState
from mass.adaptation.synthesis.reasons import REASONS, rejected_shares
from mass.config import RunConfig
from mass.training.distributed import Ranks
from mass.types import Example, Params, Task

if TYPE_CHECKING:
    from mass.lm import LM

MEASURED = (
    "outer_loss",
    "valid",
    "weight",
    "heaviest_weight",
    "attribution",
    "not_finite",
    "problem_norm",
    "clipped",
    "reward",
    "solved_by_any",
    "no_verdict",
    "generator_KL",
    "canary_KL",
    "practice_loss",
    "practised",
    "attempts_right",
    "weight_right",
    "tokens",
    *(reason.replace(" ", "_") for reason in REASONS),
)
"""Names of all that a step may measure, as sums over tasks. Processes exchange the values in this order."""


@dataclass(frozen=True)
class Stack:
    """The input of a step for one stack of problems."""

    lm: LM
    state: MetaState
    config: RunConfig
    tasks: Sequence[Task]
    seeds: Sequence[int]
    """One seed for each task, from which all its random draws are derived."""
    canaries: Sequence[Sequence[Task]] = ()
    """For each task, problems whose answers should not change by adapting to it; none where `train.canary_kl` is 0."""

    @property
    def problems(self) -> list[str]:
        """Texts of the problems."""
        return [task.problem for task in self.tasks]


@dataclass(frozen=True)
class Gradients:
    """Sums of gradients and measurements over the tasks of one stack, or of several."""

    theta: Params
    generator: Params = field(default_factory=dict[str, Tensor])
    """Gradient in theta of the generator's policy loss, with rewards that are centred in their group but not scaled."""
    reward_squares: tuple[float, int] = (0.0, 0)
    """Sum of the squares of those rewards, and their number, from which the whole batch's scale follows."""
    eta: Params = field(default_factory=dict[str, Tensor])
    log_rates: Params = field(default_factory=dict[str, Tensor])
    measured: dict[str, float] = field(default_factory=dict[str, float])
    """Measurements by their names in `MEASURED`."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Seconds of this process by stage."""


class Measured(dict[str, float]):
    """Sums of measurements. Every name must be in `MEASURED`, or it would be lost in the exchange between processes."""

    def add(self, **values: float) -> None:
        """Add values to the sums of their names."""
        for name, value in values.items():
            assert name in MEASURED, name
            self[name] = self.get(name, 0.0) + value

    def add_practice(self, groups: Sequence[Sequence[Example]]) -> None:
        """Add the share of valid examples of each problem, the shares of rejected ones by reason, and all tokens."""
        examples = [e for group in groups for e in group]
        self.add(
            valid=sum(e.valid for e in examples) / len(groups[0]),
            tokens=sum(len(e.tokens) + e.verification_tokens for e in examples),
        )
        shares = rejected_shares(examples)
        self.add(**{r.replace(" ", "_"): len(groups) * shares.get(r, 0.0) for r in REASONS})


def total(parts: Sequence[Gradients]) -> Gradients:
    """Return the sum over stacks."""
    squares, number = (sum(values) for values in zip(*(part.reward_squares for part in parts), strict=True))
    return Gradients(
        _total([part.theta for part in parts]),
        _total([part.generator for part in parts]),
        (squares, number),
        _total([part.eta for part in parts]),
        _total([part.log_rates for part in parts]),
        _sums([part.measured for part in parts]),
        _sums([part.seconds for part in parts]),
    )


def over_ranks(sums: Gradients, state: MetaState, ranks: Ranks) -> Gradients:
    """Return the sum over processes, the same in each, by one all-reduce.

    The exchange is in float64, so that no process's part is rounded in it. It takes 8 bytes for each parameter of theta
    (twice: solver and generator), eta and the rates. Seconds stay those of each process.
    """
    if ranks.size == 1:
        return sums
    shapes = {"theta": state.theta, "generator": state.theta, "eta": state.eta, "log_rates": state.log_rates}
    pieces = [
        getattr(sums, group).get(name, torch.zeros_like(t)) for group, p in shapes.items() for name, t in p.items()
    ]
    # Each measurement as (1 if this process has it, its value), since a name may be missing in some processes.
    known = [v for name in MEASURED for v in (float(name in sums.measured), sums.measured.get(name, 0.0))]
    numbers = torch.tensor([*sums.reward_squares, *known], dtype=torch.float64, device=pieces[0].device)
    flat = ranks.sum(torch.cat([*(piece.double().flatten() for piece in pieces), numbers]))
    *pieces, numbers = flat.split([*(piece.numel() for piece in pieces), len(numbers)])
    left = iter(pieces)
    groups = {
        group: {name: next(left).view(t.shape).to(t.dtype) for name, t in params.items()}
        for group, params in shapes.items()
    }
    squares, number, *known = numbers.tolist()
    measured = {name: value for name, some, value in zip(MEASURED, known[::2], known[1::2], strict=True) if some}
    return dataclasses.replace(sums, **groups, reward_squares=(squares, round(number)), measured=measured)


def scaled_generator(sums: Gradients, count: int, weight: float) -> Params:
    """Return the generator's mean gradient over `count` tasks, with rewards divided by their standard deviation.

    The deviation is taken over the whole batch and not over each group: where practice makes almost no difference, the
    rewards of a group are noise, and dividing by their own deviation would make that noise the largest part of the
    gradient (docs/adr/0005).
    """
    squares, number = sums.reward_squares
    if not squares:
        return {}
    scale = weight / (squares / number) ** 0.5
    return {name: scale * g for name, g in mean(sums.generator, count).items()}


def mean(gradient: Params, count: int) -> Params:
    """Return a sum over `count` tasks divided by their number."""
    return {name: g / count for name, g in gradient.items()}


def added(one: Params, other: Params) -> Params:
    """Return the sum of two gradients; a name that only one of them has is taken from it."""
    return {**other, **{name: t + other[name] if name in other else t for name, t in one.items()}}


def norm(gradient: Params) -> float:
    """Return the norm over all tensors; 0 for none."""
    return float(torch.stack([g.norm() for g in gradient.values()]).norm()) if gradient else 0.0


def _total(parts: Sequence[Params]) -> Params:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).sum(0) for name in names}


def _sums(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: sum(table.get(name, 0.0) for table in tables) for name in names}
