"""Estimate how long the rows of a step are, usually and at most, from a sample of problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mass.config import RunConfig
from mass.errors import DataError
from mass.lm import LM
from mass.types import Task

CHARACTERS = 3
"""Characters per token, where there is no tokenizer. English and LaTeX have 3 to 4, so estimates err on the long
side."""
FRAME = 30
"""Tokens that a chat template adds around a message, where no template is available."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows of a step, in tokens."""

    solve: int
    """The solver prompt."""
    synthesis: int
    """The synthesis prompt."""
    written: int
    """A practice example as the model writes it."""
    example_prompt: int
    """The solver prompt of a practice problem."""
    example: int
    """A practice solution."""
    answer: int
    """A sampled solution in training."""
    held_out: int
    """An answer to a held-out problem."""
    gold: int
    """A worked solution."""


class Counter:
    """Counts tokens with the model's tokenizer; without one (`exact` is False), estimates them from characters."""

    def __init__(self, lm: LM, *, exact: bool) -> None:
        self._lm, self.exact = lm, exact

    def solve(self, task: Task) -> int:
        """Return the tokens of the solver prompt."""
        return self._prompt(self._lm.solve_prompt, task)

    def synthesis(self, task: Task) -> int:
        """Return the tokens of the synthesis prompt."""
        return self._prompt(self._lm.synthesis_prompt, task)

    def solution(self, task: Task) -> int:
        """Return the tokens of the worked solution."""
        return self._text(task.solution or task.answer)

    def problem(self, task: Task) -> int:
        """Return the tokens of the problem."""
        return self._text(task.problem)

    def _text(self, text: str) -> int:
        return len(self._lm.target_ids(text)) if self.exact else len(text) // CHARACTERS + 1

    def _prompt(self, prompt: Callable[[str], list[int]], task: Task) -> int:
        try:
            tokens = len(prompt(task.problem))
        except DataError:  # longer than the context; training leaves such a task out
            return self._lm.context
        return tokens if self.exact else tokens // CHARACTERS + FRAME


def usual(counter: Counter, tasks: Sequence[Task], config: RunConfig) -> Lengths:
    """Return the mean lengths over the tasks. The model's texts are assumed to be as long as the worked solutions."""
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
    """Return the length of the longest prompt, with texts that run to their limits.

    A practice example is assumed to be a short problem with a long solution: the case in which most of its tokens
    count.
    """
    synthesis = config.adapt.synthesis
    solve, longest = max(map(counter.solve, tasks)), max(map(counter.synthesis, tasks))
    frame = max(1, min(counter.solve(task) - counter.problem(task) for task in tasks))
    written = synthesis.sampling.max_new_tokens
    example = max(1, min(written, synthesis.max_example_tokens - frame))
    return Lengths(
        solve,
        longest,
        written,
        frame,
        example,
        config.outer.sampling.max_new_tokens,
        config.test.answer.max_new_tokens,
        max(map(counter.solution, tasks)),
    )


def _mean(tasks: Sequence[Task], of: Callable[[Task], int]) -> int:
    return max(1, round(sum(map(of, tasks)) / len(tasks)))
