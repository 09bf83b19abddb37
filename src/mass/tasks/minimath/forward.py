"""Kinds of problem that are worked out from the statement to the answer, step by step.

The seven subjects are those of the MATH data set (Hendrycks et al., arXiv 2103.03874).
"""

# pyright: reportUnknownLambdaType=false
# Each kind's text takes its own number of arguments, so the types of the lambdas below cannot be checked.
from __future__ import annotations

import math
import random
from fractions import Fraction

from mass.tasks.minimath.scratchpad import Numbers, Scratchpad, add, divide, kind, multiply, signed, term, upto

# --- Prealgebra


@kind(
    "Prealgebra",
    lambda a, b, c, d: f"Compute {a} + {b} * {c}{f' - {d}' if d else ''}.",
    lambda r, level: (
        r.randint(1, upto(level, 9, 20, 40, 60, 90)),
        r.randint(2, upto(level, 5, 7, 9, 9, 12)),
        r.randint(2, upto(level, 5, 7, 9, 9, 9)),
        r.randint(1, upto(level, 1, 1, 9, 20, 40)) if level >= 3 else 0,
    ),
)
def order_of_operations(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    total = add(pad, a, multiply(pad, b, c))
    return add(pad, total, -d) if d else total


@kind(
    "Prealgebra",
    lambda p, q, n: f"What is {p}/{q} of {n}?",
    lambda r, level: (
        (q := r.randint(2, upto(level, 4, 6, 8, 9, 12))) and r.randint(1, q - 1),
        q,
        q * r.randint(2, upto(level, 6, 8, 9, 12, 12)),
    ),
)
def fraction_of(pad: Scratchpad, p: int, q: int, n: int) -> int:
    return multiply(pad, divide(pad, n, q), p)


@kind(
    "Prealgebra",
    lambda a, b, c, d: (
        f"Ana has {a} bags of {b} nuts and eats {c}. {f'She finds {d} more. ' if d else ''}How many has she left?"
    ),
    lambda r, level: (
        (a := r.randint(2, upto(level, 5, 7, 9, 9, 12))),
        (b := r.randint(3, upto(level, 5, 7, 9, 9, 9))),
        r.randint(1, min(a * b - 1, upto(level, 5, 9, 20, 40, 60))),
        r.randint(1, upto(level, 1, 1, 9, 20, 50)) if level >= 3 else 0,
    ),
)
def bags(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    left = add(pad, multiply(pad, a, b), -c)
    return add(pad, left, d) if d else left


# --- Algebra


def _linear(r: random.Random, level: int) -> Numbers:
    a = r.randint(2, upto(level, 5, 7, 9, 9, 12))
    x = r.randint(1, upto(level, 6, 9, 9, 12, 12)) * (r.choice((1, -1)) if level >= 4 else 1)
    b = r.randint(1, upto(level, 9, 15, 20, 30, 40)) * (r.choice((1, -1)) if level >= 2 else 1)
    return a, b, a * x + b


@kind("Algebra", lambda a, b, c: f"Solve {a}x {signed(b)} = {c}. Find x.", _linear)
def linear_equation(pad: Scratchpad, a: int, b: int, c: int) -> int:
    return divide(pad, add(pad, c, -b), a)


@kind(
    "Algebra",
    lambda a, b, n, x: f"Let f(x) = {a}x {signed(b)}. Find {'f(' * n}{x}{')' * n}.",
    lambda r, level: (
        r.randint(2, upto(level, 5, 9, 4, 5, 4)),
        r.randint(1, upto(level, 9, 15, 9, 12, 9)) * (r.choice((1, -1)) if level >= 2 else 1),
        upto(level, 1, 1, 2, 2, 3),
        r.randint(1, upto(level, 5, 9, 5, 9, 5)),
    ),
)
def iterate_function(pad: Scratchpad, a: int, b: int, n: int, x: int) -> int:
    for _ in range(n):
        x = add(pad, multiply(pad, a, x), b)
    return x


def _two_sided(r: random.Random, level: int) -> Numbers:
    c = r.randint(1, upto(level, 2, 3, 5, 7, 9))
    a = c + r.randint(1, upto(level, 3, 4, 6, 8, 9))
    x = r.randint(1, upto(level, 5, 8, 9, 9, 12)) * (r.choice((1, -1)) if level >= 4 else 1)
    b = r.randint(1, upto(level, 9, 9, 15, 20, 30)) * (r.choice((1, -1)) if level >= 3 else 1)
    return a, b, c, (a - c) * x + b


@kind(
    "Algebra",
    lambda a, b, c, d: f"Solve {a}x {signed(b)} = {term(c, 'x', first=True)} {signed(d)}. Find x.",
    _two_sided,
)
def two_sided_equation(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    slope = add(pad, a, -c)
    return divide(pad, add(pad, d, -b), slope)


# --- Number Theory


@kind(
    "Number Theory",
    lambda n, d: f"Find the remainder when {n} is divided by {d}.",
    lambda r, level: (
        (d := r.randint(2, upto(level, 5, 7, 9, 11, 12))) * r.randint(1, upto(level, 5, 7, 9, 11, 12))
        + r.randint(0, d - 1),
        d,
    ),
)
def remainder(pad: Scratchpad, n: int, d: int) -> int:
    return add(pad, n, -multiply(pad, d, n // d))


def _gcd(r: random.Random, level: int) -> Numbers:
    g = r.randint(2, upto(level, 9, 9, 12, 12, 15))
    p, q = sorted(r.sample(range(1, upto(level, 5, 6, 7, 9, 12)), 2))
    return g * q, g * p


@kind("Number Theory", lambda a, b: f"Find the greatest common divisor of {a} and {b}.", _gcd)
def greatest_common_divisor(pad: Scratchpad, a: int, b: int) -> int:
    for _ in range(20):
        if a == b or min(a, b) < 1:
            break
        a, b = max(a, b), min(a, b)
        a = add(pad, a, -b)
    return b


@kind(
    "Number Theory",
    lambda a, n: f"Find the units digit of {a}^{n}.",
    lambda r, level: (
        r.randint(2, upto(level, 30, 60, 99, 99, 99)),
        r.randint(*upto(level, (2, 2), (2, 3), (3, 3), (3, 4), (4, 5))),
    ),
)
def units_digit(pad: Scratchpad, a: int, n: int) -> int:
    digit = last = a % 10
    for _ in range(n - 1):
        digit = multiply(pad, digit, last) % 10
    return digit


# --- Counting & Probability


@kind(
    "Counting & Probability",
    lambda a, b, k: f"In how many ways can {k} of {a} boys and {b} girls be chosen?",
    lambda r, level: (
        r.randint(1, upto(level, 6, 9, 6, 7, 8)),
        r.randint(2, upto(level, 6, 9, 6, 7, 8)),
        upto(level, 2, 2, 3, 3, 3),
    ),
)
def choose(pad: Scratchpad, a: int, b: int, k: int) -> int:
    n = product = add(pad, a, b)
    for i in range(1, k):
        product = multiply(pad, product, n - i)
    return divide(pad, product, math.factorial(k))


@kind(
    "Counting & Probability",
    lambda a, b, c: (
        f"A bag holds {a} red, {b} blue and {c} green balls. What is the probability of red?"
        if c
        else f"A bag holds {a} red and {b} blue balls. What is the probability of red?"
    ),
    lambda r, level: (
        r.randint(1, upto(level, 4, 6, 8, 9, 12)),
        r.randint(1, upto(level, 5, 7, 9, 12, 18)),
        r.randint(1, upto(level, 1, 1, 9, 12, 18)) if level >= 3 else 0,
    ),
)
def red_ball(pad: Scratchpad, a: int, b: int, c: int) -> Fraction:
    total = add(pad, a, b)
    if c:
        total = add(pad, total, c)
    pad.say(f"{a}/{total}")
    return Fraction(a, max(total, 1))


@kind(
    "Counting & Probability",
    lambda a, b, c, d: (
        f"A menu has {a} soups, {b} mains and {c} cakes. {f'{d} meals are sold out. ' if d else ''}How many meals?"
    ),
    lambda r, level: (
        r.randint(2, upto(level, 6, 8, 6, 7, 8)),
        r.randint(2, upto(level, 5, 6, 5, 6, 7)),
        r.randint(2, upto(level, 3, 4, 4, 5, 6)),
        r.randint(2, upto(level, 2, 2, 7, 7, 7)) if level >= 3 else 0,
    ),
)
def menu(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    meals = multiply(pad, multiply(pad, a, b), c)
    return add(pad, meals, -d) if d else meals


# --- Geometry


@kind(
    "Geometry",
    lambda a, b, c, d: (
        f"A {a} by {b} rectangle has a {c} by {d} hole. Find the area left."
        if c
        else f"Find the area of a {a} by {b} rectangle."
    ),
    lambda r, level: (
        (a := r.randint(3, upto(level, 9, 12, 9, 12, 15))),
        (b := r.randint(3, upto(level, 9, 9, 9, 9, 9))),
        r.randint(1, min(a - 1, upto(level, 1, 1, 4, 6, 9))) if level >= 3 else 0,
        r.randint(1, b - 1) if level >= 3 else 0,
    ),
)
def rectangle_area(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    whole = multiply(pad, a, b)
    return add(pad, whole, -multiply(pad, c, d)) if c else whole


@kind(
    "Geometry",
    lambda a, b: f"Two angles of a triangle are {a} and {b} degrees. Find the third.",
    lambda r, level: (
        upto(level, 10, 5, 1, 1, 1) * r.randint(upto(level, 1, 2, 20, 20, 11), upto(level, 8, 17, 60, 80, 99)),
        upto(level, 10, 10, 5, 1, 1) * r.randint(upto(level, 1, 2, 4, 20, 11), upto(level, 8, 8, 17, 80, 79)),
    ),
)
def triangle_angle(pad: Scratchpad, a: int, b: int) -> int:
    return add(pad, 180, -add(pad, a, b))


@kind(
    "Geometry",
    lambda a, b, c: (
        f"A box is {a} by {b} by {c}. Find its volume." if c else f"Find the perimeter of a {a} by {b} rectangle."
    ),
    lambda r, level: (
        r.randint(2, upto(level, 9, 30, 5, 7, 9)),
        r.randint(2, upto(level, 9, 30, 5, 6, 8)),
        r.randint(2, upto(level, 2, 2, 5, 6, 7)) if level >= 3 else 0,
    ),
)
def perimeter_or_volume(pad: Scratchpad, a: int, b: int, c: int) -> int:
    return multiply(pad, multiply(pad, a, b), c) if c else multiply(pad, add(pad, a, b), 2)


# --- Intermediate Algebra


def _quadratic(r: random.Random, level: int) -> Numbers:
    p, q = r.sample(range(1, upto(level, 8, 10, 12, 12, 13)), 2)
    if level >= 4:
        p *= r.choice((1, -1))
    if level >= 5:
        q *= r.choice((1, -1))
    return (-p - q, p * q) if p + q else (-1 - q, q)


def _roots(b: int, c: int) -> tuple[int, int]:
    root = math.isqrt(b * b - 4 * c)
    if root * root != b * b - 4 * c:
        raise ValueError("the roots are not whole numbers")
    return (-b - root) // 2, (-b + root) // 2


@kind("Intermediate Algebra", lambda b, c: f"Find the larger root of x^2 {term(b, 'x')} {signed(c)} = 0.", _quadratic)
def larger_root(pad: Scratchpad, b: int, c: int) -> int:
    p, q = _roots(b, c)
    multiply(pad, p, q)
    wrong = add(pad, p, q) + b
    return q + wrong


@kind(
    "Intermediate Algebra",
    lambda s, d: f"If x + y = {s} and x - y = {d}, find xy.",
    lambda r, level: (
        (x := r.randint(2, upto(level, 7, 9, 12, 15, 20))) + (y := r.randint(1, upto(level, 6, 8, 9, 9, 9))),
        x - y,
    ),
)
def sum_and_difference(pad: Scratchpad, s: int, d: int) -> int:
    x = divide(pad, add(pad, s, d), 2)
    return multiply(pad, x, add(pad, s, -x))


@kind(
    "Intermediate Algebra",
    lambda a, d, n: f"Find term {n} of the sequence {a}, {a + d}, {a + 2 * d}, ...",
    lambda r, level: (
        r.randint(1, upto(level, 9, 15, 20, 30, 50)) * (r.choice((1, -1)) if level >= 4 else 1),
        r.randint(2, upto(level, 4, 6, 9, 9, 12)) * (r.choice((1, -1)) if level >= 3 else 1),
        r.randint(5, upto(level, 6, 8, 9, 12, 13)),
    ),
)
def sequence_term(pad: Scratchpad, a: int, d: int, n: int) -> int:
    return add(pad, a, multiply(pad, add(pad, n, -1), d))


# --- Precalculus


def _entries(r: random.Random, level: int) -> Numbers:
    high = upto(level, 3, 5, 7, 9, 9)
    return tuple(r.randint(1, high) * (r.choice((1, 1, -1)) if level >= 4 else 1) for _ in range(4))


@kind("Precalculus", lambda a, b, c, d: f"Find the dot product of ({a}, {b}) and ({c}, {d}).", _entries)
def dot_product(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    return add(pad, multiply(pad, a, c), multiply(pad, b, d))


@kind("Precalculus", lambda a, b, c, d: f"Find the determinant of [[{a}, {b}], [{c}, {d}]].", _entries)
def determinant(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    return add(pad, multiply(pad, a, d), -multiply(pad, b, c))


@kind(
    "Precalculus",
    lambda a, b, c, d: f"Find the real part of ({a} {term(b, 'i')})({c} {term(d, 'i')}).",
    _entries,
)
def real_part(pad: Scratchpad, a: int, b: int, c: int, d: int) -> int:
    return add(pad, multiply(pad, a, c), -multiply(pad, b, d))
