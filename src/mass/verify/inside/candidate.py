"""The program under test, in a process of its own: requests of the judge -> plain data.

The judge hands over the program, then one call at a time. Neither the tests nor what they expect are ever here. The
program may rewrite everything in this process: all it can change is the data it answers with.
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
    """What the program made that is no data, by number."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}
        self._numbers = itertools.count(1)

    def refer(self, value: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._held[number] = value
        return {"ref": [number, type(value).__name__[:80]]}

    def resolve(self, number: Any) -> Any:
        return self._held[number]


def serve(requests: int, replies: int) -> None:
    """Answer frames of the pipe `requests` on the pipe `replies` until the judge closes its end."""
    objects = Objects()
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    while True:
        try:
            request = wire.receive(requests)
        except wire.Ended:
            return
        try:
            reply = _answer(request, module, objects)
        except BaseException as error:  # also SystemExit and KeyboardInterrupt: the program's, not ours
            reply = {"error": [type(error).__name__[:80], _text(error)]}
        try:
            wire.send(replies, reply)
        except (ValueError, RecursionError, MemoryError, wire.Unsendable) as error:
            wire.send(replies, {"error": [type(error).__name__, _text(error)]})


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300].encode("utf-8", "replace").decode()
    except BaseException:
        return ""


def _answer(request: dict[str, Any], module: types.ModuleType, objects: Objects) -> dict[str, Any]:
    if "programs" in request:
        _load(request["programs"], module)
        return {"names": [name for name in request["names"] if name in module.__dict__]}
    arguments = [wire.decode(item, objects.resolve) for item in request["arguments"]]
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
    """Run the first of `programs` that compiles. Raises what it raises, and SyntaxError where none compiles."""
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
    """[] at the end, else a list of the one item."""
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
