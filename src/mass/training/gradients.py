"""A `Stack` of problems goes into a step, `Gradients` come out: their sum over stacks -> their sum over processes.

Nothing here knows a method: `metastep` and `solverstep` fill in the numbers, `train` takes the step.
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
"""All that a step may measure, as sums over tasks: processes exchange them by their place here."""


@dataclass(frozen=True)
class Stack:
    """What one stack's step works on."""

    lm: LM
    state: MetaState
    config: RunConfig
    tasks: Sequence[Task]
    seeds: Sequence[int]
    """One for each task: all its random draws follow from it."""
    canaries: Sequence[Sequence[Task]] = ()
    """Of each task, problems that adapting to it should leave alone; none where `train.canary_kl` is 0."""

    @property
    def problems(self) -> list[str]:
        return [task.problem for task in self.tasks]


@dataclass(frozen=True)
class Gradients:
    """Sums over the tasks of a stack, or of several."""

    theta: Params
    generator: Params = field(default_factory=dict[str, Tensor])
    """Of theta, from the generator's policy gradient with rewards that are centred in their group but not scaled."""
    reward_squares: tuple[float, int] = (0.0, 0)
    """Sum of the squares of those rewards, and their number: what scales them over the whole batch."""
    eta: Params = field(default_factory=dict[str, Tensor])
    log_rates: Params = field(default_factory=dict[str, Tensor])
    measured: dict[str, float] = field(default_factory=dict[str, float])
    """Names of `MEASURED`."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By stage, of this process."""


class Measured(dict[str, float]):
    """Adds up what is measured. A name that is not in `MEASURED` would be lost on its way to the first process."""

    def add(self, **values: float) -> None:
        for name, value in values.items():
            assert name in MEASURED, name
            self[name] = self.get(name, 0.0) + value

    def add_practice(self, groups: Sequence[Sequence[Example]]) -> None:
        """The share of each problem's examples that is valid, those that are not by reason, and the tokens of all."""
        examples = [e for group in groups for e in group]
        self.add(valid=sum(e.valid for e in examples) / len(groups[0]), tokens=sum(len(e.tokens) for e in examples))
        shares = rejected_shares(examples)
        self.add(**{r.replace(" ", "_"): len(groups) * shares.get(r, 0.0) for r in REASONS})


def total(parts: Sequence[Gradients]) -> Gradients:
    """The sum over stacks."""
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
    """The sum over processes, the same in each: one all-reduce, in float64, so that no part is rounded on its way.

    It holds 8 bytes for each parameter of theta (twice: solver and generator), eta and the rates. Seconds stay those
    of each process.
    """
    if ranks.size == 1:
        return sums
    shapes = {"theta": state.theta, "generator": state.theta, "eta": state.eta, "log_rates": state.log_rates}
    pieces = [
        getattr(sums, group).get(name, torch.zeros_like(t)) for group, p in shapes.items() for name, t in p.items()
    ]
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
    """The generator's mean gradient over `count` tasks, rewards in units of their standard deviation over all of them.

    Not over each group: where practice makes next to no difference, the rewards of a group are noise, and dividing by
    their own spread would make that noise the loudest part of the gradient.
    """
    squares, number = sums.reward_squares
    if not squares:
        return {}
    scale = weight / (squares / number) ** 0.5
    return {name: scale * g for name, g in mean(sums.generator, count).items()}


def mean(gradient: Params, count: int) -> Params:
    return {name: g / count for name, g in gradient.items()}


def added(one: Params, other: Params) -> Params:
    return {**other, **{name: t + other[name] if name in other else t for name, t in one.items()}}


def norm(gradient: Params) -> float:
    return float(torch.stack([g.norm() for g in gradient.values()]).norm()) if gradient else 0.0


def _total(parts: Sequence[Params]) -> Params:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).sum(0) for name in names}


def _sums(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: sum(table.get(name, 0.0) for table in tables) for name in names}
