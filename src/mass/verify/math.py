r"""(Task, answer text) -> Verdict, by mathematical equality: as numbers, as normalised text, then by math-verify.

The first two are cheap and decide most answers: two rational numbers that differ are different, whatever a symbolic
comparison with rounding would say. Only the rest goes to the worker processes of `mass.verify.pool`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction

from mass.types import Task, Verdict
from mass.verify import intervals
from mass.verify.exact import number, verdict
from mass.verify.extract import MAX_ANSWER_CHARS, find
from mass.verify.pool import NoVerdict, Pool

POOL = Pool(size=min(4, os.cpu_count() or 1))
"""Its workers start with the first answer that needs them."""

ROUNDED_PLACES = 6
"""A decimal of at least so many places stands for the fraction that rounds to it: 0.333333 for 1/3."""

_WORDS_IN_MATH = re.compile(
    r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|boldsymbol|bf|operatorname)\s?\{([^{}]*)\}"
)
_UNIT_LETTER = re.compile(r"(?<=[0-9}])\s*\\(?:text|mbox|mathrm)\s?\{\s*([mgshL])\s*\}")
_LETTERS = {"m": "meter", "g": "gram", "s": "second", "h": "hour", "L": "liter"}
_SPACING = re.compile(r"\\[!,;:> ]|~|\\q?quad\b|\\(?:left|right|displaystyle)(?![A-Za-z])")
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?|\\degrees?\b|°|(?<=[0-9}]) degrees?$")
_FRACTION = re.compile(r"\\[dtc]?frac(?![A-Za-z])\s?")
_ROOT = re.compile(r"\\sqrt\s?([0-9A-Za-z])")
_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_NAME = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=(?!=)\s*")
_UNIT = re.compile(r"(?<=[0-9}])(?:\s?\\?(?P<percent>%)|\s(?P<unit>[A-Za-z]{2,}[A-Za-z /.]*(?:\^\{?[23]\}?)?))$")
_BRACKETED = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")
_BASED = re.compile(r"([0-9][0-9A-Za-z]*)\s?_\s?\{?\s?([0-9]{1,2})\s?\}?")
_UNITS = {
    name: words.split()[0]
    for words in (
        "m meter metre",
        "cm centimeter centimetre",
        "mm millimeter millimetre",
        "km kilometer kilometre",
        "in inch inche",
        "ft foot feet",
        "yd yard",
        "mi mile",
        "g gram",
        "kg kilogram",
        "mg milligram",
        "lb pound",
        "oz ounce",
        "s second sec",
        "min minute",
        "h hour hr",
        "day",
        "week",
        "month",
        "year yr",
        "l liter litre",
        "ml milliliter millilitre",
        "gal gallon",
        "cent",
        "dollar",
        "% percent",
        "mph",
        "km/h",
        "m/s",
    )
    for name in words.split()
}
"""Names of units that are known to be different: those of two other words may mean the same."""
_NO_UNIT = frozenset(
    # Words that make another number of it.
    re.findall(
        r"\w+",
        "pi sqrt sin cos tan log ln exp and or over to plus minus times mod base choose by squared cubed infinity "
        "dozen hundred thousand million billion trillion half halves third thirds quarter quarters",
    )
)


@dataclass(frozen=True)
class _Parts:
    """`x = 5 cm` taken apart. A name or unit on one side only is a matter of style; two that differ are not."""

    name: str
    value: str
    unit: str


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
    if cheap is not None:
        return verdict(cheap, found, gold)
    try:
        return verdict(POOL.equal(*intervals.alike(gold, found.text)), found, gold, "by math-verify")
    except NoVerdict as error:
        return Verdict(None, str(error), found.text)


def compare(gold: str, answer: str) -> bool | None:
    """Equality as far as numbers and normalised text can tell; None where it takes algebra."""
    normal_gold, normal_answer = normalise(gold), normalise(answer)
    if squeeze(normal_gold) == squeeze(normal_answer):
        return True
    if _differently_closed(normal_gold, normal_answer):
        return False
    if (named := _named(normal_gold)) and (others := _named(normal_answer)):
        return _same_names(named, others)
    one, other = _parts(normal_gold), _parts(normal_answer)
    if (one.name and other.name and one.name != other.name) or _other_unit(one.unit, other.unit):
        return False
    left, right = number(one.value), number(other.value)
    if left is None or right is None:
        return True if squeeze(one.value) == squeeze(other.value) else None
    percent = "%" in (one.unit, other.unit) and one.unit != other.unit
    return left == right or _rounds_to(left, right, other.value) or (percent and _hundredfold(left, right, one.unit))


def normalise(text: str) -> str:
    r"""LaTeX written one way: no spacing commands, dollars or degrees, `\text{}` opened, every fraction `\frac{}{}`."""
    text = text.replace("\u2212", "-").replace(r"\$", "").replace("$", "")
    text = re.sub(r",\s*\\!\s*", ",", text)
    text = text.replace(r"\varnothing", r"\emptyset")
    text = _UNIT_LETTER.sub(lambda match: f" {_LETTERS[match[1]]}", text)
    text = _WORDS_IN_MATH.sub(r" \1 ", _SPACING.sub(" ", text))
    text = _ROOT.sub(r"\\sqrt{\1}", _braced_fractions(text))
    text = _DEGREES.sub("", " ".join(text.split())).strip()
    return text.rstrip(".") if not text.endswith("..") else text


def squeeze(text: str) -> str:
    """`text` without the spaces that mean nothing; words in small letters; a lone letter without its brackets."""
    text = _SPACE.sub("", text)
    if re.fullmatch(r"\([A-Za-z]\)", text):
        text = text[1:-1]
    return text.casefold() if len(text) > 2 and text.isalpha() else text


def _braced_fractions(text: str) -> str:
    r"""`\dfrac12` and `\frac{1}2` as `\frac{1}{2}`."""
    pieces: list[str] = []
    position = 0
    for match in _FRACTION.finditer(text):
        pieces.append(text[position : match.start()] + r"\frac")
        position = match.end()
        tops = re.compile(r"([0-9A-Za-z])\s?([0-9A-Za-z]|(?=\{))|(\{[^{}]*\})\s?([0-9A-Za-z])").match(text, position)
        if tops:
            top, bottom = (f"{{{tops[1]}}}", tops[2]) if tops[1] else (tops[3], tops[4])
            pieces.append(top + (f"{{{bottom}}}" if bottom else ""))
            position = tops.end()
    return "".join(pieces) + text[position:]


def _differently_closed(gold: str, answer: str) -> bool:
    """Whether both are intervals, or points, with other brackets: `(3,4]` and `[3,4]`."""
    ends = [(text[0], text[-1]) if _BRACKETED.fullmatch(text) else None for text in (gold, answer)]
    return None not in ends and ends[0] != ends[1]


def _named(text: str) -> dict[str, str]:
    """`a=2, b=3` by name; empty for anything else, also for one name alone."""
    pieces = [piece.strip() for piece in re.split(r",|;|\band\b", text) if piece.strip()]
    found = [_NAME.match(piece) for piece in pieces]
    names = {match[1]: piece[match.end() :] for match, piece in zip(found, pieces, strict=True) if match}
    return names if len(names) == len(pieces) > 1 else {}


def _same_names(gold: dict[str, str], answer: dict[str, str]) -> bool | None:
    if gold.keys() != answer.keys():
        return False
    each = [compare(gold[name], answer[name]) for name in gold]
    return False if False in each else True if all(each) else None


def _parts(text: str) -> _Parts:
    name = _NAME.match(text)
    value = text[name.end() :] if name else text
    if based := _BASED.fullmatch(value):
        # math-verify drops the base.
        return _Parts(name[1] if name else "", based[1], f"base {based[2]}")
    unit = _UNIT.search(value)
    if unit and not _NO_UNIT.intersection((unit["unit"] or "").casefold().replace("/", " ").split()):
        word = "%" if unit["percent"] or unit["unit"] == "percent" else unit["unit"].strip().casefold().rstrip("s.")
        return _Parts(name[1] if name else "", value[: unit.start()], word)
    return _Parts(name[1] if name else "", value, "")


def _other_unit(one: str, other: str) -> bool:
    """Whether the two cannot be the same: both known, or bases of a number system."""
    if one == other or not one or not other:
        return False
    if one.startswith("base ") or other.startswith("base "):
        return True
    first, second = _UNITS.get(one), _UNITS.get(other)
    return first is not None and second is not None and first != second


def _rounds_to(gold: Fraction, answer: Fraction, text: str) -> bool:
    whole, point, places = text.strip().partition(".")
    del whole
    return bool(point) and len(places) >= ROUNDED_PLACES and places.isdigit() and round(gold, len(places)) == answer


def _hundredfold(gold: Fraction, answer: Fraction, gold_unit: str) -> bool:
    """50% is 1/2 too: the side with the sign is a hundred times the other."""
    return gold == 100 * answer if gold_unit == "%" else answer == 100 * gold
