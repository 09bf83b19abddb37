"""Define kinds of problem, and the scratchpad on which their solutions are worked out.

A kind is one type of problem. `draw` picks its numbers for a level from 1 to 5, `text` states it, and `solve` works it
out on a `Scratchpad`. The scratchpad writes each step down and can let one of them slip, so the same code writes
correct solutions and wrong ones whose later steps follow from the mistake.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar

Numbers = tuple[int, ...]
T = TypeVar("T")
LEVELS = (1, 2, 3, 4, 5)
"""From easy to hard."""


@dataclass
class Scratchpad:
    """The steps of one solution. Step number `slip_at` (from 0) is written with a result that is wrong by `slip_by`."""

    slip_at: int | None = None
    slip_by: int = 1
    steps: list[str] = field(default_factory=list[str])

    def step(self, expression: str, value: int) -> int:
        """Write `expression=value` and return the value; both are wrong if this is the step that slips."""
        value = self._slipped(value)
        self.steps.append(f"{expression}={value}")
        return value

    def say(self, remark: str) -> None:
        """Write a remark as a step that cannot slip."""
        self.steps.append(remark)

    def _slipped(self, value: int) -> int:
        return value + self.slip_by if len(self.steps) == self.slip_at else value


@dataclass(frozen=True)
class Kind:
    """One type of problem."""

    subject: str
    name: str
    draw: Callable[[random.Random, int], Numbers]
    text: Callable[..., str]
    solve: Callable[..., int | Fraction]
    """`solve(scratchpad, *numbers)` returns the answer that its steps lead to. It raises ValueError for numbers that
    make a problem without an answer, which `draw` never picks."""
    mistaken: Callable[..., int | Fraction] | None = None
    """Works out the common misreading of the problem without a slip; None where there is none."""


KINDS: list[Kind] = []
"""All kinds of problem, of all sets."""


def kind(subject: str, text: Callable[..., str], draw: Callable[[random.Random, int], Numbers]):
    """Register the decorated function as `solve` of a new kind."""

    def register(solve: Callable[..., int | Fraction]) -> Callable[..., int | Fraction]:
        KINDS.append(Kind(subject, solve.__name__, draw, text, solve))
        return solve

    return register


def signed(value: int) -> str:
    """Write a number inside a sum: `+ 3` or `- 3`."""
    return f"+ {value}" if value >= 0 else f"- {-value}"


def term(coefficient: int, name: str, *, first: bool = False) -> str:
    """Write a term: `3x` or `x` at the start of a sum; `+ 3x` or `- x` inside it."""
    number = "" if abs(coefficient) == 1 else str(abs(coefficient))
    if first:
        return f"{'-' if coefficient < 0 else ''}{number}{name}"
    return f"{'-' if coefficient < 0 else '+'} {number}{name}"


def in_parens(value: int) -> str:
    """Write a number after an operator: a negative one in parentheses."""
    return f"({value})" if value < 0 else str(value)


def add(pad: Scratchpad, a: int, b: int) -> int:
    """Write the sum of a and b as a step, and return it."""
    return pad.step(f"{a}+{b}" if b >= 0 else f"{a}-{-b}", a + b)


def multiply(pad: Scratchpad, a: int, b: int) -> int:
    """Write the product of a and b as a step, and return it."""
    return pad.step(f"{a}*{in_parens(b)}", a * b)


def long_multiply(pad: Scratchpad, a: int, b: int) -> int:
    """Multiply by the tens and then by the ones of b, where both numbers have several digits."""
    tens, ones = b // 10 * 10, b % 10
    if abs(a) < 10 or b < 10 or ones == 0:
        return multiply(pad, a, b)
    return add(pad, multiply(pad, a, tens), multiply(pad, a, ones))


def divide(pad: Scratchpad, a: int, b: int) -> int:
    """Write a quotient as a step, and return it.

    After a slip it is rounded down, and defined for every divisor that a slip can produce.

    Raises:
        ValueError: A solution without a slip does not come out even: the problem has no such answer.
    """
    if pad.slip_at is None and (b == 0 or a % b):
        raise ValueError(f"{a} is not a multiple of {b}")
    return pad.step(f"{a}/{in_parens(b)}", a // (b or 1))


def upto(level: int, *bounds: T) -> T:
    """Return the bound (or the range of bounds) for a level."""
    return bounds[level - 1]
