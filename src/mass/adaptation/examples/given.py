"""Given examples -> a clean set with weights, and a line on everything that was found in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mass.config import ExamplesConfig
from mass.errors import DataError
from mass.types import Pair, Task, shortened

if TYPE_CHECKING:
    from mass.lm import LM

FEW_TOKENS = 32
"""Tokens that an answer may always have."""


@dataclass(frozen=True)
class ExampleSet:
    """Examples that differ, each with the weight of its loss. The weights have mean 1."""

    tasks: tuple[Task, ...]
    weights: tuple[float, ...]
    labels: tuple[str, ...]
    """The different outputs, where they are labels: few, each mostly for several inputs; else empty."""
    answer_tokens: int
    """Tokens that an answer may have: twice those of the longest output."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The examples as (input, output)."""
        return tuple((task.problem, task.solution) for task in self.tasks)


def clean(lm: LM, tasks: Sequence[Task], config: ExamplesConfig) -> ExampleSet:
    """Merge repeated examples, leave out those that are too long, and weigh the rest.

    `lm` asks with the prompts for examples. Raises DataError where nothing is left.
    """
    different = _distinct(tasks)
    notes: list[str] = []
    if repeated := len(tasks) - len(different):
        notes.append(f"{_count(repeated, 'example is', 'examples are')} repeated; each counts once")
    by_input: dict[str, list[Task]] = {}
    for task in different:
        by_input.setdefault(one_line(task.problem), []).append(task)
    if torn := [found for found in by_input.values() if len(found) > 1]:
        outputs = " and ".join(repr(shortened(task.solution, 24)) for task in torn[0][:3])
        which = f"{shortened(torn[0][0].problem, 40)!r} has {outputs}"
        notes.append(f"{_count(len(torn), 'input has', 'inputs have')} contradictory outputs ({which}); all are kept")
    limit = min(config.max_example_tokens, lm.context)
    fitting = [task for task in different if lm.example_tokens(task.problem, task.solution) <= limit]
    if not fitting:
        more = ", or raise learn.max_example_tokens" if config.max_example_tokens < lm.context else ""
        raise DataError(
            f"{'the only example is' if len(different) == 1 else f'all {len(different)} examples are'} longer than "
            f"{limit} tokens; expected shorter ones; cut them{more}"
        )
    if left := len(different) - len(fitting):
        notes.append(
            f"{_count(left, 'example is', 'examples are')} longer than {limit} tokens, prompt included, and left out"
        )
    labels = labels_of(fitting)
    weights = _weights(fitting, labels) if config.balance else [1.0] * len(fitting)
    if max(weights) > 1.5 * min(weights):
        few = Counter(one_line(task.solution) for task in fitting).most_common()
        counts = f"{shortened(few[0][0], 24)!r} {few[0][1]}, {shortened(few[-1][0], 24)!r} {few[-1][1]}"
        notes.append(f"the labels are uneven (from {counts}); each label counts as much in learning")
    longest = max(len(lm.target_ids(task.solution)) for task in fitting)
    return ExampleSet(tuple(fitting), tuple(weights), labels, max(FEW_TOKENS, 2 * longest), tuple(notes))


def _distinct(tasks: Sequence[Task]) -> list[Task]:
    found: dict[Pair, Task] = {}
    for task in tasks:
        found.setdefault((one_line(task.problem), one_line(task.solution)), task)
    return list(found.values())


def one_line(text: str) -> str:
    """Return the text with single spaces, by which examples are compared."""
    return " ".join(text.split())


def labels_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Return the different outputs where they are labels: each for two inputs or more on average; else nothing."""
    counts = Counter(one_line(task.solution) for task in tasks)
    return tuple(sorted(counts)) if 2 <= len(counts) <= len(tasks) / 2 else ()


def _weights(tasks: Sequence[Task], labels: Sequence[str]) -> list[float]:
    """Return weights of mean 1, with which all labels weigh the same."""
    if not labels:
        return [1.0] * len(tasks)
    counts = Counter(one_line(task.solution) for task in tasks)
    return [len(tasks) / len(labels) / counts[one_line(task.solution)] for task in tasks]


def divide(examples: ExampleSet, folds: int, seed: int) -> list[list[int]]:
    """Return the indices of the examples of each fold; the labels are spread over the folds.

    Examples with one input are in one fold: held out, one would otherwise be asked of a model that has the others.
    There are at most as many folds as different inputs, and none where there is only one input.
    """
    groups: dict[str, list[int]] = {}
    for i, task in enumerate(examples.tasks):
        groups.setdefault(one_line(task.problem), []).append(i)
    units = list(groups.values())
    if len(units) < 2:
        return []
    random.Random(seed).shuffle(units)
    if examples.labels:
        units.sort(key=lambda unit: one_line(examples.tasks[unit[0]].solution))
    count = min(folds, len(units))
    return [sorted(i for unit in units[at::count] for i in unit) for at in range(count)]


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
