"""(target, practice example) -> what can be said of the example: correct, of the target's kind, how hard, how near.

Gold of the target takes no part, but correctness needs one of the example itself: minimath recognises a text of its
own and solves it. Other sources cannot be asked whether what a model writes is right; there those parts are None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mass.tasks import minimath
from mass.types import Example, Task
from mass.verify import check

NEAR_COPY = 2
"""An example whose problem differs from the target's text in at most so many characters is a near-copy."""


class Recognised(Protocol):
    """A text as the problem that it states."""

    @property
    def kind(self) -> object: ...

    @property
    def level(self) -> int: ...

    def task(self) -> Task: ...


Recognise = Callable[[str], Recognised | None]
"""A problem's text -> the problem, or None for one that is not of the source."""


@dataclass(frozen=True)
class Appraisal:
    """Of one example. What is None could not be judged: the source has no recogniser, the text is not parsed, or it is
    said of problems that were written and this is an attempt at the target."""

    valid: bool
    distance: int | None
    """Edit distance, in characters, between the example's problem and the target's text."""
    relative_distance: float | None
    """The same over the length of the longer text: 0 for a copy, 1 for texts that share nothing."""
    recognised: bool | None
    """Whether the example's problem is one of the source."""
    correct: bool | None
    """Whether the example's solution is right; False for a problem that is not of the source."""
    same_kind: bool | None
    same_subject: bool | None
    level_difference: int | None
    """Level of the example minus that of the target; None where either is not known."""

    @property
    def copy(self) -> bool:
        return self.distance == 0

    @property
    def near_copy(self) -> bool:
        """A copy, or all but one."""
        return self.distance is not None and self.distance <= NEAR_COPY


def recogniser(source: str) -> Recognise | None:
    """How problems of a source are recognised by their text; None where they cannot be, as those of a file."""
    return minimath.recognise if source in minimath.SOURCES else None


def appraise(task: Task, example: Example, recognise: Recognise | None) -> Appraisal:
    """Everything that can be said of one example for a task; of an attempt, whose problem nobody wrote, whether it is
    right, by the task's own verifier."""
    if example.attempt:
        correct = check(task, example.solution).correct
        return Appraisal(example.valid, None, None, None, correct, None, None, None)
    if not example.problem:
        return Appraisal(False, None, None, None, None, None, None, None)
    one, other = (" ".join(text.split()) for text in (example.problem, task.problem))
    distance = edit_distance(one, other)
    relative = distance / max(len(one), len(other), 1)
    if recognise is None:
        return Appraisal(example.valid, distance, relative, None, None, None, None, None)
    stated, target = recognise(example.problem), recognise(task.problem)
    if stated is None:
        return Appraisal(example.valid, distance, relative, False, False, False, False, None)
    stated_task = stated.task()
    return Appraisal(
        valid=example.valid,
        distance=distance,
        relative_distance=relative,
        recognised=True,
        correct=check(stated_task, example.solution).correct is True,
        same_kind=None if target is None else stated.kind == target.kind,
        same_subject=stated_task.subject == task.subject if task.subject else None,
        level_difference=None if task.level is None else stated.level - task.level,
    )


def edit_distance(one: str, other: str) -> int:
    """The least number of characters to insert, delete or replace (Levenshtein 1966)."""
    letters = np.array([ord(c) for c in other], dtype=np.int64)
    places = np.arange(len(other) + 1)
    row = places.copy()
    for i, letter in enumerate(one):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        row = np.minimum.accumulate(np.concatenate([[i + 1], best]) - places) + places
    return int(row[-1])
