r"""Find the value that a sentence states: "She has 5 apples left (out of 12)." -> `5`, "It covers 9 cm^2" -> `9\text{
cm}^2`.

A model that was not asked for a certain form ends with a sentence. Among the values in it, an emphasised one is
preferred to the others, and a computed one ("120 / 24 = 5 hours for 120 pages") to one that is only named. Side remarks
come last: values in brackets, and those that a condition, a reason or a comparison names ("out of 12", "since 3 + 2 =
5", "more than 7"). Among equals the last one counts. Units stay, and so do the words that change a number's value
("million", "at least"); any other noun is dropped.

Every pass reads at most `MAX_CHARS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mass.verify.formulas import FORMULA, content, right_side

MAX_CHARS = 2000
"""A sentence is read up to here; an answer would not stand further on."""

_COUNT = r"(?:[0-9]{1,3}(?:,[0-9]{2,3})+(?![0-9])|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMBER = rf"(?:(?:[$€£₹¥]\s?-?)?(?:[0-9]+ [0-9]+/[0-9]+|(?:{_COUNT})(?:[eE][-+]?[0-9]+(?![0-9A-Za-z]))?))"
_FACTOR = (
    rf"(?:{_NUMBER}|(?:sqrt|cbrt|sin|cos|tan|log|ln|exp|pi|infinity)(?![a-z])|[A-Za-z](?![^\W\d_])|[πτ∞√½⅓⅔¼¾⅕⅙⅛])"
)
_TERM = rf"(?:[(\[{{]\s?){{0,4}}{_FACTOR}(?:{_FACTOR}|[()\[\]{{}}!²³⁰-⁹']|\s?[%°]){{0,40}}"
_SIGN = r"\s?(?:\*\*|<=|>=|[-+*/^=×·÷−–≤≥≠≈<>±∪∩]|(?<=[0-9]):(?=[0-9]))\s?"
_EXPRESSION = re.compile(rf"(?<![\w.^$])[-+−–±]?{_TERM}(?:{_SIGN}[-+−–]?{_TERM}){{0,40}}")
_LIST = re.compile(r"[(\[{](?:[^\W\d_](?![^\W\d_])|pi|inf|sqrt|[^\w()\[\]{}]|[0-9_]){1,80}[)\]}]")
_UNIT = (
    r"(?:(?:kilo|centi|milli|deci)?(?:met(?:er|re)|gram|lit(?:er|re))s?|inch(?:es)?|foot|feet|yards?|miles?|acres?"
    r"|hectares?|(?:milli|micro|nano)?seconds?|minutes?|hours?|days?|weeks?|months?|years?|pounds?|ounces?|tons?|tonnes?"
    r"|gallons?|quarts?|pints?|cups?|dollars?|cents?|euros?|rupees?|pence|pesos?|yen|degrees?|radians?|units?|newtons?"
    r"|joules?|watts?|volts?|amps?|[kcm]?m|[km]?g|m?[lL]|ft|yd|mi|lbs?|oz|hrs?|h|mins?|secs?|s|mph|kph|km/h|m/s|kWh"
    r"|[kM]?Hz|[kM]?W|N|J|°?[CF](?=[\s.,;]|$))"
)
_POWER = r"(?:\^\{?[23]\}?|[²³23](?![0-9])|\s(?:squared|cubed))?"
_MEASURE = re.compile(
    rf"\s?(?P<name>(?:(?:square|cubic|sq\.?|cu\.?)\s)?{_UNIT})(?P<power>{_POWER})"
    rf"(?P<per>(?:\s?/\s?|\sper\s|\sa\s|\san\s){_UNIT})?(?P<per_power>{_POWER})(?![\w^])"
)
_SCALE = re.compile(
    r"\s?(?P<word>(?:(?:hundred|thousand|million|billion|trillion|dozens?|percent|halves|thirds|quarters|fourths|fifths"
    r"|tenths|hundredths)\b|and an? (?:half|quarter|third)\b|(?:k|K|M|bn)(?![\w/^&])"
    r"|(?:[ap]\.m\.?|[AP]\.M\.?|[ap]m|[AP]M)(?!\w))(?: (?:thousand|million|billion))?)"
)
_BOUND = re.compile(
    r"(?:\b(?:(?:more|less|fewer|greater|larger|smaller|higher|lower|longer|shorter)\sthan(?:\sor\sequal\sto)?"
    r"|over|under|below|above|between|not|never|except)|n['’]t|\A\s*at\s(?:least|most))\s(?:the\s|be\s)?$",
    re.I,
)
_SIDE = re.compile(
    r"(?:\b(?:because|since|given that|assuming|such that|for (?:which|all|every|any|each)|satisfying|provided)\b"
    r"[^,.;:]{0,60}"
    r"|\b(?:if|when|where|after|before)\b(?:(?!\b(?:is|are|was|were|equals|leaves|gives|makes|has|have)\b)[^,.;:]){0,60}"
    r"|\b(?:out of|than|instead of)\b(?:\s[^\s,.;]+){0,2}\s"
    r"|\b(?:step|question|problem|part|case|example|figure|equation|section|note|page|grade)\s[#(]?"
    r"|\bdivided by\s|\bof (?:the|these|those|all)\s)$",
    re.I,
)
_YEAR = re.compile(r"(?:1[89]|20)[0-9]{2}")
_DATED = re.compile(r"\b(?:in|of|since|by|from|year)\s$", re.I)
_RESTATED = re.compile(
    r"\bwhich (?:is|equals|makes|gives|means|comes to|rounds (?:up |down )?to)\s(?:about\s|approximately\s)?\Z", re.I
)
_EMPHASIS = re.compile(r"(?<![\w)*])(\*{1,3}|__)(?=[^\s*_])([^*\n]{1,200}?)(?<=\S)\1(?![\w(*])")
_REMARK = re.compile(r"\([^()\n]{0,300}\)")
_AND = re.compile(r"\s?,?\s?(?:and|or|&)\s|\s?,\s?")
_AND_WORD = re.compile(r"\b(?:and|or)\b|&")
_AND_LATER = re.compile(r"(?:\s?,\s?[^\s,]{1,20}){0,20}?\s?,?\s?(?:and|or|&)\s")
_LETTER = re.compile(r"[^\W\d_]")
_VALUED = re.compile(r"[0-9π∞√½⅓⅔¼¾⅕⅙⅛]|(?<![a-z])pi(?![a-z])")
_ADJECTIVE = re.compile(r"-?[^\W\d_]{2}|-?[^\W\d_]-|[_@#]")
_COMPARED = re.compile(r"(?:,\s)?\bwhich is (?:[^,;.]|\.(?=[0-9])){0,60}\bthan\b(?:[^,;.]|\.(?=[0-9])){0,80}", re.I)
_NAME = re.compile(r"\\?[A-Za-z]{1,2}(?:_\{?\w\}?)?")
_RELATION = re.compile(r"([^=<>≤≥≠≈$,]{0,60})(?:[=<>≤≥≠≈]|\\(?:le|ge|lt|gt|ne))")


@dataclass(frozen=True)
class Value:
    """A value that a text states, and its place in the text."""

    text: str
    r"""The value as mathematics: `9\text{ cm}^2`, `6\text{ million}`, `\text{more than }5`."""
    start: int
    end: int
    number: str = ""
    """The number alone, where only a unit stands beside it; else empty."""
    side: bool = False
    """True if it is a side remark."""


def stated(sentence: str) -> Value | None:
    """Return the value that `sentence` states, or None where it has none."""
    sentence = sentence[:MAX_CHARS]
    found = values(sentence)
    emphasised = [match.span(2) for match in _EMPHASIS.finditer(sentence)]

    def trust(value: Value) -> tuple[bool, bool, bool, int]:
        strong = any(a <= value.start and value.end <= b for a, b in emphasised)
        return not value.side, strong, _is_computed(value, sentence), value.start

    return max(found, key=trust, default=None)


def _is_computed(value: Value, sentence: str) -> bool:
    """Return True for the right side of arithmetic in plain text, or a value that restates it."""
    if _RESTATED.search(sentence, 0, value.start):
        return True
    plain = sentence[value.start] not in "$\\" or value.text.startswith("$")
    return plain and "=" in sentence[max(0, value.start - 2) : value.end]


def leading(text: str) -> Value | None:
    """Return the value that `text` begins with, or None."""
    first = next(iter(values(text[:MAX_CHARS])), None)
    return first if first and first.start <= 2 and not _LETTER.search(text, 0, first.start) else None


def values(sentence: str) -> list[Value]:
    """Return all values in `sentence` in their order. Those joined by "and" or "or" are one value, as are feet and
    inches."""
    plain = _EMPHASIS.sub(_blank_marks, sentence).replace("`", " ")
    remarks = [match.span() for match in (*_REMARK.finditer(plain), *_COMPARED.finditer(plain))]
    found: list[Value] = []
    for value in _each(plain):
        # A value alone in brackets repeats what stands before it: "five (5)". So it is no side remark.
        side = any(a <= value.start and value.end <= b and (a + 1, b - 1) != _span(value, plain) for a, b in remarks)
        before = plain[max(0, value.start - 80, found[-1].end if found else 0) : value.start]
        side = side or _is_side(before, plain[value.start : value.end])
        bounded = _bounded(dataclasses.replace(value, side=side), before, "=" in plain[value.start : value.end])
        joined = _joined(found[-1], bounded, plain) if found else None
        found = [*found[:-1], joined] if joined else [*found, bounded]
    return found


def _blank_marks(match: re.Match[str]) -> str:
    marks = " " * len(match[1])
    return f"{marks}{match[2]}{marks}"


def _span(value: Value, text: str) -> tuple[int, int]:
    inner = text[value.start : value.end]
    return (value.start + 1, value.end - 1) if inner[:1] == "(" and inner[-1:] == ")" else (value.start, value.end)


def _is_side(before: str, value: str) -> bool:
    return bool(_SIDE.search(before) or (_YEAR.fullmatch(value) and _DATED.search(before)))


def _each(text: str) -> Iterator[Value]:
    """Yield formulas, lists in brackets and numbers, each with its scale and its unit."""
    position = 0
    formulas = [match for match in FORMULA.finditer(text) if _means_a_value(content(match))]
    for match in formulas:
        yield from _plain(text, position, match.start())
        inner = content(match)
        value = right_side(inner) if "=" in inner or "\\\\" in inner or "approx" in inner else inner
        yield _measured(text, match.start(), match.end(), value)
        position = match.end()
    yield from _plain(text, position, len(text))


def _means_a_value(formula: str) -> bool:
    """Return True for more than a name: `n`, `ABC` and `f(x)` state nothing."""
    return bool(re.search(r"[0-9+*/=<>^]|\\(?!triangle|angle|overline|text|mathrm)[A-Za-z]{2}|[a-z]-", formula))


def _plain(text: str, start: int, end: int) -> Iterator[Value]:
    position = start
    while position < end and (match := _next(text, position, end)):
        value = _measured(text, *match)
        position = value.end
        if value.text and not _ADJECTIVE.match(text, value.end):
            yield value


def _next(text: str, start: int, end: int) -> tuple[int, int, str] | None:
    """Return (start, end, value) of the next expression or list of numbers, or None."""
    listed = _LIST.search(text, start, end)
    while listed and not ("," in listed[0] and _VALUED.search(listed[0])):
        listed = _LIST.search(text, listed.start() + 1, end)
    match = _EXPRESSION.search(text, start, end)
    if listed and (match is None or listed.start() <= match.start()):
        return listed.start(), listed.end(), listed[0]
    if match is None:
        return None
    first, last = _balanced(text, match.start(), match.end())
    written = text[first:last]
    value = right_side(written)
    named = written[:1].isalpha() and not re.search(r"[-+*/^=×·]", written)
    return first, last, "" if named or not _VALUED.search(value) else value


def _balanced(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without a bracket at either end that has no partner."""
    while end > start and text[end - 1] in ")]}'" and not _closes(text[start:end]):
        end -= 1
    while start < end - 1 and text[start] in "([{" and not _closes(text[start:end]):
        start += 1
    return start, end


def _closes(text: str) -> bool:
    openings, closings = (sum(text.count(sign) for sign in signs) for signs in ("([{", ")]}"))
    return openings == closings and not text.endswith("'")


def _measured(text: str, start: int, end: int, value: str) -> Value:
    """Return the value with the scale ("million") and the unit ("cm^2") that follow it."""
    number = value
    if scale := _SCALE.match(text, end):
        word = scale["word"]
        value, end = (f"{value}%" if word == "percent" else rf"{value}\text{{ {word}}}"), scale.end()
        number = ""
    if value and (unit := _MEASURE.match(text, end)):
        power = _power(unit["power"])
        per = re.sub(r"\s?/\s?", "/", unit["per"] or "")
        value, end = rf"{value}\text{{ {unit['name']}{per}}}{_power(unit['per_power']) or power}", unit.end()
    return Value(value, start, end, number)


def _power(written: str) -> str:
    digit = re.search(r"[23²³]|squared|cubed", written or "")
    return "" if digit is None else "^2" if digit[0] in ("2", "²", "squared") else "^3"


def _bounded(value: Value, before: str, computed: bool) -> Value:
    r"""Return the value with the words before it that change it: `\text{at least }5`."""
    bound = _BOUND.search(before)
    if bound is None or computed:
        return value
    return Value(rf"\text{{{bound[0].strip()} }}{value.text}", value.start - len(bound[0]), value.end, side=value.side)


def _joined(one: Value, other: Value, text: str) -> Value | None:
    r"""Return the two as one value, `2 and 3` or `5\text{ feet }3\text{ inches}`; None where they are separate."""
    between = text[one.end : other.start]
    if one.side or other.side or (between.strip() and not _AND.fullmatch(between)):
        return None
    measured = r"\text{" in one.text and r"\text{" in other.text
    listed = _AND_WORD.search(between) or (between.strip() and _AND_LATER.match(text, other.end))
    # Equations are a list only if they have the same name: x = 2 or x = 3.
    names = {_AND_WORD.split(match[1])[-1].strip() for match in _RELATION.finditer(text, one.start, other.end)}
    if not (measured or (listed and len(names) <= 1 and all(map(_NAME.fullmatch, names)))):
        return None
    return Value(f"{one.text}{between or ' '}{other.text}", one.start, other.end)
