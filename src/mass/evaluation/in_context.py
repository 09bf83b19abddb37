"""Answer problems with the practice placed in the prompt instead of in the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mass.adaptation import synthesis
from mass.config import EvalConfig
from mass.evaluation.answers import Attempt, after, answer_prompts
from mass.evaluation.contestants import Contestant
from mass.lm import LM
from mass.timing import Clock
from mass.types import Example, Groups


def answer_in_context(
    contestant: Contestant,
    problems: Sequence[str],
    seeds: Sequence[int],
    config: EvalConfig,
    written: Sequence[Attempt] | None = None,
) -> list[Attempt]:
    """Answer each problem with its valid practice examples before it in the prompt, and the weights as they are.

    Args:
        written: Attempts of mass at the same problems, whose practice is used. None: practice is written now.
    """
    groups, costs = _written(contestant, problems, seeds) if written is None else _written_by(written)
    return answer_with_shots(contestant, problems, seeds, config, groups, costs)


def answer_with_shots(
    contestant: Contestant,
    problems: Sequence[str],
    seeds: Sequence[int],
    config: EvalConfig,
    groups: Groups,
    costs: Sequence[tuple[int, float]] | None = None,
) -> list[Attempt]:
    """Answer each problem with the valid examples of its group before it.

    Args:
        costs: The tokens and seconds that each problem's practice took; None: nothing.
    """
    lm, costs = contestant.lm, costs or [(0, 0.0)] * len(problems)
    fitting = [_fitting(lm, group, p, config.answer.max_new_tokens) for group, p in zip(groups, problems, strict=True)]
    attempts = answer_prompts(contestant, [prompt for prompt, _ in fitting], seeds, config)
    return [
        dataclasses.replace(
            attempt,
            tokens=attempt.tokens + tokens,
            seconds=attempt.seconds + seconds,
            drawn=after(attempt.drawn, tokens, seconds),
            left_out=left_out,
        )
        for attempt, (tokens, seconds), (_, left_out) in zip(attempts, costs, fitting, strict=True)
    ]


def _written(
    contestant: Contestant, problems: Sequence[str], seeds: Sequence[int]
) -> tuple[Groups, list[tuple[int, float]]]:
    """Write practice; return it with the tokens and seconds that it took, for each problem."""
    clock, config = Clock(), contestant.config.synthesis
    groups = synthesis.practice_for(contestant.lm, problems, config, seeds, contestant.theta, clock)
    seconds = sum(clock.shares(len(problems)).values())
    return groups, [(sum(synthesis.written_tokens(group).values()), seconds) for group in groups]


def _written_by(attempts: Sequence[Attempt]) -> tuple[Groups, list[tuple[int, float]]]:
    records = [attempt.record for attempt in attempts if attempt.record is not None]
    stages = ("synthesis", "verification")
    costs = [(sum(r.tokens.get(s, 0) for s in stages), sum(r.seconds.get(s, 0.0) for s in stages)) for r in records]
    return [r.examples for r in records], costs


def _fitting(lm: LM, group: Sequence[Example], problem: str, answer_tokens: int) -> tuple[list[int], int]:
    """Return the prompt with as many examples as leave space for the answer, and how many valid ones did not fit.

    Examples keep the order in which they were written.
    """
    shots: list[tuple[str, str]] = []
    left_out, prompt = 0, lm.solve_prompt(problem)
    for example in group:
        if example.valid:
            longer = lm.shots_prompt([*shots, (example.problem, example.solution)], problem)
            if len(longer) + answer_tokens <= lm.context:
                shots.append((example.problem, example.solution))
                prompt = longer
            else:
                left_out += 1
    return prompt, left_out
