"""A sample of problems, a configuration -> how long rows are: usually, and at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mass.config import RunConfig
from mass.errors import DataError
from mass.lm import LM
from mass.types import Task

CHARACTERS = 3
"""Of a token, where there is no tokenizer to ask; English and LaTeX have 3 to 4, so that this errs on the long side."""
FRAME = 30
"""Tokens that a chat template puts around a message, where there is none to ask."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of a step."""

    solve: int
    """Of the solver prompt."""
    synthesis: int
    """Of the synthesis prompt."""
    written: int
    """Of a practice example as the model writes it."""
    example_prompt: int
    """Of the solver prompt of a practice problem."""
    example: int
    """Of a practice solution."""
    answer: int
    """Of a sampled solution in training."""
    held_out: int
    """Of an answer to a held-out problem."""
    gold: int
    """Of a worked solution."""


class Counter:
    """Counts tokens as the model's tokenizer does; without it (`exact` False), by characters."""

    def __init__(self, lm: LM, *, exact: bool) -> None:
        self._lm, self.exact = lm, exact

    def solve(self, task: Task) -> int:
        return self._prompt(self._lm.solve_prompt, task)

    def synthesis(self, task: Task) -> int:
        return self._prompt(self._lm.synthesis_prompt, task)

    def solution(self, task: Task) -> int:
        return self._text(task.solution or task.answer)

    def problem(self, task: Task) -> int:
        return self._text(task.problem)

    def _text(self, text: str) -> int:
        return len(self._lm.target_ids(text)) if self.exact else len(text) // CHARACTERS + 1

    def _prompt(self, prompt: Callable[[str], list[int]], task: Task) -> int:
        try:
            tokens = len(prompt(task.problem))
        except DataError:  # longer than the context: training leaves it out
            return self._lm.context
        return tokens if self.exact else tokens // CHARACTERS + FRAME


def usual(counter: Counter, tasks: Sequence[Task], config: RunConfig) -> Lengths:
    """Means over the tasks; what the model writes is taken to be as long as the worked solutions are."""
    problem, gold = (_mean(tasks, of) for of in (counter.problem, counter.solution))
    solve, synthesis = (_mean(tasks, of) for of in (counter.solve, counter.synthesis))
    limits = at_most(counter, tasks, config)
    written = min(limits.written, problem + gold)
    solution = max(1, min(limits.example, gold, written))
    return Lengths(
        solve,
        synthesis,
        written,
        limits.example_prompt + written - solution,
        solution,
        min(limits.answer, gold),
        min(limits.held_out, gold),
        gold,
    )


def at_most(counter: Counter, tasks: Sequence[Task], config: RunConfig) -> Lengths:
    """The longest prompt of the tasks, and texts that run to their limits. A practice example is a short problem with
    a long solution: as many tokens as it may have, most of which count."""
    synthesis = config.adapt.synthesis
    solve, longest = max(map(counter.solve, tasks)), max(map(counter.synthesis, tasks))
    frame = max(1, min(counter.solve(task) - counter.problem(task) for task in tasks))
    written = synthesis.sampling.max_tokens
    example = max(1, min(written, synthesis.max_example_tokens - frame))
    return Lengths(
        solve,
        longest,
        written,
        frame,
        example,
        config.outer.sampling.max_tokens,
        config.test.answer.max_tokens,
        max(map(counter.solution, tasks)),
    )


def _mean(tasks: Sequence[Task], of: Callable[[Task], int]) -> int:
    return max(1, round(sum(map(of, tasks)) / len(tasks)))
