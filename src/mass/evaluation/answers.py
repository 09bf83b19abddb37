"""Answer problems by the methods that need no choice among samples, and record what each answer cost.

A method sees the texts of problems, never a `Task`: no gold can reach it. The tasks that base-ttt learns from are
training tasks. Answer i is a function of its problem and `seeds[i]` (and, up to rounding, not of its neighbours).
Methods that choose among sampled answers are in `mass.evaluation.votes`.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mass import tasks as task_sets
from mass.adaptation.answer import answer_all
from mass.config import (
    EvalConfig,
    SynthesisConfig,
)
from mass.errors import DataError
from mass.evaluation.contestants import Contestant
from mass.lm import LM
from mass.seeds import derive
from mass.types import Adaptation, Example, Groups, Params, Task


@dataclass(frozen=True)
class Drawn:
    """Sampled answers to one problem at one temperature, all from the weights that gave the attempt they belong to."""

    temperature: float
    texts: tuple[str, ...]
    tokens: float
    """Generated tokens per answer: the practice before it and, on average, the answer itself."""
    seconds: float
    """Wall-clock seconds per answer, counted in the same way."""


@dataclass(frozen=True)
class Attempt:
    """One answer and its cost."""

    text: str
    tokens: int
    """All generated tokens: practice, votes and answer."""
    seconds: float
    """Wall-clock seconds, divided equally among the problems answered side by side."""
    record: Adaptation | None = None
    """The adaptation record; None for a method that does not adapt."""
    votes: dict[str, int] | None = None
    """For a majority vote: answers and their votes, in order of first appearance; else None."""
    samples: int = 1
    """Number of sampled answers to choose among: n of maj@n."""
    drawn: tuple[Drawn, ...] = ()
    """Answers sampled in addition to this one, one entry per temperature; empty where none were asked for."""
    left_out: int = 0
    """For in-context: practice examples that did not fit."""


TRAINING_POOL = 1000
"""Number of problems of the train split that base-ttt draws from when it is given no training tasks."""


def answer_plain(
    contestant: Contestant, problems: Sequence[str], seeds: Sequence[int], config: EvalConfig
) -> list[Attempt]:
    """Answer with the contestant's weights as they are, with the same random numbers as an adapted answer."""
    prompts = [contestant.lm.solve_prompt(problem) for problem in problems]
    return answer_prompts(contestant, prompts, seeds, config)


def answer_prompts(
    contestant: Contestant, prompts: Sequence[Sequence[int]], seeds: Sequence[int], config: EvalConfig
) -> list[Attempt]:
    """Answer each prompt once as `config.answer` says, and sample the additional answers asked for."""
    lm, start = contestant.lm, time.perf_counter()
    samples = lm.sample(prompts, config.answer, [derive(seed, "answer") for seed in seeds], contestant.theta)
    seconds = (time.perf_counter() - start) / len(prompts)
    attempts = [Attempt(s.text.strip(), len(s.tokens), seconds) for s in samples]
    drawn = draw_beside(lm, prompts, seeds, contestant.theta, config)
    return [dataclasses.replace(attempt, drawn=some) for attempt, some in zip(attempts, drawn, strict=True)]


def answer_adapted(
    contestant: Contestant,
    problems: Sequence[str],
    seeds: Sequence[int],
    config: EvalConfig,
    practice: Groups | None = None,
    written_s: Sequence[float] | None = None,
    *,
    losses: bool = True,
) -> list[Attempt]:
    """Adapt to each problem and answer it; one adaptation serves all its answers.

    Args:
        practice: Practice examples for each problem; None: the model writes its own.
        written_s: The seconds that the writing of each problem's practice took, where another method wrote it: they
            are part of what an answer costs. None: it was written here, or by nobody.
        losses: Whether to measure the losses of practice before and after, for the records.
    """
    assert contestant.state is not None
    lm = contestant.lm
    records, adapted = answer_all(
        lm, contestant.state, problems, contestant.config, seeds, unadapted=False, replay=practice, losses=losses
    )
    records = [dataclasses.replace(record, **contestant.recorded) for record in records]
    if written_s is not None:
        both = zip(records, written_s, strict=True)
        records = [dataclasses.replace(r, seconds={**r.seconds, "synthesis": seconds}) for r, seconds in both]
    drawn = draw_beside(lm, [lm.solve_prompt(problem) for problem in problems], seeds, adapted.stack, config)
    return [_adapted_attempt(record, some) for record, some in zip(records, drawn, strict=True)]


def _adapted_attempt(record: Adaptation, drawn: tuple[Drawn, ...]) -> Attempt:
    """Return the attempt; the cost of practice is part of the cost of each answer."""
    tokens, seconds = sum(record.tokens.values()), sum(record.seconds.values())
    attempt = Attempt(record.text, tokens, seconds, record, drawn=drawn)
    own_tokens, own_seconds = record.tokens["answer"], record.seconds["answer"]
    return dataclasses.replace(attempt, drawn=after(drawn, tokens - own_tokens, seconds - own_seconds))


def draw_beside(
    lm: LM, prompts: Sequence[Sequence[int]], seeds: Sequence[int], adapter: Params | None, config: EvalConfig
) -> list[tuple[Drawn, ...]]:
    """Sample `config.samples` answers to each prompt at each of `config.temperatures`; none where `samples` is 0.

    Sample j of a problem has a seed derived from (its seed, temperature, j), whatever the method, so methods are
    compared under the same random numbers.
    """
    n, found = config.samples, [list[Drawn]() for _ in prompts]
    for temperature in config.temperatures if n else ():
        start = time.perf_counter()
        sampling = dataclasses.replace(config.answer, temperature=temperature)
        row_seeds = [derive(seed, "sampled", f"{temperature:g}", j) for seed in seeds for j in range(n)]
        samples = lm.sample([p for p in prompts for _ in range(n)], sampling, row_seeds, adapter)
        seconds = (time.perf_counter() - start) / len(samples)
        for i, drawn in enumerate(found):
            mine = samples[i * n : (i + 1) * n]
            tokens = sum(len(s.tokens) for s in mine) / n
            drawn.append(Drawn(temperature, tuple(s.text.strip() for s in mine), tokens, seconds))
    return [tuple(drawn) for drawn in found]


def after(drawn: Sequence[Drawn], tokens: float, seconds: float) -> tuple[Drawn, ...]:
    """Return the same answers with the cost of what came before them added to each."""
    return tuple(dataclasses.replace(d, tokens=d.tokens + tokens, seconds=d.seconds + seconds) for d in drawn)


def training_pool(
    train_tasks: Sequence[Task] | None, seed: int, held_out: Sequence[str], source: str = "minimath"
) -> list[Task]:
    """Return training tasks with a worked solution, none of them among the `held_out` problems.

    Where no tasks are given, they come from the train split of a built-in source.

    Raises:
        DataError: None is left.
    """
    tasks = task_sets.load(source, split="train", size=TRAINING_POOL, seed=seed) if train_tasks is None else train_tasks
    texts = set(held_out)
    pool = [task for task in tasks if task.solution.strip() and task.problem not in texts]
    if not pool:
        raise DataError(
            f"base-ttt has {len(tasks)} training tasks, none with a worked solution that is not also a problem to "
            "answer; give others, or leave base-ttt out"
        )
    return pool


def training_examples(lm: LM, pool: Sequence[Task], config: SynthesisConfig, seeds: Sequence[int]) -> Groups:
    """Draw training tasks at random for each problem, as its practice examples."""
    m = min(config.examples, len(pool))
    drawn = [random.Random(derive(seed, "training examples")).sample(pool, m) for seed in seeds]
    return [tuple(gold_example(lm, task, config) for task in tasks) for tasks in drawn]


def gold_example(lm: LM, task: Task, config: SynthesisConfig) -> Example:
    """Return a training task with its worked solution as a practice example, rejected if it is too long."""
    try:
        context, target = lm.example_row(task.problem, task.solution)
        fits = len(context) + len(target) <= min(lm.context, config.max_example_tokens)
    except DataError:  # the problem alone is too long
        fits = False
    return Example(task.problem, task.solution, rejected="" if fits else "too long")
