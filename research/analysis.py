"""Analyse the practice of a checkpoint: what it is like and what it is worth, before and after meta-training.

For each practice example the analysis records whether it is right, whether it is of the target's kind, how hard it is
and how far from the target (`research.appraisal`), its weight, and its own effect. The effect is measured by adapting
on that example only, with weight 1 and the same inner loop: how much more likely does the target's gold solution
become, and does the greedy answer change? The analysis also records what the adaptation does elsewhere: its drift on
problems of other subjects (`mass.adaptation.drift`), and the answers to them before and after.

Legend: P problems, m examples of each, n examples in one pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mass.adaptation.adapt import Adapted, adapt_stack, practise
from mass.adaptation.checkpoint import MetaState, init_state
from mass.adaptation.drift import drifts, sample_answers
from mass.config import AdaptConfig, ScoringConfig, TasksConfig, to_dict
from mass.errors import DataError
from mass.lm import LM
from mass.lm.prompts import common_kind
from mass.model import Mass
from mass.runs.data import canary_stream
from mass.seeds import derive
from mass.tasks import content_hash
from mass.timing import Clock
from mass.types import Example, Params, Task
from mass.verify import check_all
from research.appraisal import NEAR_COPY, Recognise, appraise, recogniser

BEFORE, AFTER = "before", "after"
Progress = Callable[[str, int, int], None]
"""Called with ("before" or "after", problems done, problems in total)."""
DIGITS = 4
OTHERS = 2
"""Number of problems of other subjects on which each adaptation is examined."""


@dataclass(frozen=True)
class Subject:
    """A model and state whose practice is examined."""

    lm: LM
    state: MetaState
    config: AdaptConfig
    recognise: Recognise | None


@dataclass(frozen=True)
class Worth:
    """The effect of one example alone; None where it cannot be measured."""

    effect: float | None = None
    """Increase of the gold solution's mean log-probability, in nats per token."""
    verdict: int | None = None
    """1 when the greedy answer became right, -1 when it became wrong, 0 when neither."""


def analyse(
    model: Mass,
    tasks: Sequence[Task],
    *,
    source: Mapping[str, Any],
    name: str | None = None,
    seed: int = 0,
    stack: int = 16,
    alone: bool = True,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the analysis in the form that `python -m research collect` stores and `research.results.practice` reads.

    Args:
        model: The model with the checkpoint to analyse.
        tasks: Problems with gold.
        source: Where the tasks come from (source, split, seed; levels and subjects where chosen).
        name: Name of the analysis. None: the method that trained the checkpoint.
        seed: Seed of practice and sampling.
        stack: Number of problems, or of single examples, that are adapted side by side.
        alone: True to measure the effect of each example alone, which takes one adaptation per example.
        on_progress: Called as the analysis proceeds.

    Raises:
        DataError: There are no tasks, or one has neither a solution nor an answer.
    """
    if not tasks:
        raise DataError("there are no problems to analyse; give at least one")
    for task in tasks:
        if not (task.solution or task.answer).strip():
            raise DataError(f"{task.id!r} has neither a solution nor an answer, by which practice is judged; add one")
    model = model.asking(common_kind(tasks))
    recognise = recogniser(str(source.get("source", "")))
    start = init_state(model.lm, model.config, seed)
    subjects = {
        BEFORE: Subject(model.lm, start, model.config, recognise),
        AFTER: Subject(model.lm, model.state, model.config, recognise),
    }
    others = _others(tasks, seed)
    found = {
        when: _examine(subject, tasks, others, seed, stack, alone, _told(on_progress, when, len(tasks)))
        for when, subject in subjects.items()
    }
    return {
        "name": name or model.method,
        "seed": seed,
        "model": model.lm.name,
        "checkpoint": model.origin["checkpoint"],
        "config": to_dict(model.config),
        "tasks": {**source, "size": len(tasks), "hash": content_hash(tasks)},
        "near_copy": NEAR_COPY,
        **found,
    }


def _told(on_progress: Progress | None, when: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(when, done, total) if on_progress else None


def _others(tasks: Sequence[Task], seed: int) -> list[list[Task]]:
    """Return for each task the same number of problems of other subjects among the tasks; empty where one has none."""
    at = canary_stream(TasksConfig(), seed, OTHERS, tasks.__getitem__, tasks)
    try:
        found = [at(number) for number in range(len(tasks))]
    except DataError:
        return []
    count = min(map(len, found))
    return [some[:count] for some in found]


def _examine(
    subject: Subject,
    tasks: Sequence[Task],
    others: Sequence[Sequence[Task]],
    seed: int,
    stack: int,
    alone: bool,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    columns: dict[str, list[list[Any]]] = {}
    elsewhere: dict[str, list[Any]] = {}
    answers: dict[str, list[bool | None]] = {"unadapted": [], "adapted": []}
    tick(0)
    for start in range(0, len(tasks), stack):
        part = tasks[start : start + stack]
        seeds = [derive(seed, "analysis", start + i) for i in range(len(part))]
        problems = [task.problem for task in part]
        _, adapted = practise(subject.lm, subject.state, problems, subject.config, seeds)
        unadapted = _right(subject, part, subject.state.theta)
        answers["unadapted"] += unadapted
        answers["adapted"] += _right(subject, part, adapted.stack)
        if alone:
            worths = _worths(subject, part, adapted, unadapted, stack)
        else:
            worths = [[Worth() for _ in group] for group in adapted.groups]
        if others:
            for key, values in _elsewhere(subject, others[start : start + len(part)], adapted, seeds, stack).items():
                elsewhere.setdefault(key, []).extend(values)
        for task, group, worth in zip(part, adapted.groups, worths, strict=True):
            rows = [_row(task, example, w, subject.recognise) for example, w in zip(group, worth, strict=True)]
            for key in rows[0]:
                columns.setdefault(key, []).append([row[key] for row in rows])
        tick(start + len(part))
    right = {key: [_plain(value) for value in values] for key, values in answers.items()}
    return {"columns": columns, **right, **elsewhere}


def _row(task: Task, example: Example, worth: Worth, recognise: Recognise | None) -> dict[str, Any]:
    """Return the values of one example; true and false become 1 and 0."""
    said = appraise(task, example, recognise)
    values: dict[str, bool | float | None] = {
        "valid": said.valid,
        "recognised": said.recognised,
        "correct": said.correct,
        "same_kind": said.same_kind,
        "same_subject": said.same_subject,
        "level": said.level_difference,
        "distance": said.distance,
        "relative_distance": said.relative_distance,
        "weight": example.weight,
        "effect": worth.effect,
        "verdict": worth.verdict,
        "attempt": example.attempt,
    }
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: bool | float | None) -> float | int | None:
    if value is None or isinstance(value, bool | int):
        return None if value is None else int(value)
    return round(value, DIGITS) if value == value else None


# --- the effect of the adaptation on other problems


def _elsewhere(
    subject: Subject, others: Sequence[Sequence[Task]], adapted: Adapted, seeds: Sequence[int], stack: int
) -> dict[str, list[Any]]:
    """Return, for each task, the drift and the verdicts on greedy answers to its other problems, unadapted and
    adapted."""
    theta, flat = subject.state.theta, [task for some in others for task in some]
    answers = sample_answers(subject.lm, others, subject.config.answer, seeds, theta)
    drift = drifts(subject.lm, answers, theta, adapted.stack, stack).tolist()
    found: dict[str, list[Any]] = {"drift": [round(value, 2 * DIGITS) for value in drift]}
    for name, adapter in (("others_unadapted", theta), ("others_adapted", adapted.stack)):
        right = [_plain(correct) for correct in _right(subject, flat, adapter)]
        count = len(others[0])
        found[name] = [right[i : i + count] for i in range(0, len(right), count)]
    return found


# --- the effect of one example alone


def _worths(
    subject: Subject, tasks: Sequence[Task], adapted: Adapted, unadapted: Sequence[bool | None], stack: int
) -> list[list[Worth]]:
    """Return the worth of each example of each task."""
    places = [(b, j) for b, group in enumerate(adapted.groups) for j, example in enumerate(group) if example.valid]
    found = [[Worth() for _ in group] for group in adapted.groups]
    before = _gold_losses(subject.lm, tasks, subject.state.theta).tolist()
    for start in range(0, len(places), stack):
        part = places[start : start + stack]
        of = [tasks[b] for b, _ in part]
        alone = _alone(subject, of, [adapted.groups[b][j] for b, j in part])
        losses = _gold_losses(subject.lm, of, alone.stack).tolist()
        right = _right(subject, of, alone.stack)
        for (b, j), loss, now, failed in zip(part, losses, right, alone.fallbacks, strict=True):
            then = unadapted[b]
            if not failed:
                change = None if now is None or then is None else int(now) - int(then)
                found[b][j] = Worth(before[b] - loss, change)
    return found


def _alone(subject: Subject, tasks: Sequence[Task], examples: Sequence[Example]) -> Adapted:
    """Return a stack of n adapters, each adapted on one example."""
    # Uniform weights over one example: its weight is 1, and the scorer plays no part.
    config = dataclasses.replace(subject.config, scoring=ScoringConfig(normalise="uniform"))
    problems = [task.problem for task in tasks]
    return adapt_stack(subject.lm, subject.state, problems, [(e,) for e in examples], config, Clock())


@torch.no_grad()
def _gold_losses(lm: LM, tasks: Sequence[Task], adapter: Params) -> Float[Tensor, " n"]:
    """Return the mean negative log-likelihood of each task's gold, under one adapter or a stack of n."""
    batch = lm.batch([lm.example_row(task.problem, task.solution or task.answer) for task in tasks])
    stacked = next(iter(adapter.values())).dim() == 3
    rows = torch.arange(len(tasks), device=lm.device) if stacked else None
    return lm.losses(batch, adapter, rows)


def _right(subject: Subject, tasks: Sequence[Task], adapter: Params) -> list[bool | None]:
    """Return the verdicts on greedy answers, under one adapter or a stack in which each adapter answers equally many
    tasks."""
    lm, greedy = subject.lm, dataclasses.replace(subject.config.answer, temperature=0.0)
    samples = lm.sample([lm.solve_prompt(task.problem) for task in tasks], greedy, [0] * len(tasks), adapter)
    verdicts = check_all([(task, sample.text) for task, sample in zip(tasks, samples, strict=True)])
    return [verdict.correct for verdict in verdicts]
