"""Generate problems with worked solutions and exact answers.

Two sets: `minimath`, whose problems are worked out from the statement to the answer, and `minimath-terms`, of many
terms whose meaning must be known.

They are endless and seeded. Task `index` of a stream is a function of `(split, seed, index)` alone, so an interrupted
run finds its place again without stored state. A problem belongs to the split that the hash of its text names, so
train, validation and test are disjoint by construction, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Mapping, Sequence
from types import ModuleType

from mass.errors import ConfigError, DataError, nearest
from mass.tasks.minimath import forward, terms
from mass.tasks.minimath.problem import Problem
from mass.tasks.minimath.recognise import recognise
from mass.tasks.minimath.scratchpad import KINDS, LEVELS, Kind
from mass.types import Task

__all__ = [
    "KINDS",
    "LEVELS",
    "MINIMATH",
    "SOURCES",
    "SPLITS",
    "SUBJECTS",
    "Kind",
    "Problem",
    "check_choice",
    "draw",
    "load",
    "problem_split",
    "recognise",
    "similar",
    "task_at",
]


def _kinds_of(*modules: ModuleType) -> list[Kind]:
    names = {module.__name__ for module in modules}
    return [kind for kind in KINDS if kind.solve.__module__ in names]


MINIMATH = "minimath"
"""The name of the set that the tiny model has learned."""
SOURCES: Mapping[str, Sequence[Kind]] = {
    MINIMATH: _kinds_of(forward),
    "minimath-terms": _kinds_of(terms),
}
"""For each set its kinds. The name of the set is part of the seed, so a set that is added later changes no other."""
SUBJECTS: Sequence[str] = tuple(dict.fromkeys(k.subject for k in KINDS))
"""The subjects of the MATH data set."""
SPLITS = ("train", "validation", "test")
"""A problem belongs to one of these by the hash of its text."""


def problem_split(text: str) -> str:
    """Return the split that a problem text belongs to: 80% train, 10% validation, 10% test, by hash."""
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def draw(
    rng: random.Random,
    split: str,
    subjects: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    source: str = MINIMATH,
) -> Problem:
    """Draw one problem of the split: subject and level uniformly, then a kind of that subject, then its numbers.

    Raises:
        DataError: The split has no problem of that subject and level.
    """
    subject, level = rng.choice(subjects or SUBJECTS), rng.choice(levels or LEVELS)
    kinds = [kind for kind in SOURCES[source] if kind.subject == subject]
    rng.shuffle(kinds)
    found = (_draw_kind(rng, split, kind, level) for kind in kinds)
    problem = next((p for p in found if p is not None), None)
    if problem is None:
        raise DataError(
            f"{source}: no problem of {subject}, level {level} falls into split {split!r}; take another level"
        )
    return problem


def similar(rng: random.Random, problem: Problem, split: str) -> Problem:
    """Draw another problem of the same kind, at the same level or one next to it; never the same text.

    Raises:
        DataError: None was found.
    """
    for _ in range(100):
        level = min(max(problem.level + rng.choice((-1, 0, 0, 0, 1)), LEVELS[0]), LEVELS[-1])
        other = _draw_kind(rng, split, problem.kind, level)
        if other is not None and other.text != problem.text:
            return other
    raise DataError(f"minimath: no second problem like {problem.text!r} in split {split!r}; use another kind or level")


def _draw_kind(rng: random.Random, split: str, kind: Kind, level: int) -> Problem | None:
    """Draw a problem of this kind and level; None where the split has none (some kinds have few problems at level
    1)."""
    for _ in range(300):
        problem = Problem(kind, level, kind.draw(rng, level))
        if problem_split(problem.text) == split:
            return problem
    return None


def task_at(
    split: str,
    seed: int,
    index: int,
    subjects: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    source: str = MINIMATH,
) -> Task:
    """Return task `index` of the endless stream for (source, split, seed)."""
    rng = random.Random(f"{source}:{split}:{seed}:{index}")
    return draw(rng, split, subjects, levels, source).task(f"{source}-{split}-{seed}-{index}")


def load(
    split: str,
    size: int | None,
    seed: int,
    subjects: Sequence[str] | None = None,
    levels: Sequence[int] | None = None,
    source: str = MINIMATH,
) -> list[Task]:
    """Return `size` distinct tasks (default 1000), balanced over subjects and levels.

    Raises:
        ConfigError: The split, a subject or a level is unknown.
        DataError: Fewer distinct problems exist than were asked for.
    """
    check_choice(split, subjects, levels)
    subjects, levels = subjects or SUBJECTS, levels or LEVELS
    size = 1000 if size is None else size
    rng = random.Random(f"{source}:{split}:{seed}")
    open_cells = [(subject, level) for level in levels for subject in subjects]
    texts: dict[str, Task] = {}
    while len(texts) < size and open_cells:
        for cell in list(open_cells)[: size - len(texts)]:
            problem = _new_problem(rng, split, cell, texts, source)
            if problem is None:
                open_cells.remove(cell)
            else:
                texts[problem.text] = problem.task(f"{source}-{split}-{seed}-{len(texts)}")
    if len(texts) < size:
        raise DataError(f"{source}: {size} distinct problems asked for, {len(texts)} exist here; ask for fewer")
    return list(texts.values())


def _new_problem(
    rng: random.Random, split: str, cell: tuple[str, int], known: Container[str], source: str, tries: int = 100
) -> Problem | None:
    """Draw a problem of one subject and level that is not known yet; None where there seem to be no more."""
    for _ in range(tries):
        problem = draw(rng, split, [cell[0]], [cell[1]], source)
        if problem.text not in known:
            return problem
    return None


def check_choice(split: str, subjects: Sequence[str] | None = None, levels: Sequence[int] | None = None) -> None:
    """Check the names of a split, subjects and levels.

    Raises:
        ConfigError: One of them is unknown.
    """
    if split not in SPLITS:
        raise ConfigError(f"minimath: split {split!r} is unknown{nearest(split, SPLITS)}")
    for subject in subjects or ():
        if subject not in SUBJECTS:
            raise ConfigError(f"minimath: subject {subject!r} is unknown{nearest(subject, SUBJECTS)}")
    for level in levels or ():
        if level not in LEVELS:
            raise ConfigError(f"minimath: level {level} is unknown; levels are 1 to 5")
