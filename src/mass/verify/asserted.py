"""Run a program together with the `assert` lines that were written with it: (program, tests) -> Verdict.

Nobody has checked these tests: the model that wrote the program wrote them too. So they run in the program's own
process, with no more rights than the program, and not in the judge's, as the tests of a task do (`mass.verify.code`).
The verdict says whether program and tests agree, not whether either is right. None: this machine could not say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mass.types import Verdict
from mass.verify import programs, sandbox

_LINE = re.compile(r"^[ \t>]*(?:\d{1,2}[.)][ \t]+|[-*+][ \t]+)?`?(assert\b[ \t(].*?)`?[ \t]*$", re.M)
_CALLED = re.compile(r"[A-Za-z_]\w*(?=[ \t]*\()")
_DONE = "passed_its_own_tests"
MAX_TESTS = 16
MAX_TEST_CHARS = 2000


def tests_in(*texts: str) -> tuple[str, ...]:
    """Return the `assert` lines of the first text that has some, each once, as many as `MAX_TESTS`."""
    for text in texts:
        found = [line for line in _LINE.findall(text) if len(line) <= MAX_TEST_CHARS]
        if found:
            return tuple(dict.fromkeys(found))[:MAX_TESTS]
    return ()


def check(solution: str, tests: Sequence[str]) -> Verdict:
    """Run the program in `solution` and, after it, all tests in the same process.

    A test that calls nothing of the program proves nothing, so at least one has to call what the program defines.

    Raises:
        ConfigError: This machine has no safe way to run it.
    """
    if not tests:
        return Verdict(None, "there is no test")
    readings = [text.encode("utf-8", "replace").decode() for text in programs.whole(solution, "\n".join(tests))]
    if len(solution) > programs.MAX_PROGRAM_CHARS:
        return Verdict(False, f"the program has {len(solution)} characters, more than {programs.MAX_PROGRAM_CHARS}")
    called = {name for test in tests for name in _CALLED.findall(test)}
    if not any(programs.defines(reading, called) for reading in readings):
        return Verdict(False, "no test calls what the program defines")
    ending = "\n".join(("", "", *tests, f"def {_DONE}():", "    return True", ""))
    ending = ending.encode("utf-8", "replace").decode()
    request = sandbox.Request(tuple(reading + ending for reading in readings), f"assert {_DONE}() is True")
    report = sandbox.run(request)
    return Verdict(report.passed, report.reason)
