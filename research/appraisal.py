"""Appraise a practice example: is it right, of the target's kind, how hard, and how similar to the target?

The target's gold plays no part, but judging correctness needs a gold for the example itself: minimath recognises the
texts of its own problems and solves them. Other sources offer no way to judge what a model writes; for them those parts
are None.
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
"""An example is a near-copy if its problem differs from the target's text in at most this many characters."""


class Recognised(Protocol):
    """The problem that a text states."""

    @property
    def kind(self) -> object: ...

    @property
    def level(self) -> int: ...

    def task(self) -> Task: ...


Recognise = Callable[[str], Recognised | None]
"""Returns the problem that a text states, or None for a text that is not a problem of the source."""


@dataclass(frozen=True)
class Appraisal:
    """The appraisal of one example.

    A value is None if it could not be judged: the source has no recogniser, the text was not parsed, or the value
    describes written problems and this is an attempt at the target.
    """

    valid: bool
    distance: int | None
    """Edit distance, in characters, between the example's problem and the target's text."""
    relative_distance: float | None
    """The distance divided by the length of the longer text: 0 for a copy, 1 for texts that share nothing."""
    recognised: bool | None
    """True if the example's problem is one of the source's."""
    correct: bool | None
    """True if the example's solution is right; False for a problem that is not one of the source's."""
    same_kind: bool | None
    same_subject: bool | None
    level_difference: int | None
    """Level of the example minus that of the target; None where either is unknown."""

    @property
    def copy(self) -> bool:
        """True for a problem that repeats the target's text."""
        return self.distance == 0

    @property
    def near_copy(self) -> bool:
        """True for a copy or a near-copy."""
        return self.distance is not None and self.distance <= NEAR_COPY


def recogniser(source: str) -> Recognise | None:
    """Return the function that recognises a source's problems by their text; None where there is none, as for a
    file."""
    return minimath.recognise if source in minimath.SOURCES else None


def appraise(task: Task, example: Example, recognise: Recognise | None) -> Appraisal:
    """Appraise one example for a task.

    For an attempt, whose problem the model did not write, only correctness is judged, by the task's own verifier.
    """
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
    """Return the least number of characters to insert, delete or replace (Levenshtein 1966)."""
    letters = np.array([ord(c) for c in other], dtype=np.int64)
    places = np.arange(len(other) + 1)
    row = places.copy()
    for i, letter in enumerate(one):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))
        # A vectorised row of the table: insertions cost 1 per place, so they are a running minimum of (value - place).
        row = np.minimum.accumulate(np.concatenate([[i + 1], best]) - places) + places
    return int(row[-1])
