"""Write a value of a row (from JSON, Arrow or Python) as text, or describe it for an error message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from numbers import Rational, Real
from typing import Any, TypeGuard

from mass.errors import DataError

Row = dict[str, Any]
"""Field name -> value. A value that could not be read is the exception that says why."""


def text_of(values: Mapping[str, Any], name: str) -> str:
    """Return the field `name` as text.

    Numbers are written out (145.0 as '145', a float32 of 0.1 as '0.1', a decimal with its own places); null and a
    missing field are empty.

    Raises:
        DataError: The value is anything else.
    """
    value = values.get(name)
    if isinstance(value, str):
        return _whole(name, value)
    number = None if isinstance(value, bool) else _digits(value)
    if value is None or number is not None:
        return number or ""
    hint = "" if _is_json(value) else "; store it as text, as an answer would have it"
    raise DataError(f"the field {name!r} is {kind(value)}; expected text or a number{hint}")


def _whole(name: str, value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"the field {name!r} holds half a surrogate pair, which is not text; correct its escapes"
        ) from None
    return value


def _digits(value: object) -> str | None:
    """Return the digits of a finite number, which may be a numpy scalar; None for anything else."""
    if isinstance(value, Rational):
        return str(value)
    if not isinstance(value, Real | Decimal):
        return None
    number = Decimal(str(value))  # the shortest digits that read back as the same number, in its own precision
    if not number.is_finite():
        return None
    is_whole = number == number.to_integral_value() and not isinstance(value, Decimal)
    return format(number.to_integral_value() if is_whole else number, "f")


def names(row: Row) -> str:
    """Return the names of a row's first fields, for error messages."""
    found = [repr(name[:40]) for name in row]
    return ", ".join(found[:12]) + (", …" if len(found) > 12 else "") if found else "of an empty object"


def is_list(value: object) -> TypeGuard[list[object]]:
    """Return True for a list."""
    return isinstance(value, list)


def is_object(value: object) -> TypeGuard[Row]:
    """Return True for a dict."""
    return isinstance(value, dict)


def kind(value: object) -> str:
    """Describe a value for an error message: in JSON's terms, or by the name of its type."""
    if isinstance(value, str):
        return "text" if value.strip() else "empty"
    if is_list(value):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, Exception):
        return f"unreadable ({' '.join(str(value).split())[:120]})"
    if _is_json(value):
        return "null" if value is None else json.dumps(value)
    return f"of type {type(value).__name__} ({str(value)[:40]})"


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | dict)
