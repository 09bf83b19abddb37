"""Recognise the minimath problem that a text states.

Practice that a model wrote is judged this way: from its text follow the right answer, the kind and the level. The
numbers are found by trying those in the text in every position of a kind, so a text is recognised exactly when a kind
would write it.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator

from mass.tasks.minimath.problem import Problem
from mass.tasks.minimath.scratchpad import KINDS, LEVELS, Kind, Numbers

_NUMBER = re.compile(r"-?\d+")
_DRAWS = 200


def recognise(text: str) -> Problem | None:
    """Return the problem that `text` states; None where no kind writes this text, or the statement has no answer.

    The level is approximate: the lowest level at which some draws have numbers this large, or 5 where none have.
    """
    text = " ".join(text.split())
    found = [p for kind in KINDS if text.startswith(_openings(kind)) for p in _readings(kind, text)]
    return min(found, key=lambda problem: problem.level, default=None)


def _readings(kind: Kind, text: str) -> Iterator[Problem]:
    for numbers in _candidates(kind, text):
        if kind.text(*numbers) == text:
            problem = Problem(kind, _level(kind, numbers), numbers)
            if _has_answer(problem):
                yield problem


def _has_answer(problem: Problem) -> bool:
    try:
        return bool(problem.answer)
    except (ValueError, ArithmeticError):
        return False


def _candidates(kind: Kind, text: str) -> Iterator[Numbers]:
    """Yield numbers that could give this text: each is one that the text contains, or one that texts leave out."""
    # Coefficients of 1 and absent terms are not written, and the difference of a sequence only shows between terms.
    said = [int(n) for n in _NUMBER.findall(re.sub(r"([+-]) (?=\d)", r"\1", text))]
    steps = [b - a for a, b in itertools.pairwise(said)]
    values = list(dict.fromkeys([*said, *(-n for n in said), 0, 1, -1, text.count("f(") - 1, *steps]))
    count = len(kind.draw(random.Random(0), 1))
    yield from itertools.product(values, repeat=count)


@functools.cache
def _openings(kind: Kind) -> tuple[str, ...]:
    """Return the beginnings of a kind's texts, up to the first number: most texts are ruled out by them at once."""
    rng = random.Random(0)
    texts = (kind.text(*kind.draw(rng, level)) for level in LEVELS for _ in range(_DRAWS))
    return tuple({re.split(r"-?\d|-?x", text, maxsplit=1)[0] for text in texts})


@functools.cache
def _largest(kind: Kind, level: int) -> Numbers:
    """Return the largest absolute value of each number among draws of a level."""
    rng = random.Random(level)
    draws = [kind.draw(rng, level) for _ in range(_DRAWS)]
    return tuple(max(abs(n) for n in column) for column in zip(*draws, strict=True))


def _level(kind: Kind, numbers: Numbers) -> int:
    def fits(level: int) -> bool:
        return all(abs(n) <= bound for n, bound in zip(numbers, _largest(kind, level), strict=True))

    return next((level for level in LEVELS if fits(level)), LEVELS[-1])
