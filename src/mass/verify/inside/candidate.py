"""Run the program under test in its own process, and answer the judge's requests with plain data.

The judge sends the program, then one call at a time. Neither the tests nor the expected values are ever in this
process. The program may rewrite everything here: all that it can change is the data it answers with.
"""

from __future__ import annotations

import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from . import wire

MODULE = "solution"


class Objects:
    """Numbered objects of the program that are not data."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    def refer(self, value: Any) -> dict[str, Any]:
        """Keep `value` and return a reference to it."""
        number = next(self._numbers)
        self._held[number] = value
        return {"ref": [number, type(value).__name__[:80]]}

    def resolve(self, number: Any) -> Any:
        """Return the object with this number."""
        return self._held[number]


def serve(requests: int, replies: int) -> None:
    """Answer messages from the pipe `requests` on the pipe `replies` until the judge closes its end."""
    objects = Objects()
    module = types.ModuleType(MODULE)
    # Dataclasses and pickle look up the module of a class by its name.
    sys.modules[MODULE] = module
    while True:
        try:
            request = wire.receive(requests)
        except wire.Ended:
            return
        try:
            reply = _answer(request, module, objects)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: the program raised them
            reply = {"error": [type(error).__name__[:80], _text(error)]}
        try:
            wire.send(replies, reply)
        except (ValueError, RecursionError, MemoryError, wire.Unsendable) as error:
            # A result too large or too deep to send is the program's error, not the end of the test.
            wire.send(replies, {"error": [type(error).__name__, _text(error)]})


def _text(error: BaseException) -> str:
    try:
        # The exception may be of the program's own class, whose __str__ can fail.
        return str(error)[:300].encode("utf-8", "replace").decode()
    except BaseException:
        return ""


def _answer(request: dict[str, Any], module: types.ModuleType, objects: Objects) -> dict[str, Any]:
    if "programs" in request:
        _load(request["programs"], module)
        return {"names": [name for name in request["names"] if name in module.__dict__]}
    arguments = [wire.decode(item, objects.resolve) for item in request["arguments"]]
    # Shallow copies are enough to notice most changes in place and cost little.
    before = [_copy(argument) for argument in arguments]
    if request["do"] == "global":
        value = module.__dict__[arguments[0]]
    elif request["do"] == "call":
        function, *positional = arguments[:-1]
        value = function(*positional, **arguments[-1])
    else:
        value = _OPERATIONS[request["do"]](*arguments)
    changed = {
        str(i): wire.encode(now, objects.refer)
        for i, (then, now) in enumerate(zip(before, arguments, strict=True))
        if isinstance(now, (list, dict, set)) and _differ(then, now)
    }
    return {"value": wire.encode(value, objects.refer), "changed": changed}


def _load(programs: list[str], module: types.ModuleType) -> None:
    """Run the first of `programs` that compiles. Raises its exception, and SyntaxError where none compiles."""
    failure: BaseException = SyntaxError("there is no program")
    for source in programs:
        try:
            code = compile(source, f"<{MODULE}>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            failure = error if isinstance(error, SyntaxError) else SyntaxError(_text(error))
            continue
        exec(code, module.__dict__)
        return
    raise failure


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, (list, dict, set)) else None


def _differ(then: Any, now: Any) -> bool:
    try:
        return bool(then != now)
    except Exception:
        return True


def _set_attribute(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


def _next(iterator: Iterator[Any]) -> list[Any]:
    """Return a list with the next item, or an empty list at the end."""
    return list(itertools.islice(iterator, 1))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "attribute": getattr,
    "set attribute": _set_attribute,
    "item": operator.getitem,
    "length": len,
    "truth": bool,
    "iterator": iter,
    "next": _next,
}
