"""Run the tests against a program in another process and report whether all passed, with the nonce as proof.

The tests run here and reach the program only through `remote`; its answers are data, and they are compared here, with
Python's own comparisons. Names that the tests use and that are not defined here are the program's.
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
    """Return the report on one program: `nonce`, `passed` (None: the tests themselves cannot be run) and `reason`.

    Args:
        request: `programs` (the first that compiles is run), `prompt` (the beginning of the program, or empty: the
            tests use its helper functions), `entry` (the function that replaces the prompt's), `tests`, and `nonce`.
        requests: File descriptor to write requests to the program.
        replies: File descriptor to read its replies.
        candidate: Process id of the program's process.
    """
    try:
        passed, reason = _run(request, Program(requests, replies))
    except wire.Ended:
        passed, reason = False, f"the program ended before its tests did ({_ending(candidate)})"
    return {"nonce": request["nonce"], "passed": passed, "reason": reason[:400]}


def _run(request: dict[str, Any], program: Program) -> tuple[bool | None, str]:
    # Tests that draw their inputs draw the same ones for every program.
    random.seed(0)
    try:
        tests = compile(request["tests"], TESTS, "exec", dont_inherit=True)
        namespace = _given(request["prompt"])
    except Exception as error:
        return None, f"the task's own code does not run: {_name(error)}"
    # So that a traceback can quote the line of a failed test.
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
    """Run the beginning of the program here and return the names it defines, out of the program's reach."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    if prompt:
        exec(compile(prompt, PROMPT, "exec", dont_inherit=True), namespace)
    return namespace


def _bind(namespace: dict[str, Any], program: Program, programs: list[str], names: set[str], entry: str) -> None:
    """Run the program and put into `namespace` the names that the tests use of it."""
    # The prompt's version is only a beginning; the program's takes its place.
    namespace.pop(entry, None)
    missing = {name for name in names | {entry} if name and name not in namespace and not hasattr(builtins, name)}
    # Python's modules are imported here: a `math` from the program could have been changed to pass the tests.
    modules = missing & sys.stdlib_module_names - {entry}
    found = program.load(programs, sorted(missing - modules))
    for name in sorted(modules):
        namespace[name] = importlib.import_module(name)
    for name in found:
        namespace[name] = program.do("global", name)
    if entry and entry not in namespace:
        raise NameError(f"name {entry!r} is not defined")


def _names(code: types.CodeType) -> set[str]:
    """Return all names in the code, including attributes."""
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
    """Return the innermost line of the tests that led to `error`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TESTS]
    return f" at test line {frames[-1].lineno}: {(frames[-1].line or '').strip()[:200]}" if frames else ""


def _ending(candidate: int) -> str:
    _, status = os.waitpid(candidate, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "killed: its processor time or memory was used up"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


__all__ = ["Remote", "judge"]
