"""Judge a program by running the task's tests against it in a sandbox.

`task.answer` is a Python program that raises an exception where the answer is wrong. It has one of two forms:

- HumanEval (arXiv 2107.03374): it defines `check(candidate)` and its last line is `check(entry_point)`. The problem is
  the beginning of the program; the answer continues it or writes the function anew.
- MBPP (arXiv 2108.07732), and a user's own: assertions that call what the answer defines.

True: all tests passed, and the judge's nonce proves that they ran to their end. False: a test failed, the program does
not run, or it exceeded its limits. No verdict: the tests themselves do not run, or the sandbox could not be started.
What the sandbox covers and what it does not is in `mass.verify.sandbox`.
"""

from __future__ import annotations

import re

from mass.types import Task, Verdict
from mass.verify import programs, sandbox

_ENTRY = re.compile(r"^check\(([A-Za-z_]\w{0,200})\)\s*\Z", re.M)


def check(task: Task, text: str, limits: sandbox.Limits | None = None) -> Verdict:
    """Judge the program in `text` by the tests in `task.answer`.

    Raises:
        ConfigError: This machine has no safe way to run it.
    """
    if len(text) > programs.MAX_PROGRAM_CHARS:
        return Verdict(False, f"the program has {len(text)} characters, more than {programs.MAX_PROGRAM_CHARS}")
    prompt, entry = _beginning(task)
    readings = programs.continued(text, prompt, entry) if entry else programs.whole(text, task.answer)
    # A model can write lone surrogates, which JSON cannot carry to the sandbox.
    readings = [reading.encode("utf-8", "replace").decode() for reading in readings]
    report = sandbox.run(sandbox.Request(tuple(readings), task.answer, prompt, entry), limits)
    return Verdict(report.passed, report.reason, readings[0].removeprefix(prompt).strip("\n") or None)


def _beginning(task: Task) -> tuple[str, str]:
    """Return (the beginning of the program, the name of its function) in the HumanEval form; two empty texts
    otherwise."""
    called = _ENTRY.search(task.answer)
    if called is None:
        return "", ""
    # The beginning may be the whole problem, or stand in a fenced block of it.
    parts = [task.problem, *(f"{block}\n" for block in programs.blocks(task.problem))]
    prompts = [part for part in parts if programs.defines(part, [called[1]])]
    return (prompts[-1], called[1]) if prompts else ("", "")
