r"""Take a final answer apart: `x = 5 \text{ hours } 30 \text{ minutes}` is 19,800 seconds, named x.

The answer is in the notation of `mass.verify.notation`. Words that make another number of it count (`6 million`, `5 and
a half`); units of one dimension are converted (`5 feet 3 inches` is `63 inches`); a word that is no known unit is
style. It does without SymPy, since it runs for every answer.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from mass.verify.exact import number

Dimension = tuple[tuple[str, int], ...]

_TABLE = """
length 1 m meter metre; 1/100 cm centimeter centimetre; 1/1000 mm millimeter millimetre; 1000 km kilometer kilometre
length 127/5000 in inch inche; 381/1250 ft foot feet; 1143/1250 yd yard; 201168/125 mi mile
mass 1 g gram gm; 1000 kg kilogram kilo; 1/1000 mg milligram; 45359237/100000 lb pound; 45359237/1600000 oz ounce
time 1 s sec second; 60 min minute; 3600 h hr hour; 86400 day; 604800 week wk
calendar 1 month; 12 yr year
volume 1/1000 l liter litre; 1/1000000 ml milliliter millilitre; 473176473/125000000000 gal gallon
money 1 cent; 100 dollar
angle 1 degree deg; 1/60 arcminute; 1/3600 arcsecond
radian 1 radian rad
celsius 1 celsius
fahrenheit 1 fahrenheit
"""
_SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12},
    **{"dozen": 12, "score": 20},
}
_PARTS = {"and a half": Fraction(1, 2), "and a quarter": Fraction(1, 4), "and three quarters": Fraction(3, 4)}
_NO_UNIT = frozenset(
    # Words after a number that are not a unit but change its value.
    re.findall(
        r"\w+",
        "sqrt sin cos tan log ln exp and or over to plus minus times mod base choose by "
        "half halves third thirds quarter quarters fourth fourths fifth fifths percent",
    )
)
_NAME = re.compile(r"([A-Za-z](?:_\{?\w\}?)?|\\[a-z]+)\s*=(?!=)\s*")
_ASKED = re.compile(r"([^=<>,;{}0-9]*[A-Za-z][^=<>,;{}]{0,60})=(?!=)\s*")
r"""The left side of an equation with a number: `AB`, `\angle ABC`, `f(2)`, `a + b`."""
_LEAD = re.compile(
    r"(?:(?:the )?(?:final )?answer is|(?:approximately|approx|about|around|roughly|exactly|only|just|a total of)\b\.?"
    r"|\\approx|\\sim|(?:Rs\.?|USD|EUR|GBP|INR|US)(?=\s?[0-9]))\s*",
    re.I,
)
_ASIDE = re.compile(r"(?<=[0-9}])\s*\([A-Za-z][A-Za-z ]+\)$")
_DEGREES = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ)(?:\s*([CF])(?![A-Za-z]))?|\\degrees?\b")
_UNIT_LETTER = re.compile(r"(?<=[0-9}]) ([mgshL])(?=$|\s?/|\s?\^\{?[23]\}?)")
_SQUARE = re.compile(r"(?<=[0-9] )([mck]?m|in|ft)([23])$")
_LETTERS = {"m": "meter", "g": "gram", "s": "second", "h": "hour", "L": "liter"}
_ORDINAL = re.compile(r"(?<=[0-9])\s?(?:\^\s?\{?)?\s?(?:st|nd|rd|th)\s?\}?$")
_POWERS = r"(?:\s?\^\{?[1-9]\}?)?"
_UNIT = re.compile(
    rf"(?:(?<=[0-9}})!])|(?<=\\pi )|(?<=\\pi))(?:\s*\\?(?P<percent>%)"
    rf"|\s?(?P<unit>/?\s?[A-Za-z][A-Za-z-]+\.?{_POWERS}(?:(?:\s?/\s?|\s)[A-Za-z-]+\.?{_POWERS}){{0,7}}))$"
)
_COMPOUND = re.compile(r"(?:[0-9.,]+\s?(?:[A-Za-z]{2,}\.?|'{1,2})(?:\s*,\s*|\s*\band\b\s*|\s*)){2,4}")
_EACH = re.compile(r"([0-9.,]*[0-9])\s?([A-Za-z]{2,}|'{1,2})")
_MINUTES = re.compile(r"(?<=[0-9])\s?('{1,2})(?![A-Za-z'])")
_BASED = re.compile(
    r"\(?\s?([0-9][0-9A-Za-z]*)\s?\)?\s?(?:_\s?\{?\s?\(?([0-9]{1,2}|[a-z]{2,8})\)?\s?\}?|base ([0-9]{1,2}|[a-z]{2,8}))"
)
_BASE_NAMES = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_BASES: dict[str, str] = {name: str(base) for base, name in enumerate(_BASE_NAMES, 2)} | {"sixteen": "16"}
_CLOCK = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))?(?::([0-5][0-9]))?\s*(?:([ap])\s?\.?\s?m\b\.?)?", re.I)
_POWER_OF_TEN = re.compile(
    r"(?:(?P<head>.+?)\s*(?:\\times|\\cdot|\*)\s*)?(?P<sign>-?)10\s?\^\{(?P<power>[+-]?[0-9]{1,3})\}"
)


def _units() -> dict[str, tuple[Dimension, Fraction]]:
    found: dict[str, tuple[Dimension, Fraction]] = {}
    for line in _TABLE.strip().splitlines():
        kind, _, entries = line.partition(" ")
        for entry in entries.split(";"):
            factor, *names = entry.split()
            # A volume is a length to the power of three, so litres convert to cubic units.
            dimension = (("length", 3),) if kind == "volume" else ((kind, 1),)
            found.update(dict.fromkeys(names, (dimension, Fraction(factor))))
    return found


_UNITS = _units()
_SPEEDS: dict[str, str] = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "kmph": "km/hour"}
_FEET: dict[str, str] = {"'": "feet", "''": "inches"}


@dataclass(frozen=True)
class Unit:
    """A unit as it is written and, where it is known, its dimension and its size in base units of that dimension."""

    word: str
    dimension: Dimension | None = None
    factor: Fraction = Fraction(1)


@dataclass(frozen=True)
class Quantity:
    """The parts of one answer."""

    name: str
    """The `x` in `x = 5`, or empty."""
    value: str
    """The part that is left to compare as mathematics."""
    number: Fraction | None
    """`value` as a number, where it is rational."""
    unit: Unit | None


@functools.lru_cache(maxsize=1024)
def read(text: str) -> Quantity:
    """Return the parts of one answer (not a list) in the notation of `mass.verify.notation`."""
    name = _NAME.match(text)
    value = text[name.end() :] if name else text
    found = _read(name[1] if name else "", value)
    if found.number is None and (asked := _ASKED.match(text)):
        of_number = _read(asked[1].replace(" ", ""), text[asked.end() :])
        return found if of_number.number is None else of_number
    return found


def _read(name: str, value: str) -> Quantity:
    value = _ASIDE.sub("", _LEAD.sub("", value, count=1) if _LEAD.match(value) else value)
    value, unit = _measured(_with_angles(value))
    return Quantity(name, value, rational(value), unit)


def rational(text: str) -> Fraction | None:
    r"""Return the rational number that `text` writes: what `mass.verify.exact.number` reads, and `1.5 \times
    10^{3}`."""
    if (value := number(text)) is not None:
        return value
    match = _POWER_OF_TEN.fullmatch(text)
    head = number(match["head"] or "1") if match else None
    if match is None or head is None:
        return None
    value = head * Fraction(10) ** int(match["power"])
    return -value if match["sign"] else value


@functools.lru_cache(maxsize=1024)
def clock(text: str) -> tuple[int, int, int, str] | None:
    """Return (hour, minute, second, 'a', 'p' or '') for a time of day such as `7:05 p.m.`; None for anything else."""
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[4]) or int(match[1]) > 24:
        return None
    return int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or "").lower()


def same_time(one: tuple[int, int, int, str], other: tuple[int, int, int, str]) -> bool:
    """Return True for the same time of day. Where only one of them says a.m. or p.m., the other is taken to mean the
    same."""
    if (one[3] and other[3]) or max(one[0], other[0]) > 12:
        return _seconds(one, other[3]) == _seconds(other, one[3])
    return one[:3] == other[:3]


def _seconds(time: tuple[int, int, int, str], other_half: str) -> int:
    hour, minute, second, half = time
    half = half or (other_half if hour <= 12 else "")
    hour = hour % 12 + 12 * (half == "p") if half and hour <= 12 else hour
    return 3600 * (hour % 24) + 60 * minute + second


@functools.lru_cache(maxsize=1024)
def based(text: str) -> tuple[str, str] | None:
    """Return (digits, base) for a numeral such as `1011_2` or `(4A3)_{12}`; None for anything else."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    base = match[2] or match[3]
    base = _BASES.get(base, base)
    return (match[1].lower(), base) if base.isdigit() else None


def _with_angles(value: str) -> str:
    r"""Write the units of `30^\circ 15'` and `25^\circ C` as words."""
    value = _DEGREES.sub(lambda m: {"C": " celsius ", "F": " fahrenheit "}.get(m[1] or "", " degrees "), value).strip()
    if "'" not in value:
        return value
    # After degrees or alone, ' and '' are minutes and seconds of arc; else feet and inches.
    if "degrees" in value or re.fullmatch(r"[0-9.]+\s?'{1,2}", value):
        return _MINUTES.sub(lambda m: " arcminutes " if len(m[1]) == 1 else " arcseconds ", value).strip()
    return _MINUTES.sub(lambda m: " feet " if len(m[1]) == 1 else " inches ", value).strip()


def _measured(value: str) -> tuple[str, Unit | None]:
    """Return (the value without its unit, the unit or None)."""
    if _COMPOUND.fullmatch(value) and (whole := _compound(value)):
        return whole
    if (letter := _UNIT_LETTER.search(value)) and number(value[: letter.start()]) is not None:
        value = f"{value[: letter.start()]} {_LETTERS[letter[1]]}{value[letter.end() :]}"
    value = _SQUARE.sub(r"\1^{\2}", _ORDINAL.sub("", value))
    match = _UNIT.search(value)
    if match is None:
        return value, None
    before = value[: match.start()].strip()
    if match["percent"]:
        return before, Unit("%")
    scaled, words = _scaled(before, match["unit"].casefold().strip())
    spaced = match["unit"] != value[match.start() :]
    if not words or words in ("percent", "percentage", "pct"):
        return scaled, Unit("%") if words else None
    unit = _unit(words)
    is_unit = not _makes_another_number(words) and (spaced or unit.dimension or scaled != before)
    return (scaled, unit) if is_unit and not _spelled(scaled) else (value, None)


def _makes_another_number(words: str) -> bool:
    said = words.replace("/", " ").split()
    return bool(_NO_UNIT.intersection(said)) or said[0] in ("squared", "cubed")


def _spelled(value: str) -> bool:
    return bool(re.search(r"(?<![\\A-Za-z{])[A-Za-z]{2,}", value))


def _scaled(value: str, words: str) -> tuple[str, str]:
    """Apply words of number: `6` and `million dollars` become 6000000 and `dollars`."""
    plus = next((fraction for said, fraction in _PARTS.items() if words.startswith(said)), None)
    if plus is not None:
        words = words.removeprefix(next(said for said in _PARTS if words.startswith(said))).strip()
        value = rf"({value}+{plus})" if (whole := number(value)) is None else _written(whole + plus)
    first, _, rest = words.partition(" ")
    while first in _SCALES:
        known = number(value)
        value = rf"({value})\cdot {_SCALES[first]}" if known is None else _written(known * _SCALES[first])
        words = rest.strip()
        first, _, rest = words.partition(" ")
    return value, words


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _compound(value: str) -> tuple[str, Unit] | None:
    """Return `5 hours and 30 minutes` in the base unit; None where the units are unknown or of several dimensions."""
    total, dimensions = Fraction(0), set[Dimension]()
    for digits, word in _EACH.findall(value):
        amount, unit = number(digits), _unit(_FEET.get(word) or str(word).casefold())
        if amount is None or unit.dimension is None:
            return None
        total += amount * unit.factor
        dimensions.add(unit.dimension)
    if len(dimensions) != 1:
        return None
    dimension = dimensions.pop()
    return _written(total), Unit("compound", dimension)


def _unit(words: str) -> Unit:
    """Return the unit that words such as `square miles per hour` name, with dimension and factor; an unknown word
    has neither."""
    words = re.sub(r"\bper\b", "/", words.strip(" ."))
    words = _SPEEDS.get(words, words)
    exponents: dict[str, int] = {}
    factor = Fraction(1)
    for place, part in enumerate(words.split("/")):
        power, known = _power(part.strip())
        if known is None:
            if place == 0 and not part.strip():
                continue
            return Unit(words)
        sign = -power if place else power
        factor *= known[1] ** sign
        for name, exponent in known[0]:
            exponents[name] = exponents.get(name, 0) + sign * exponent
    return Unit(words, tuple(sorted((name, e) for name, e in exponents.items() if e)), factor)


def _power(word: str) -> tuple[int, tuple[Dimension, Fraction] | None]:
    """Return the power that `square`, `cubic` or `^2` gives to a unit, and the unit; None where the unit is not
    known."""
    match = re.fullmatch(
        r"(?:(square|sq)|(cubic|cu))?\.?\s*([a-z]+)\.?\s*(?:\^\s?\{?([1-9])\}?|(squared)|(cubed))?", word
    )
    if match is None:
        return 1, None
    square, cubic, name, exponent, squared, cubed = match.groups()
    power = int(exponent) if exponent else 2 if square or squared else 3 if cubic or cubed else 1
    return power, _UNITS.get(name) or _UNITS.get(name.removesuffix("s")) or None
