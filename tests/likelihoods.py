"""A language model, multiple-choice Tasks -> Verdicts, by the likelihood of each letter: nothing is generated.

    letter = argmax_c  log p(c | prompt of the problem)

as lm-evaluation-harness scores MMLU (lm_eval/tasks/mmlu/default: `output_type: multiple_choice`, metric `acc`). The
model is handed in and known by the few methods of `Likelihoods`, which `mass.lm.LM` has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mass.errors import DataError
from mass.types import Batch, Params, Task, Verdict
from mass.verify.choice import listed

Row = tuple[list[int], list[int]]


class Likelihoods(Protocol):
    """What is asked of a model; see `mass.lm.LM`."""

    def solve_prompt(self, problem: str) -> list[int]: ...
    def target_ids(self, solution: str) -> list[int]: ...
    def batch(self, rows: Sequence[Row]) -> Batch: ...
    def token_logprobs(self, batch: Batch, adapter: Params | None = None) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Choice:
    letter: str
    logprobs: dict[str, float]
    """Of each letter, in nats: the sum over its tokens, the end token not among them."""


def letters(problem: str) -> list[str]:
    """The letters that `problem` lists, a line each, as `mass.tasks` writes them or in brackets. Raises DataError for
    none."""
    found = listed(problem)
    if len(found) < 2:
        raise DataError(f"the problem {problem[:40]!r} lists no choices; expected lines like 'A. …' or '(A) …'")
    return found


def choose(lm: Likelihoods, problem: str, adapter: Params | None = None) -> Choice:
    """The likeliest letter under the model with `adapter` (one, not a stack); the first of equals."""
    names = letters(problem)
    prompt = lm.solve_prompt(problem)
    rows = [(prompt, lm.target_ids(name)[:-1]) for name in names]
    logprobs, mask = lm.token_logprobs(lm.batch(rows), adapter)
    sums = (logprobs * mask).sum(1).tolist()
    each = dict(zip(names, map(float, sums), strict=True))
    return Choice(max(each, key=lambda name: each[name]), each)


def check_by_likelihood(lm: Likelihoods, tasks: Sequence[Task], adapter: Params | None = None) -> list[Verdict]:
    """Verdicts in the order of `tasks`, one forward pass for each."""
    return [_verdict(choose(lm, task.problem, adapter), task.answer.strip()) for task in tasks]


def _verdict(choice: Choice, gold: str) -> Verdict:
    if gold not in choice.logprobs:
        return Verdict(None, f"the task's answer {gold[:40]!r} is none of its choices", choice.letter)
    sign = "is" if choice.letter == gold else "is not"
    gap = choice.logprobs[choice.letter] - choice.logprobs[gold]
    return Verdict(choice.letter == gold, f"{choice.letter} {sign} {gold} (likelier by {gap:.3g} nats)", choice.letter)
