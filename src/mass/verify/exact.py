"""Read the rational number that a text writes, and judge answers by exact rationals, else by equal text.

It does without SymPy, since it runs for every sampled solution in training.
"""

from __future__ import annotations

import re
from fractions import Fraction

from mass.types import Task, Verdict
from mass.verify.extract import FoundAnswer, find

MAX_NUMBER_CHARS = 400
"""Longer numbers are compared as text: arithmetic on them would cost more than any answer is worth."""

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_RATIONAL = re.compile(
    rf"(?P<sign>[+-]?) *(?:(?P<whole>[0-9]+) +(?P<of>[0-9]+) */ *(?P<by>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?: */ *(?P<bottom>-?(?:{_DECIMAL})))?)"
)
_FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
_THOUSANDS = re.compile(r",\s*\\!\s*|\{,\}")
_SPACED = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:(?: |\\,)[0-9]{3})+(?![0-9])")
_REPEATING = re.compile(
    r"(?P<sign>[+-]?)(?P<head>[0-9]*\.[0-9]*)\\(?:overline|bar|dot)\s?(?:\{(?P<cycle>[0-9]+)\}|(?P<digit>[0-9]))"
)
_GOES_ON = re.compile(
    r"(?P<sign>[+-]?)(?P<head>[0-9]{0,9}\.[0-9]{0,9}?)(?P<cycle>[0-9]{1,6}?)(?P=cycle){2,}(?P<digit>)(?:\.\.\.|\\[lc]?dots)"
)
_MONEY = re.compile(r"\\?[$€£¥]")


def number(text: str) -> Fraction | None:
    r"""Return the rational number that `text` writes, or None.

    Examples: `7`, `-3/4`, `1 1/2`, `2.50`, `1,200`, `1 200`, `$5`, `\frac{3}{4}`, `0.\overline{3}`, `0.333...`.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    # Most answers are whole numbers: decide those without a regular expression.
    if text.isascii() and text.isdigit():
        return Fraction(int(text))
    plain = _MONEY.sub("", _THOUSANDS.sub(",", text)).replace("\u2212", "-").strip()
    if repeating := _REPEATING.fullmatch(plain) or _GOES_ON.fullmatch(plain):
        return _repeating(repeating)
    plain = _SPACED.sub(lambda m: re.sub(r" |\\,", "", m[0]), plain)
    plain = _FRAC.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", plain).strip()
    match = _RATIONAL.fullmatch(plain)
    if match is None:
        return None
    try:
        value = _value(match)
    except ZeroDivisionError:
        return None
    return -value if match["sign"] == "-" else value


def _value(match: re.Match[str]) -> Fraction:
    if match["whole"]:
        return int(match["whole"]) + Fraction(int(match["of"]), int(match["by"]))
    return _decimal(match["top"]) / _decimal(match["bottom"] or "1")


def _repeating(match: re.Match[str]) -> Fraction:
    """Return the value of a repeating decimal: `0.1` with the cycle `6` is 0.1 + 6/90."""
    cycle, places = match["cycle"] or match["digit"], len(match["head"].partition(".")[2])
    head = Fraction(f"0{match['head']}0")
    value = head + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)
    return -value if match["sign"] == "-" else value


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").rstrip("."))


def check(task: Task, text: str) -> Verdict:
    """Judge the final answer of `text`: it must be the task's, as a rational number or letter by letter."""
    found = find(text)
    if found is None:
        return Verdict(False, "no answer found in the text")
    gold, value = number(task.answer), number(found.number or found.text)
    equal = gold == value if gold is not None and value is not None else _words(task.answer) == _words(found.text)
    return verdict(equal, found, task.answer)


def verdict(correct: bool, found: FoundAnswer, gold: str, how: str = "") -> Verdict:
    """Return a verdict with its reason: the two answers, how they compare, and whether the answer was a last resort."""
    sign = "is" if correct else "is not"
    reason = f"{shorten(found.text)} {sign} {shorten(gold)}" + (f" ({how})" if how else "")
    if found.how.startswith("last"):
        reason += f"; no marked answer, the {found.how} was taken"
    return Verdict(correct, reason, found.text)


def shorten(text: str, limit: int = 60) -> str:
    """Return `text` on one line, cut to about `limit` characters."""
    line = _words(text[: 4 * limit])
    return line if len(line) <= limit else line[:limit] + "…"


def _words(text: str) -> str:
    return " ".join(text.split())
