"""What a *kind* of problem is, and the scratchpad on which it is worked out.

A kind is one sort of problem. `draw` picks its numbers for a level of 1 to 5, `text` states it, and `solve` works it
out on a `Scratchpad`, which writes each step down and can let one of them slip, so that the same code writes correct
solutions and wrong ones whose later steps follow from the mistake.
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
    """Collects the steps of one solution; step number `slip_at` (0-based) is written with a wrong result."""

    slip_at: int | None = None
    slip_by: int = 1
    steps: list[str] = field(default_factory=list[str])

    def step(self, expression: str, value: int) -> int:
        """Write `expression=value` and hand the value on, wrong if this is the step that slips."""
        value = self._slipped(value)
        self.steps.append(f"{expression}={value}")
        return value

    def say(self, remark: str) -> None:
        self.steps.append(remark)

    def _slipped(self, value: int) -> int:
        return value + self.slip_by if len(self.steps) == self.slip_at else value


@dataclass(frozen=True)
class Kind:
    subject: str
    name: str
    draw: Callable[[random.Random, int], Numbers]
    text: Callable[..., str]
    solve: Callable[..., int | Fraction]
    """`solve(scratchpad, *numbers)` returns the answer that its steps lead to. Raises ValueError for numbers that make
    a problem without an answer, which `draw` never picks."""
    mistaken: Callable[..., int | Fraction] | None = None
    """What the kind is commonly mistaken for, worked out without a slip; None where nothing is."""


KINDS: list[Kind] = []
"""Every kind of problem, of every set."""


def kind(subject: str, text: Callable[..., str], draw: Callable[[random.Random, int], Numbers]):
    """Register the decorated function as `solve` of a new kind."""

    def register(solve: Callable[..., int | Fraction]) -> Callable[..., int | Fraction]:
        KINDS.append(Kind(subject, solve.__name__, draw, text, solve))
        return solve

    return register


def signed(value: int) -> str:
    """`+ 3` or `- 3`, inside a sum."""
    return f"+ {value}" if value >= 0 else f"- {-value}"


def term(coefficient: int, name: str, *, first: bool = False) -> str:
    """`3x`, `x` at a start; `+ 3x`, `- x` inside a sum."""
    number = "" if abs(coefficient) == 1 else str(abs(coefficient))
    if first:
        return f"{'-' if coefficient < 0 else ''}{number}{name}"
    return f"{'-' if coefficient < 0 else '+'} {number}{name}"


def in_parens(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def add(pad: Scratchpad, a: int, b: int) -> int:
    return pad.step(f"{a}+{b}" if b >= 0 else f"{a}-{-b}", a + b)


def multiply(pad: Scratchpad, a: int, b: int) -> int:
    return pad.step(f"{a}*{in_parens(b)}", a * b)


def long_multiply(pad: Scratchpad, a: int, b: int) -> int:
    """Two numbers of several digits by the tens and the ones of the second."""
    tens, ones = b // 10 * 10, b % 10
    if abs(a) < 10 or b < 10 or ones == 0:
        return multiply(pad, a, b)
    return add(pad, multiply(pad, a, tens), multiply(pad, a, ones))


def divide(pad: Scratchpad, a: int, b: int) -> int:
    """Rounded down after a slip, and defined for every divisor a slip can make. Raises ValueError where a solution
    without a slip does not come out even: the problem has no such answer."""
    if pad.slip_at is None and (b == 0 or a % b):
        raise ValueError(f"{a} is no multiple of {b}")
    return pad.step(f"{a}/{in_parens(b)}", a // (b or 1))


def upto(level: int, *bounds: T) -> T:
    """The bound (or range of bounds) that belongs to a level."""
    return bounds[level - 1]
