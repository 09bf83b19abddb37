"""Kinds of problem that name a term whose meaning has to be known: "Find the brolf of 7 and 4."

A term means two operations, such as `a*b` followed by `-a`. Nothing in a problem tells what its term means, and no term
says anything about another, as in the vocabulary of a field. Each term also has one common misreading, which shares one
of the two operations with the meaning: `Problem.solution("mistaken")` works that out, without a slip. (The reasons are
in docs/adr/0014.)
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping

from mass.tasks.minimath.scratchpad import KINDS, Kind, Numbers, Scratchpad, add, multiply, upto

TERMS = 20
"""The number of terms in each subject."""
ONSETS = re.findall("[a-z]+", "b bl br d dr f fl g gl gr k kl kr l m n p pl pr r s sk sl sm sn sp st t tr v w z")
VOWELS = "aeiou"
CODAS = re.findall("[a-z]+", "lb lk lm lv md nz rf rl rn rv sp v zz")

TEXTS: dict[str, Callable[[str, int, int], str]] = {
    "Prealgebra": lambda term, a, b: f"Compute the {term} of {a} and {b}.",
    "Algebra": lambda term, a, b: f"Find the {term} of the line y = {a}x + {b}.",
    "Counting & Probability": lambda term, a, b: f"A bag holds {a} red and {b} blue balls. Find its {term}.",
    "Number Theory": lambda term, a, b: f"What is the {term} of {a} modulo {b}?",
    "Geometry": lambda term, a, b: f"Find the {term} of a {a} by {b} rectangle.",
    "Intermediate Algebra": lambda term, a, b: f"Find the {term} of x^2 + {a}x + {b}.",
    "Precalculus": lambda term, a, b: f"Find the {term} of the vector ({a}, {b}).",
}
"""For each subject, how a problem states its term and numbers."""

Operand = str | int
"""The problem's `a` or `b`, possibly negated, or a constant that belongs to the term."""
Operation = Callable[[Scratchpad, int, int], int]
FIRST: tuple[tuple[Operand, Operation, Operand], ...] = (
    ("a", add, "b"),
    ("a", add, "-b"),
    ("a", multiply, "b"),
    ("a", multiply, 2),
    ("b", multiply, 3),
)
SECOND: tuple[tuple[Operation, Operand], ...] = (
    (add, "a"),
    (add, "-a"),
    (add, "b"),
    (add, "-b"),
    (multiply, 2),
    (multiply, 3),
    (add, 10),
    (add, -1),
)
"""The operations that are applied to the result of the first."""


def _meaning(
    first: tuple[Operand, Operation, Operand], second: tuple[Operation, Operand]
) -> Callable[[Scratchpad, int, int], int]:
    def solve(pad: Scratchpad, a: int, b: int) -> int:
        values = {"a": a, "b": b, "-a": -a, "-b": -b}
        left, operation, right = first
        value = operation(pad, _value(values, left), _value(values, right))
        return second[0](pad, value, _value(values, second[1]))

    return solve


def _value(values: Mapping[str, int], operand: Operand) -> int:
    return values[operand] if isinstance(operand, str) else operand


MEANINGS = {(i, j): _meaning(first, second) for i, first in enumerate(FIRST) for j, second in enumerate(SECOND)}
TELLING: tuple[Numbers, ...] = tuple(itertools.product((2, 5, 9, 13), (3, 4, 7)))
"""Numbers at which two meanings must differ, for one to serve as a misreading of the other."""


def _differ(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return True if two meanings share exactly one operation and give different answers at all of `TELLING`."""
    apart = (MEANINGS[one](Scratchpad(), *n) != MEANINGS[other](Scratchpad(), *n) for n in TELLING)
    return (one[0] == other[0]) != (one[1] == other[1]) and all(apart)


def _draw(rng: random.Random, level: int) -> Numbers:
    return rng.randint(2, upto(level, 6, 9, 15, 25, 40)), rng.randint(2, upto(level, 5, 7, 9, 9, 12))


def _text(subject: str, term: str) -> Callable[[int, int], str]:
    return lambda a, b: TEXTS[subject](term, a, b)


def _register() -> None:
    """Register every term with its meanings. The seed is fixed, so terms mean the same on every machine."""
    rng = random.Random("minimath-terms")
    words = ["".join(parts) for parts in itertools.product(ONSETS, VOWELS, CODAS)]
    terms = iter(rng.sample(words, TERMS * len(TEXTS)))
    for subject in TEXTS:
        for term in itertools.islice(terms, TERMS):
            right = rng.choice(list(MEANINGS))
            mistaken = rng.choice([m for m in MEANINGS if _differ(right, m)])
            KINDS.append(Kind(subject, term, _draw, _text(subject, term), MEANINGS[right], MEANINGS[mistaken]))


_register()
