"""Tests, a program in another process -> whether every test passed, with the nonce that proves they ran to the end.

The tests run here and reach the program only through `remote`; what it answers is data, compared here, with Python's
own comparisons. Names that the tests use and nobody here defines are the program's.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
import os
import random
import signal
import sys
import traceback
import types
from typing import Any

from . import wire
from .remote import Program, Remote

TESTS, PROMPT = "<tests>", "<prompt>"


def judge(request: dict[str, Any], requests: int, replies: int, candidate: int) -> dict[str, Any]:
    """The report on one program: `nonce`, `passed` (None: the tests themselves cannot be run) and `reason`.

    Args:
        request: `programs` (the first that compiles is run), `prompt` (its beginning, where it is one: gives the tests
            their helpers), `entry` (the function that takes the place of the prompt's), `tests`, and `nonce`.
        candidate: process id of the program's process.
    """
    try:
        passed, reason = _run(request, Program(requests, replies))
    except wire.Ended:
        passed, reason = False, f"the program ended before its tests did ({_ending(candidate)})"
    return {"nonce": request["nonce"], "passed": passed, "reason": reason[:400]}


def _run(request: dict[str, Any], program: Program) -> tuple[bool | None, str]:
    random.seed(0)
    try:
        tests = compile(request["tests"], TESTS, "exec", dont_inherit=True)
        namespace = _given(request["prompt"])
    except Exception as error:
        return None, f"the task's own code does not run: {_name(error)}"
    # For the line of a failed test.
    linecache.cache[TESTS] = (len(request["tests"]), None, request["tests"].splitlines(keepends=True), TESTS)
    try:
        _bind(namespace, program, request["programs"], _names(tests), request["entry"])
    except wire.Ended:
        raise
    except BaseException as error:
        return False, f"the program does not run: {_name(error)}"
    try:
        exec(tests, namespace)
    except wire.Ended:
        raise
    except wire.Unsendable as error:
        return None, str(error)
    except BaseException as error:
        return False, f"{_name(error)}{_where(error)}"
    return True, "all tests passed"


def _given(prompt: str) -> dict[str, Any]:
    """The names that the beginning of the program defines, defined here, out of the program's reach."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    if prompt:
        exec(compile(prompt, PROMPT, "exec", dont_inherit=True), namespace)
    return namespace


def _bind(namespace: dict[str, Any], program: Program, programs: list[str], names: set[str], entry: str) -> None:
    """Run the program and give `namespace` what the tests use of it; of Python's modules, Python's."""
    namespace.pop(entry, None)
    missing = {name for name in names | {entry} if name and name not in namespace and not hasattr(builtins, name)}
    modules = missing & sys.stdlib_module_names - {entry}
    found = program.load(programs, sorted(missing - modules))
    for name in sorted(modules):
        namespace[name] = importlib.import_module(name)
    for name in found:
        namespace[name] = program.do("global", name)
    if entry and entry not in namespace:
        raise NameError(f"name {entry!r} is not defined")


def _names(code: types.CodeType) -> set[str]:
    """All names in the code, attributes too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _name(error: BaseException) -> str:
    text = str(error)
    name = type(error).__name__
    return text if name == "Failed" else f"{name}: {text}" if text else name


def _where(error: BaseException) -> str:
    """The innermost line of the tests on the way to `error`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TESTS]
    return f" at test line {frames[-1].lineno}: {(frames[-1].line or '').strip()[:200]}" if frames else ""


def _ending(candidate: int) -> str:
    _, status = os.waitpid(candidate, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "killed: its processor time or memory was used up"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


__all__ = ["Remote", "judge"]
