"""A JSON value -> a checked value: one small function for each kind of field, each with an error that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from mass.errors import nearest
from mass.serving.errors import RequestError

T = TypeVar("T")
SHOWN = 60
"""Characters of a value that an error repeats."""
KNOWN_SHOWN = 12
"""Number of known names up to which an error lists all of them."""


def wrong(param: str, value: object, expected: str, code: str | None = None) -> RequestError:
    """Return the error for a value that cannot be used."""
    return RequestError(f"{param} is {shown(value)}; expected {expected}", param=param, code=code)


def shown(value: object) -> str:
    """Return a value as an error repeats it: its kind if it is a list or an object, else its first characters."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**SHOWN else "a huge number"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def text(value: object, param: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise wrong(param, value, "a string")
    return value


def boolean(value: object, param: str) -> bool:
    """Return a boolean; numbers are none."""
    if not isinstance(value, bool):
        raise wrong(param, value, "true or false")
    return value


def integer(value: object, param: str, least: int, most: int) -> int:
    """Return an integer within bounds; booleans and numbers with a decimal point are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(param, value, f"an integer from {least} to {most}")
    return value


def number(value: object, param: str, least: float, most: float, *, above: bool = False) -> float:
    """Return a finite number within bounds; `above` excludes the lower one."""
    expected = f"a number {'above' if above else 'from'} {least:g} {'and up ' if above else ''}to {most:g}"
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
        raise wrong(param, value, expected)
    if not math.isfinite(value) or not least <= value <= most or (above and value == least):
        raise wrong(param, value, expected)
    return float(value)


def choice(value: object, param: str, known: Collection[str]) -> str:
    """Return one of the known words."""
    if not isinstance(value, str) or value not in known:
        hint = nearest(value, known) if isinstance(value, str) and len(value) < SHOWN else ""
        raise wrong(param, value, f"one of {', '.join(known)}{hint if 'did you mean' in hint else ''}")
    return value


def items(value: object, param: str, most: int, read: Callable[[object, str], T]) -> tuple[T, ...]:
    """Return the items of a list, each read by `read`."""
    if not isinstance(value, list):
        raise wrong(param, value, "a list")
    found = cast("list[object]", value)
    if len(found) > most:
        raise RequestError(f"{param} has {len(found)} items; expected at most {most}", param=param)
    return tuple(read(item, f"{param}[{i}]") for i, item in enumerate(found))


def mapping(value: object, param: str) -> dict[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise wrong(param, value, "an object")
    return cast("dict[str, Any]", value)


def require_known(values: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
    """Refuse a key that is not known, and name the nearest."""
    for name in values:
        if name not in known:
            key = shown(name)[1:-1]
            hint = nearest(name[:SHOWN], known)
            if "did you mean" not in hint and len(known) > KNOWN_SHOWN:
                hint = ""
            raise RequestError(
                f"{prefix}{key} is no field of this request{hint}", param=f"{prefix}{key}", code="unknown_parameter"
            )
