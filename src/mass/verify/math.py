r"""(Task, answer text) -> Verdict, by mathematical equality: as quantities and texts, then by math-verify and SymPy.

The first is cheap and decides most answers. Only the rest goes to the worker processes of `mass.verify.pool`, where
exact values are compared exactly. Equality does not depend on which of the two is called gold, but for one thing: an
equation answers a question for its right side, so `a + b = 3` is taken for the gold `3` (`y = 2x` and `2x` either way).
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
"""A decimal with at least so many places and significant digits stands for the value that rounds to it."""

CACHED = 1024
"""Answers whose parts are remembered: a gold is compared with many answers, an answer with many ballots."""

_BREAK = re.compile(r",(?!\s?\\?,)|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_NAME = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=(?!=)\s*")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_CLOSED = {"(": ")", "[": "]", r"\{": r"\}"}
_RATIO = re.compile(r"[^:]+(?::[^:=]+)+")
_ROUNDED = re.compile(r"[+-]?([0-9]*)\.([0-9]+)(?:\s*\\(?:times|cdot)\s*10\^.*)?")


@dataclass(frozen=True)
class Algebra:
    """What only algebra can tell: the answers are equal where one of these pairs is."""

    pairs: tuple[tuple[str, str], ...]

    def equal(self) -> bool:
        """Asks a worker. Raises NoVerdict on a timeout or a crash."""
        return any(POOL.equal(*pair) for pair in self.pairs)


def check(task: Task, text: str) -> Verdict:
    """Whether the final answer of `text` equals `task.answer`; None where math-verify timed out or crashed."""
    found = find(text)
    if found is None:
        return Verdict(False, "no answer found in the text")
    gold = task.answer.strip()
    if gold == found.text:
        return verdict(True, found, gold)
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
    """Equality as far as numbers, units and texts can tell; else what algebra has to tell."""
    left, right = number(gold), number(answer)
    if left is not None and right is not None:
        return left == right or _rounds(left, right, answer) or _rounds(right, left, gold)
    one, other = _single(plain(gold)), _single(plain(answer))
    if squeeze(one) == squeeze(other):
        return True
    for decide in (_closed_otherwise, _numerals, _times, _ratios, _same_names, _lists):
        if (decided := decide(one, other)) is not None:
            return decided
    return _quantities(quantities.read(one), quantities.read(other))


def same(gold: str, answer: str) -> bool:
    """Whether two final answers are equal, by algebra where it takes that. Raises NoVerdict as the pool does."""
    found = compare(gold, answer)
    return found.equal() if isinstance(found, Algebra) else found


@functools.lru_cache(maxsize=CACHED)
def squeeze(text: str) -> str:
    """`text` without the spaces that mean nothing; words in small letters; a lone letter without its brackets."""
    text = _SPACE.sub("", text)
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return text.casefold() if len(text) > 2 and text.isalpha() else text


@functools.lru_cache(maxsize=CACHED)
def _single(text: str) -> str:
    r"""`[5]` and `\{5\}` as `5`: the only element of a set is the answer."""
    for opening, closing in (("[", "]"), (r"\{", r"\}")):
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and not re.search(r"[\]\[|:]|\\mid|\\[{}]", inside):
            return inside.strip() if len(_pieces(inside)) == 1 else text
    return text


# --- what can be told without algebra: True, False, or None where the two are not of that kind


def _closed_otherwise(one: str, other: str) -> bool | None:
    """Intervals, points or sets with other brackets: `(3,4]` and `[3,4]`, `(1,2)` and `\\{1,2\\}`."""
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
    """Numerals with their bases; math-verify would drop those."""
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
    """`1:2:3` is `2:4:6`; a ratio of two may be a fraction too and is left to algebra."""
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
    """`a=2, b=3` by name; empty for anything else, also for one name alone."""
    pieces = _pieces(text)
    found = [_NAME.match(piece) for piece in pieces]
    names = {match[1]: piece[match.end() :] for match, piece in zip(found, pieces, strict=True) if match}
    return names if len(names) == len(pieces) > 1 else {}


def _is_word(text: str) -> bool:
    """Whether letters are all there is. As products of variables `abc` and `bca` would be equal, and `red` and `der`;
    as words, names and orders, which are as common among answers, they are not."""
    letters = re.sub(r"[\s.()'-]", "", text)
    return letters.isalpha() and (len(letters) > 2 or " " in text)


def _lists(one: str, other: str) -> bool | None:
    """Several quantities in any order: `3 \\text{ red and } 2 \\text{ blue}`. A list of two is no single answer."""
    first, second = _items(one), _items(other)
    if len(first) < 2 and len(second) < 2:
        return None
    every = (*first, *second)
    worded = all(q.unit for q in every)
    left, right = ({_key(q, worded) for q in side} for side in (first, second))
    if left == right:
        return True
    told = all(q.number is not None or _is_word(q.value) for q in every)
    compound = any(q.unit and q.unit.word == "compound" for q in every)
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
    """`text` cut at its commas, `and`, `or` outside of all brackets."""
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
    return _percent(one) != _percent(other) and 100 * (right if _percent(one) else left) == (
        left if _percent(one) else right
    )


def _conversion(one: Quantity, other: Quantity) -> Fraction | None:
    """By what the first is multiplied to be in the unit of the second; None where no factor does it.

    A unit on one side only is a matter of style, and so is a word that is no known unit; of a sum of units it is not.
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
    """Whether `text` writes `decimal`, to which `exact` rounds, with digits enough to stand for it."""
    match = _ROUNDED.fullmatch(text.strip())
    digits = (match[1] + match[2]).lstrip("0") if match else ""
    if match is None or min(len(match[2]), len(digits)) < ROUNDED_DIGITS:
        return False
    return 2 * int(digits) * abs(exact - decimal) <= abs(decimal)
