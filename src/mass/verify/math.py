"""Decide whether two mathematical answers are equal: first as quantities and texts, then by math-verify and SymPy.

The first part is cheap and decides most answers. Only the rest goes to the worker processes of `mass.verify.pool`,
where exact values are compared exactly. Equality does not depend on which of the two is called gold, with one
exception: an equation answers a question by its right side, so `a + b = 3` is accepted for the gold `3` (`y = 2x` and
`2x` are equal either way).
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from fractions import Fraction

from mass.types import Task, Verdict
from mass.verify import quantities
from mass.verify.exact import number, verdict
from mass.verify.extract import MAX_ANSWER_CHARS, find
from mass.verify.notation import plain
from mass.verify.pool import NoVerdict, Pool
from mass.verify.quantities import Quantity

POOL = Pool(size=min(4, os.cpu_count() or 1))
"""Its workers start with the first answer that needs them."""

ROUNDED_DIGITS = 6
"""A decimal with at least this many places and significant digits stands for any value that rounds to it."""

CACHED = 1024
"""Size of each cache below: a gold is compared with many answers, an answer with many others in a vote."""

_BREAK = re.compile(r",(?!\s?\\?,)|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_NAME = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=(?!=)\s*")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_CLOSED = {"(": ")", "[": "]", r"\{": r"\}"}
_RATIO = re.compile(r"[^:]+(?::[^:=]+)+")
_ROUNDED = re.compile(r"[+-]?([0-9]*)\.([0-9]+)(?:\s*\\(?:times|cdot)\s*10\^.*)?")


@dataclass(frozen=True)
class Algebra:
    """A comparison that only algebra can decide: the answers are equal if the two formulas of any pair are."""

    pairs: tuple[tuple[str, str], ...]

    def equal(self) -> bool:
        """Ask a worker.

        Raises:
            NoVerdict: The worker timed out or crashed.
        """
        return any(POOL.equal(*pair) for pair in self.pairs)


def check(task: Task, text: str) -> Verdict:
    """Judge the final answer of `text` against `task.answer`; the verdict is None where math-verify timed out or
    crashed."""
    found = find(text)
    if found is None:
        return Verdict(False, "no answer found in the text")
    gold = task.answer.strip()
    if gold == found.text:
        return verdict(True, found, gold)
    # Parsing a very long text could take a worker its whole time limit, and it is not the answer anyway.
    if len(found.text) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return Verdict(False, f"the answer has {len(found.text)} characters, too many for {gold[:60]!r}", found.text)
    cheap = compare(gold, found.text)
    try:
        if isinstance(cheap, Algebra):
            return verdict(cheap.equal(), found, gold, "by math-verify")
        return verdict(cheap, found, gold)
    except NoVerdict as error:
        return Verdict(None, str(error), found.text)


def compare(gold: str, answer: str) -> bool | Algebra:
    """Compare as far as numbers, units and texts can decide; return an `Algebra` where they cannot."""
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return left == right or _rounds(left, right, answer) or _rounds(right, left, gold)
    one, other = _single(plain(gold)), _single(plain(answer))
    if squeeze(one) == squeeze(other):
        return True
    # Each returns None where the two answers are not of its kind. The order matters: special forms before lists.
    for decide in (_closed_otherwise, _numerals, _times, _ratios, _same_names, _lists):
        if (decided := decide(one, other)) is not None:
            return decided
    return _quantities(quantities.read(one), quantities.read(other))


def same(gold: str, answer: str) -> bool:
    """Return True if two final answers are equal, using algebra where it is needed.

    Raises:
        NoVerdict: The worker timed out or crashed.
    """
    found = compare(gold, answer)
    return found.equal() if isinstance(found, Algebra) else found


@functools.lru_cache(maxsize=CACHED)
def squeeze(text: str) -> str:
    """Return `text` without spaces that mean nothing, words in small letters, and a single letter without its
    brackets."""
    text = _SPACE.sub("", text)
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return text.casefold() if len(text) > 2 and text.isalpha() else text


@functools.lru_cache(maxsize=CACHED)
def _single(text: str) -> str:
    r"""Return `[5]` and `\{5\}` as `5`: the only element of a set is the answer."""
    for opening, closing in (("[", "]"), (r"\{", r"\}")):
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and not re.search(r"[\]\[|:]|\\mid|\\[{}]", inside):
            return inside.strip() if len(_pieces(inside)) == 1 else text
    return text


# --- decided without algebra: True, False, or None where the two answers are not of that kind


def _closed_otherwise(one: str, other: str) -> bool | None:
    r"""Tell apart intervals, points and sets with different brackets: `(3,4]` and `[3,4]`, `(1,2)` and `\{1,2\}`."""
    ends = _ends(one), _ends(other)
    return False if None not in ends and ends[0] != ends[1] else None


@functools.lru_cache(maxsize=CACHED)
def _ends(text: str) -> tuple[str, str] | None:
    opening = text[:2] if text.startswith("\\") else text[:1]
    if opening not in _CLOSED or len(_pieces(text)) > 1:
        return None
    closing = text[-2:] if text.endswith(r"\}") else text[-1:]
    inside = text[len(opening) : len(text) - len(closing)]
    return (opening, closing) if closing in _CLOSED.values() and "," in inside else None


def _numerals(one: str, other: str) -> bool | None:
    """Compare numerals together with their bases, which math-verify would drop."""
    first, second = quantities.based(one), quantities.based(other)
    if first and second:
        return first == second
    numeral, rest = (first, other) if first else (second, one)
    return None if numeral is None else numeral[0] == squeeze(rest).casefold()


def _times(one: str, other: str) -> bool | None:
    first, second = quantities.clock(one), quantities.clock(other)
    if first and second:
        return quantities.same_time(first, second)
    return None


def _ratios(one: str, other: str) -> bool | None:
    """Compare ratios: `1:2:3` is `2:4:6`. A ratio of two numbers may also be a fraction and is left to algebra."""
    if not (_RATIO.fullmatch(one) and _RATIO.fullmatch(other)):
        return None
    left, right = ([quantities.rational(part.strip()) for part in text.split(":")] for text in (one, other))
    if len(left) != len(right):
        return False
    if None in left or None in right:
        return None if len(left) == 2 else False
    pairs = [(a or Fraction(0), b or Fraction(0)) for a, b in zip(left, right, strict=True)]
    a, b = pairs[0]
    return all(a * y == b * x for x, y in pairs) and (a == 0) == (b == 0)


def _same_names(one: str, other: str) -> bool | Algebra | None:
    """Compare answers that name several values: `a=2, b=3`, or `(2, 3)` on one side."""
    first, second = _named(one), _named(other)
    for names, text in ((first, other), (second, one)):
        if names and text.startswith("(") and text.endswith(")") and len(_pieces(text[1:-1])) == len(names):
            return compare(f"({', '.join(names.values())})", text)
    if not first or not second:
        return None
    if first.keys() != second.keys():
        return False
    each = [compare(first[name], second[name]) for name in first]
    if False in each:
        return False
    return True if all(found is True for found in each) else None


@functools.lru_cache(maxsize=CACHED)
def _named(text: str) -> dict[str, str]:
    """Return the values of `a=2, b=3` by name; empty for anything else, and for a single name."""
    pieces = _pieces(text)
    found = [_NAME.match(piece) for piece in pieces]
    names = {match[1]: piece[match.end() :] for match, piece in zip(found, pieces, strict=True) if match}
    return names if len(names) == len(pieces) > 1 else {}


def _is_word(text: str) -> bool:
    """Return True if the text consists of letters only.

    As products of variables `abc` and `bca` would be equal, and so would `red` and `der`. As words, names and orders,
    which are as common among answers, they are not.
    """
    letters = re.sub(r"[\s.()'-]", "", text)
    return letters.isalpha() and (len(letters) > 2 or " " in text)


def _lists(one: str, other: str) -> bool | None:
    r"""Compare several quantities in any order: `3 \text{ red and } 2 \text{ blue}`. A list of two is no single
    answer."""
    first, second = _items(one), _items(other)
    if len(first) < 2 and len(second) < 2:
        return None
    every = (*first, *second)
    # Words count only where every item has one: `3 red, 2 blue` is not `2 red, 3 blue`, but `3, 2` may leave them out.
    worded = all(q.unit for q in every)
    left, right = ({_key(q, worded) for q in side} for side in (first, second))
    if left == right:
        return True
    told = all(q.number is not None or _is_word(q.value) for q in every)
    compound = any(q.unit and q.unit.word == "compound" for q in every)
    # Different sets of numbers and words differ; for formulas, sums of units and decimals algebra has to decide.
    return None if not told or compound or any("." in q.value for q in every) else False


def _key(quantity: Quantity, worded: bool) -> tuple[str, str]:
    value = squeeze(quantity.value) if quantity.number is None else str(quantity.number)
    return value, quantity.unit.word if quantity.unit and worded else ""


@functools.lru_cache(maxsize=CACHED)
def _items(text: str) -> list[Quantity]:
    whole = quantities.read(text)
    if whole.number is not None:
        return [whole]
    return [quantities.read(piece) for piece in _pieces(text)]


@functools.lru_cache(maxsize=CACHED)
def _pieces(text: str) -> tuple[str, ...]:
    """Split `text` at commas, semicolons, `and` and `or` outside of all brackets."""
    pieces: list[str] = []
    depth = start = 0
    for token in re.finditer(r"[({\[]|[)}\]]|" + _BREAK.pattern, text):
        if token[0] in "({[":
            depth += 1
        elif token[0] in ")}]":
            depth -= 1
        elif depth == 0:
            pieces.append(text[start : token.start()])
            start = token.end()
    return tuple(piece.strip() for piece in (*pieces, text[start:]) if piece.strip())


# --- one quantity against another


def _quantities(one: Quantity, other: Quantity) -> bool | Algebra:
    ratio = _conversion(one, other)
    if ratio is None:
        return False
    # `x = 5` is not `y = 5`; `f(x) = 5` and `y = 5` may be.
    if one.name and other.name and one.name != other.name:
        return _algebra(one, other, ratio) if max(len(one.name), len(other.name)) > 1 else False
    left, right = one.number, other.number
    if left is None or right is None:
        if ratio == 1 and squeeze(one.value) == squeeze(other.value):
            return True
        return False if _is_word(one.value) or _is_word(other.value) else _algebra(one, other, ratio)
    left *= ratio
    if left == right or _rounds(left, right, other.value) or (ratio == 1 and _rounds(right, left, one.value)):
        return True
    # Data sets write 50% both as 0.5 and as 50, so a percentage equals either.
    return _percent(one) != _percent(other) and 100 * (right if _percent(one) else left) == (
        left if _percent(one) else right
    )


def _conversion(one: Quantity, other: Quantity) -> Fraction | None:
    """Return the factor that converts the first quantity into the unit of the second; None where no factor does.

    A unit on one side only is a matter of style, and so is a word that is no known unit. A sum of units such as `5
    hours 30 minutes` is not: without its unit it would be another number.
    """
    first, second = one.unit, other.unit
    if first is None or second is None:
        known = first or second
        return None if known and known.word == "compound" else Fraction(1)
    if first.dimension is None or second.dimension is None:
        return Fraction(1) if "%" not in (first.word, second.word) or first.word == second.word else None
    return first.factor / second.factor if first.dimension == second.dimension else None


def _percent(quantity: Quantity) -> bool:
    return quantity.unit is not None and quantity.unit.word == "%"


def _algebra(one: Quantity, other: Quantity, ratio: Fraction) -> Algebra:
    left, right = one.value, other.value
    if ratio != 1:
        left = rf"({left})\cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    pairs = [(left, right)]
    if _percent(one) != _percent(other):
        hundredth = r"\frac{%s}{100}"
        pairs.append((hundredth % left, right) if _percent(one) else (left, hundredth % right))
    if (one.name and other.name) or "=" in one.value + other.value:
        pairs = [(_renamed(one.name, a), _renamed(other.name, b)) for a, b in pairs]
    return Algebra(tuple(pairs))


def _renamed(name: str, value: str) -> str:
    return f"{name}={value}" if name else value


def _rounds(exact: Fraction, decimal: Fraction, text: str) -> bool:
    """Return True if `text` writes `decimal` with enough digits to stand for `exact`, which rounds to it."""
    match = _ROUNDED.fullmatch(text.strip())
    digits = (match[1] + match[2]).lstrip("0") if match else ""
    if match is None or min(len(match[2]), len(digits)) < ROUNDED_DIGITS:
        return False
    # |exact - decimal| is at most half a unit of the last digit, written without a division.
    return 2 * int(digits) * abs(exact - decimal) <= abs(decimal)
