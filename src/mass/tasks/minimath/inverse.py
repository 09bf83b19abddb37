"""Kinds of problem that are easier to check than to find: a value is tried and put into the statement.

A solution is `Try 9. 9*9=81. 81+27=108. 108-108=0. ok. Answer: 9`. One with a wrong guess works out its test correctly
and ends in `no`. A reader can tell from the end of a solution whether it is right; someone who only sees the problem
has to guess. (The reasons are in docs/adr/0008.)
"""

# pyright: reportUnknownLambdaType=false
# Each kind's text takes its own number of arguments, so the types of the lambdas below cannot be checked.
from __future__ import annotations

import random
from collections.abc import Callable

from mass.tasks.minimath.scratchpad import (
    Numbers,
    Scratchpad,
    add,
    divide,
    kind,
    long_multiply,
    multiply,
    term,
    upto,
)

LARGEST = 400


def guess(pad: Scratchpad, holds: Callable[[int], bool]) -> int:
    """Write the least positive number for which `holds` is true, as a step that may slip.

    Raises:
        ValueError: There is none below `LARGEST`.
    """
    found = next((x for x in range(1, LARGEST) if holds(x)), None)
    if found is None:
        raise ValueError("no number makes this statement true")
    return pad.guess(found)


# --- Prealgebra


def _boxes(r: random.Random, level: int) -> Numbers:
    a = r.randint(*upto(level, (6, 9), (7, 14), (11, 19), (13, 29), (13, 49)))
    return a, a * r.randint(*upto(level, (6, 14), (7, 19), (11, 29), (12, 39), (12, 49)))


@kind("Prealgebra", lambda a, n: f"Boxes hold {a} nuts each. How many boxes hold {n} nuts?", _boxes)
def boxes(pad: Scratchpad, a: int, n: int) -> int:
    x = guess(pad, lambda x: a * x == n)
    pad.check(long_multiply(pad, a, x), n)
    return x


def _apart(r: random.Random, level: int) -> Numbers:
    d = r.randint(1, upto(level, 3, 5, 9, 12, 15))
    x = r.randint(*upto(level, (2, 9), (4, 15), (6, 25), (8, 35), (10, 45)))
    return d, x * (x + d)


@kind("Prealgebra", lambda d, n: f"Two numbers are {d} apart and have product {n}. Find the smaller.", _apart)
def product_apart(pad: Scratchpad, d: int, n: int) -> int:
    x = guess(pad, lambda x: x * (x + d) == n)
    pad.check(long_multiply(pad, x, add(pad, x, d)), n)
    return x


# --- Algebra


def _square_equation(r: random.Random, level: int) -> Numbers:
    b = r.randint(2, upto(level, 5, 7, 9, 9, 12)) * (r.choice((1, -1)) if level >= 3 else 1)
    x = max(1, -b) + r.randint(*upto(level, (1, 8), (2, 12), (3, 19), (4, 25), (5, 35)))
    return b, x * x + b * x


@kind("Algebra", lambda b, c: f"Find the positive x with x^2 {term(b, 'x')} = {c}.", _square_equation)
def square_equation(pad: Scratchpad, b: int, c: int) -> int:
    x = guess(pad, lambda x: x * x + b * x == c)
    square = long_multiply(pad, x, x)
    linear = multiply(pad, x, abs(b))
    pad.check(add(pad, square, linear if b >= 0 else -linear), c)
    return x


def _fruit(r: random.Random, level: int) -> Numbers:
    a, b = r.sample(range(2, upto(level, 7, 9, 12, 15, 19)), 2)
    n = r.randint(*upto(level, (4, 9), (6, 14), (8, 19), (12, 29), (15, 39)))
    x = r.randint(1, n - 1)
    return a, b, n, a * x + b * (n - x)


@kind("Algebra", lambda a, b, n, c: f"Apples cost {a}, pears {b}. {n} fruits cost {c}. How many apples?", _fruit)
def fruit(pad: Scratchpad, a: int, b: int, n: int, c: int) -> int:
    x = guess(pad, lambda x: x < n and a * x + b * (n - x) == c)
    apples, pears = multiply(pad, a, x), multiply(pad, b, add(pad, n, -x))
    pad.check(add(pad, apples, pears), c)
    return x


# --- Number Theory


def _congruence(r: random.Random, level: int) -> Numbers:
    while True:
        m = r.randint(*upto(level, (5, 9), (7, 13), (9, 17), (11, 23), (13, 31)))
        a, x = r.randint(2, m - 1), r.randint(2, m - 1)
        # Drawn again until x is the least solution, which is what the problem asks for.
        if a * x % m and all(a * y % m != a * x % m for y in range(1, x)):
            return a, a * x % m, m


@kind("Number Theory", lambda a, r, m: f"Find the least x > 0 for which {a}x leaves {r} divided by {m}.", _congruence)
def congruence(pad: Scratchpad, a: int, r: int, m: int) -> int:
    x = guess(pad, lambda x: a * x % m == r)
    product = long_multiply(pad, a, x)
    pad.check(add(pad, product, -multiply(pad, m, product // m)), r)
    return x


def _two_remainders(r: random.Random, level: int) -> Numbers:
    m, n = sorted(r.sample(upto(level, (3, 4, 5, 7), (3, 5, 7, 8), (5, 7, 8, 9), (7, 8, 9, 11), (7, 9, 11, 13)), 2))
    x = r.randint(m + 1, m * n - 1)
    return x % m, m, x % n, n


@kind(
    "Number Theory",
    lambda r, m, s, n: f"Find the least number > 0 that leaves {r} divided by {m} and {s} divided by {n}.",
    _two_remainders,
)
def two_remainders(pad: Scratchpad, r: int, m: int, s: int, n: int) -> int:
    x = guess(pad, lambda x: x % m == r and x % n == s)
    first = add(pad, x, -multiply(pad, m, x // m))
    second = add(pad, x, -multiply(pad, n, x // n))
    # Both remainders in one number, so that one test decides.
    pad.check(add(pad, multiply(pad, 100, first), second), 100 * r + s)
    return x


# --- Counting & Probability


def _handshakes(r: random.Random, level: int) -> Numbers:
    k = r.randint(1, upto(level, 4, 6, 9, 12, 15))
    m = r.randint(*upto(level, (3, 9), (5, 12), (7, 17), (9, 23), (12, 31)))
    return k, m * (m - 1) // 2


@kind(
    "Counting & Probability",
    lambda k, h: f"All but {k} people in a room shake hands with each other, {h} handshakes. How many people?",
    _handshakes,
)
def handshakes(pad: Scratchpad, k: int, h: int) -> int:
    x = guess(pad, lambda x: x > k and (x - k) * (x - k - 1) == 2 * h)
    m = add(pad, x, -k)
    pad.check(divide(pad, long_multiply(pad, m, add(pad, m, -1)), 2), h)
    return x


def _couples(r: random.Random, level: int) -> Numbers:
    a, b = r.randint(0, upto(level, 2, 3, 5, 7, 9)), r.randint(1, upto(level, 3, 5, 7, 9, 12))
    x = r.randint(*upto(level, (2, 8), (4, 12), (5, 17), (7, 23), (9, 29)))
    return a, b, (x + a) * (x + b)


@kind(
    "Counting & Probability",
    lambda a, b, p: f"{a} boys and {b} girls join a club of x boys and x girls. Now {p} couples are possible. Find x.",
    _couples,
)
def couples(pad: Scratchpad, a: int, b: int, p: int) -> int:
    x = guess(pad, lambda x: (x + a) * (x + b) == p)
    boys, girls = add(pad, x, a), add(pad, x, b)
    pad.check(long_multiply(pad, boys, girls), p)
    return x


# --- Geometry


def _sides(r: random.Random, level: int) -> Numbers:
    x = r.randint(*upto(level, (2, 7), (3, 11), (5, 15), (7, 21), (9, 29)))
    y = x + r.randint(0, upto(level, 5, 7, 9, 12, 15))
    return 2 * (x + y), x * y


@kind("Geometry", lambda p, a: f"A rectangle has perimeter {p} and area {a}. Find the shorter side.", _sides)
def shorter_side(pad: Scratchpad, p: int, a: int) -> int:
    x = guess(pad, lambda x: p % 2 == 0 and x * (p // 2 - x) == a)
    pad.check(long_multiply(pad, x, add(pad, divide(pad, p, 2), -x)), a)
    return x


def _box_width(r: random.Random, level: int) -> Numbers:
    h = r.randint(1, upto(level, 3, 5, 7, 9, 12))
    x = r.randint(2, upto(level, 5, 6, 8, 10, 12))
    return h, x * x * (x + h)


@kind(
    "Geometry", lambda h, v: f"A box of volume {v} is as deep as wide and {h} higher than wide. How wide?", _box_width
)
def box_width(pad: Scratchpad, h: int, v: int) -> int:
    x = guess(pad, lambda x: x * x * (x + h) == v)
    base = multiply(pad, x, x)
    pad.check(long_multiply(pad, base, add(pad, x, h)), v)
    return x


# --- Intermediate Algebra


def _cubic(r: random.Random, level: int) -> Numbers:
    b = r.randint(2, upto(level, 5, 9, 12, 19, 29)) * (r.choice((1, -1)) if level >= 3 else 1)
    x = r.randint(*upto(level, (1, 4), (2, 5), (4, 7), (5, 9), (6, 12)))
    return b, x**3 + b * x


@kind("Intermediate Algebra", lambda b, c: f"Find the positive x with x^3 {term(b, 'x')} = {c}.", _cubic)
def cubic(pad: Scratchpad, b: int, c: int) -> int:
    x = guess(pad, lambda x: x**3 + b * x == c)
    cube = long_multiply(pad, multiply(pad, x, x), x)
    linear = multiply(pad, x, abs(b))
    pad.check(add(pad, cube, linear if b >= 0 else -linear), c)
    return x


def _squares(r: random.Random, level: int) -> Numbers:
    x, y = r.sample(range(1, upto(level, 8, 11, 15, 19, 25)), 2)
    return x + y, x * x + y * y


@kind("Intermediate Algebra", lambda s, q: f"Two numbers have sum {s}, their squares {q}. Find the smaller.", _squares)
def sum_of_squares(pad: Scratchpad, s: int, q: int) -> int:
    x = guess(pad, lambda x: x * x + (s - x) ** 2 == q)
    y = add(pad, s, -x)
    pad.check(add(pad, long_multiply(pad, x, x), long_multiply(pad, y, y)), q)
    return x


# --- Precalculus


def _unknown_entry(r: random.Random, level: int) -> Numbers:
    high = upto(level, 3, 5, 7, 9, 9)
    a, b, c = r.randint(1, high), r.randint(1, high), r.randint(1, upto(level, 3, 5, 9, 12, 15))
    x = r.randint(*upto(level, (2, 7), (3, 11), (5, 17), (7, 23), (9, 31)))
    return a, b, c, x * (x + c) - a * b


@kind(
    "Precalculus",
    lambda a, b, c, d: f"Find the positive x for which [[x, {a}], [{b}, x + {c}]] has determinant {d}.",
    _unknown_entry,
)
def unknown_entry(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    x = guess(pad, lambda x: x * (x + c) - a * b == d)
    product = long_multiply(pad, x, add(pad, x, c))
    pad.check(add(pad, product, -multiply(pad, a, b)), d)
    return x


def _series(r: random.Random, level: int) -> Numbers:
    a, d = r.randint(1, upto(level, 3, 5, 9, 12, 15)), r.randint(1, upto(level, 2, 3, 4, 6, 9))
    n = r.randint(*upto(level, (4, 7), (4, 9), (5, 12), (6, 15), (7, 19)))
    return a, d, n * (2 * a + (n - 1) * d) // 2


@kind(
    "Precalculus",
    lambda a, d, s: f"How many terms of {a}, {a + d}, {a + 2 * d}, ... have the sum {s}?",
    _series,
)
def series_length(pad: Scratchpad, a: int, d: int, s: int) -> int:
    x = guess(pad, lambda x: x * (2 * a + (x - 1) * d) == 2 * s)
    last = add(pad, a, multiply(pad, d, add(pad, x, -1)))
    pad.check(divide(pad, long_multiply(pad, add(pad, a, last), x), 2), s)
    return x
