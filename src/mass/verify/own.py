"""Find a user's own verifier by its name.

- `module:function`, or `path/to/file.py:function`: called in this process with the task and the text. It returns a
  Verdict, or True, False or None (no verdict). It has no time limit: code that may hang belongs in a command.
- `command:PROGRAM ARGUMENTS`: started once for each answer, in a session of its own, and killed after `TIMEOUT_S`. It
  reads one JSON object (`problem`, `solution`, `answer`, `subject`, `level`, `id`, `text`) on standard input and writes
  one JSON value on standard output: true, false, null, or `{"correct": …, "reason": …, "extracted": …}`.

An exception, or any other answer, is no verdict, and the reason is recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mass.errors import ConfigError
from mass.types import Task, Verdict

TIMEOUT_S = 60.0
COMMAND = "command:"


@functools.lru_cache(maxsize=32)
def find(name: str) -> Callable[[Task, str], Verdict] | None:
    """Return the verifier of that name; None where the name has neither form.

    Raises:
        ConfigError: The module, the function or the program cannot be found.
    """
    if name.startswith(COMMAND):
        return _command(name.removeprefix(COMMAND))
    module, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        return None
    found = getattr(_module(module, name), function, None)
    if not callable(found):
        raise ConfigError(f"the verifier {name!r}: {module} has no function {function!r}; expected module:function")
    return lambda task, text: verdict(found(task, text))


def verdict(value: object) -> Verdict:
    """Return the value that a verifier returned, as a Verdict."""
    if isinstance(value, Verdict):
        return value
    if value is None or isinstance(value, bool):
        return Verdict(value)
    if isinstance(value, dict) and "correct" in value:
        correct, reason, extracted = (value.get(key) for key in ("correct", "reason", "extracted"))
        if correct is None or isinstance(correct, bool):
            return Verdict(correct, str(reason or "")[:400], None if extracted is None else str(extracted))
    said = " ".join(repr(value)[:80].split())
    return Verdict(None, f"the verifier answered {said}; expected true, false or null, or an object with 'correct'")


def _module(module: str, name: str) -> Any:
    try:
        if module.endswith(".py"):
            return _from_file(Path(module))
        # A script that is run as a command does not have the current folder on its path, where users keep their module.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return importlib.import_module(module)
    except Exception as error:  # whatever the user's own module raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"the verifier {name!r} cannot be imported ({reason}); expected module:function") from error


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _command(line: str) -> Callable[[Task, str], Verdict]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"the verifier {COMMAND}{line!r} has an open quote ({error}); correct it") from None
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"the verifier {COMMAND}{line!r} is not a program; expected command:PROGRAM ARGUMENTS")
    return functools.partial(_run, words)


def _run(words: list[str], task: Task, text: str) -> Verdict:
    data = json.dumps({**dataclasses.asdict(task), "text": text}).encode()
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, errors = process.communicate(data, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Verdict(None, f"{words[0]} timed out after {TIMEOUT_S:g} s")
    finally:
        # The whole session: a judge may have started programs of its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    if process.returncode:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        return Verdict(None, " ".join([f"{words[0]} exited with {process.returncode}", *last])[:400])
    try:
        return verdict(json.loads(out))
    except (ValueError, RecursionError):
        said = " ".join(out.decode("utf-8", "replace")[:80].split())
        return Verdict(None, f"{words[0]} answered {said!r}, which is not JSON")
