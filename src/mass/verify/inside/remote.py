"""Represent in the judge the objects that stay with the program: each use is a request, each answer plain data.

A `Remote` never decides whether a test passes: it is equal only to itself, has no order and no arithmetic. An
attribute, an item, its length or its truth comes as data, or as another `Remote`.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

from . import wire


class Failed(Exception):
    """The program raised an exception of a type that is not one of Python's own; the message says which."""


class Program:
    """The judge's end of the two pipes."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests = requests
        self._replies = replies

    def load(self, programs: list[str], names: list[str]) -> list[str]:
        """Run the program and return those of `names` that it defines. Raises the program's exception."""
        reply = self._ask({"programs": programs, "names": names})
        found = reply.get("names")
        if not isinstance(found, list):
            raise wire.Malformed("no list of names")
        return [name for name in names if name in found]

    def do(self, operation: str, *arguments: Any) -> Any:
        """Return the result of an operation on the program's objects.

        Changes that the program made to lists, dicts and sets among `arguments` are made here too: a test may look at
        an argument that was sorted in place.
        """
        reply = self._ask({"do": operation, "arguments": [wire.encode(item, _refer) for item in arguments]})
        for place, data in dict(reply.get("changed") or {}).items():
            _overwrite(arguments[int(place)], wire.decode(data, self._resolve))
        return wire.decode(reply.get("value"), self._resolve)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            wire.send(self._requests, request)
        except BrokenPipeError:
            raise wire.Ended from None
        reply = wire.receive(self._replies)
        if "error" in reply:
            raise _exception(reply["error"])
        return reply

    def _resolve(self, content: Any) -> Remote:
        number, kind = content
        if not isinstance(number, int) or not isinstance(kind, str):
            raise wire.Malformed("a reference without a number")
        return Remote(self, number, kind)


class Remote:
    """An object of the program that is not data: a function, a class, an instance, an iterator, a module."""

    __slots__ = ("_kind", "_number", "_program")

    def __init__(self, program: Program, number: int, kind: str) -> None:
        for name, value in (("_program", program), ("_number", number), ("_kind", kind)):
            # The class's own __setattr__ would send the attribute to the program.
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._program.do("call", self, *arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._program.do("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.do("set attribute", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._program.do("item", self, key)

    def __len__(self) -> int:
        return int(self._program.do("length", self))

    def __bool__(self) -> bool:
        # The reply can be any data, and an object must not count as true because of that.
        return self._program.do("truth", self) is True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._program.do("iterator", self)
        # One item per request: the program's iterator may be endless.
        while found := self._program.do("next", iterator):
            yield from found


def _refer(value: Any) -> dict[str, Any]:
    if type(value) is Remote:
        return {"ref": value._number}  # pyright: ignore[reportPrivateUsage]
    raise wire.Unsendable(f"the tests hand the program a {type(value).__name__}, which is no data")


def _overwrite(mine: Any, theirs: Any) -> None:
    if type(mine) is not type(theirs):
        raise wire.Malformed("a changed argument of another type")
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(theirs)


def _exception(content: Any) -> Exception:
    """Return Python's own exception of that name, else `Failed`.

    Only subclasses of Exception: the program must not be able to end the judge. AssertionError is left out, since it
    would look like a failed test.
    """
    name, text = (str(part) for part in content)
    kind = getattr(builtins, name, None)
    # Most subclasses of UnicodeError cannot be made from one text.
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (AssertionError, UnicodeError)):
        return kind(text)
    return Failed(f"{name}: {text}" if text else name)
