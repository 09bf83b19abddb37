"""Encode values as messages between the judge and the program: plain data, and nothing that runs when it is read.

A message is its length in 4 bytes, then so many bytes of JSON. A value that JSON does not have is an object with one
key that names its type: `{"tuple": [1, 2]}`. An object that is not data stays in its process, and a reference to it is
sent.
"""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
import json
import os
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 32 << 20
# Larger integers are sent in hexadecimal: Python refuses to convert very long decimal numbers.
_SMALL = 1 << 63


class Unsendable(TypeError):
    """A value is not data, where only data can be sent."""


class Malformed(Exception):
    """The bytes received are not one of our messages."""


class Ended(Exception):
    """The other process has closed its end."""


def send(fd: int, message: dict[str, Any]) -> None:
    """Write one message to the pipe `fd`. Raises Unsendable above `MAX_FRAME_BYTES`."""
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise Unsendable(f"a value of {len(data)} bytes, more than {MAX_FRAME_BYTES}")
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> dict[str, Any]:
    """Return the next message. Raises Ended at the end, Malformed for anything that is not a message."""
    size = int.from_bytes(_exactly(fd, 4), "big")
    # Checked before reading: the program chooses this number.
    if size > MAX_FRAME_BYTES:
        raise Malformed(f"a frame of {size} bytes, more than {MAX_FRAME_BYTES}")
    try:
        message = json.loads(_exactly(fd, size))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"a frame that is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise Malformed("a frame that is not an object")
    return message


def _exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 20))
        if not piece:
            raise Ended
        data += piece
    return bytes(data)


def encode(value: Any, refer: Callable[[Any], dict[str, Any]]) -> Any:
    """Return `value` as JSON; for an instance of a subclass, the data of its base class. `refer` returns the
    reference to an object that is not data, or raises Unsendable."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # The base class's own methods, here and below: a subclass may have replaced them.
        whole = int.__index__(value)
        return whole if -_SMALL < whole < _SMALL else {"int": hex(whole)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in list.__iter__(value)]
    for kind, name, taken_apart in _KINDS:
        if isinstance(value, kind):
            return {name: taken_apart(value, lambda item: encode(item, refer))}
    for name, kind in _TYPES.items():
        if value is kind:
            return {"type": name}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(value.item(), refer)
    return refer(value)


def decode(data: Any, resolve: Callable[[Any], Any]) -> Any:
    """Return the value that `encode` wrote. Raises Malformed for JSON that it never writes."""
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise Malformed("an object with other than one key")
    ((name, content),) = data.items()
    if name == "ref":
        return resolve(content)
    if name not in _BUILDERS:
        raise Malformed(f"a value of type {name[:40]!r}")
    try:
        return _BUILDERS[name](content, lambda item: decode(item, resolve))
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise Malformed(f"{name} cannot be made of this: {error}") from None


Step = Callable[[Any], Any]


def _items(value: Any, step: Step) -> list[Any]:
    return [step(item) for item in value]


def _pairs(value: Any, step: Step) -> list[list[Any]]:
    return [[step(key), step(item)] for key, item in dict.items(value)]


def _dict_of(content: Any, step: Step) -> dict[Any, Any]:
    return {step(key): step(item) for key, item in content}


def _ordered_of(content: Any, step: Step) -> Any:
    return collections.OrderedDict(_dict_of(content, step))


def _counter_of(content: Any, step: Step) -> Any:
    return collections.Counter(_dict_of(content, step))


# Subclasses stand before their bases: a Counter is a dict too.
_KINDS: tuple[tuple[type, str, Callable[[Any, Step], Any]], ...] = (
    (tuple, "tuple", lambda v, step: _items(tuple.__iter__(v), step)),
    (collections.Counter, "Counter", _pairs),
    (collections.OrderedDict, "OrderedDict", _pairs),
    (dict, "dict", _pairs),
    (set, "set", lambda v, step: _items(set.__iter__(v), step)),
    (frozenset, "frozenset", lambda v, step: _items(frozenset.__iter__(v), step)),
    (collections.deque, "deque", _items),
    (bytes, "bytes", lambda v, _step: base64.b64encode(v).decode()),
    (bytearray, "bytearray", lambda v, _step: base64.b64encode(v).decode()),
    (complex, "complex", lambda v, _step: [v.real, v.imag]),
    (range, "range", lambda v, step: [step(v.start), step(v.stop), step(v.step)]),
    (fractions.Fraction, "Fraction", lambda v, step: [step(v.numerator), step(v.denominator)]),
    (decimal.Decimal, "Decimal", lambda v, _step: str(v)),
    (datetime.datetime, "datetime", lambda v, _step: v.isoformat()),
    (datetime.date, "date", lambda v, _step: v.isoformat()),
    (datetime.time, "time", lambda v, _step: v.isoformat()),
    (datetime.timedelta, "timedelta", lambda v, _step: [v.days, v.seconds, v.microseconds]),
)

_TYPES = {
    kind.__name__: kind for kind in (type(None), bool, int, float, str, list, bytes, *(kind for kind, _, _ in _KINDS))
}
"""The types of plain data, which are sent by name: a test may hand the program a type to look for."""

_BUILDERS: dict[str, Callable[[Any, Step], Any]] = {
    "int": lambda content, _step: int(content, 16),
    "type": lambda content, _step: _TYPES[content],
    "tuple": lambda content, step: tuple(_items(content, step)),
    "Counter": _counter_of,
    "OrderedDict": _ordered_of,
    "dict": _dict_of,
    "set": lambda content, step: set(_items(content, step)),
    "frozenset": lambda content, step: frozenset(_items(content, step)),
    "deque": lambda content, step: collections.deque(_items(content, step)),
    "bytes": lambda content, _step: base64.b64decode(content),
    "bytearray": lambda content, _step: bytearray(base64.b64decode(content)),
    "complex": lambda content, _step: complex(*content),
    "range": lambda content, step: range(*_items(content, step)),
    "Fraction": lambda content, step: fractions.Fraction(*_items(content, step)),
    "Decimal": lambda content, _step: decimal.Decimal(content),
    "datetime": lambda content, _step: datetime.datetime.fromisoformat(content),
    "date": lambda content, _step: datetime.date.fromisoformat(content),
    "time": lambda content, _step: datetime.time.fromisoformat(content),
    "timedelta": lambda content, _step: datetime.timedelta(*content),
}
