"""The sandbox: its ways of isolation, its limits, its end, and what passes between tests and program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from attacks import FAST, PROMPT, SLOW, TESTS
from traces import left_behind, processes

from mass.errors import ConfigError
from mass.verify import sandbox
from mass.verify.sandbox import WAYS, Limits, Report, Request, run
from waiting import until

LIMITS = Limits(cpu_s=2, wall_s=5)
RIGHT = "def add(a, b):\n    return a + b\n"


def outcome(program: str, tests: str, prompt: str = "", entry: str = "") -> Report:
    return run(Request((program,), tests, prompt, entry), LIMITS)


@pytest.fixture(params=WAYS)
def chosen_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(sandbox.VARIABLE, request.param)
    report = outcome(RIGHT, "assert add(1, 2) == 3")
    if report.passed is None:
        pytest.skip(report.reason)
    assert report == Report(True, "all tests passed")
    return request.param


ESCAPES = (
    "os._exit(0) in the function",
    "a forged report on every descriptor",
    "an integer equal to everything",
    "files elsewhere",
    "TCP and UDP",
    "tests looked for in /proc",
    "another process looked into",
    "killing the parent and everyone",
    "more privileges",
    "a folder that cannot be removed",
    "a shell in the background",
    "a daemon",
)


@pytest.mark.slow
def test_no_way_lets_an_attack_pass(chosen_way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ESCAPES:
        report = run(Request((f"{PROMPT}\n\n{(FAST | SLOW)[name]}",), TESTS, PROMPT, "add"), LIMITS)
        assert (name, report.passed) == (name, False), (chosen_way, report)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", ["a fork bomb", "an endless loop", "sleep"])
def test_a_time_limit_ends_it(name: str) -> None:
    report = run(Request((SLOW[name],), "assert add(1, 2) == 3"), Limits(cpu_s=1, wall_s=1.5))
    assert report.passed is False
    assert "timed out after 1.5 s" in report.reason or "processor time" in report.reason


def test_a_time_limit_works_in_a_thread() -> None:
    reports: list[Report] = []
    program = "import time\ndef f():\n    time.sleep(100)\n"
    thread = threading.Thread(
        target=lambda: reports.append(run(Request((program,), "assert f()"), Limits(cpu_s=1, wall_s=1)))
    )
    thread.start()
    thread.join()
    assert reports == [Report(False, "the program timed out after 1 s")]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_this_process(ending: int, tmp_path: Path) -> None:
    program = (
        "from mass.verify.sandbox import *; print('ready', flush=True);"
        "run(Request(('import time\\nwhile True: time.sleep(1)',), 'pass'), Limits(cpu_s=60, wall_s=60))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()
        until(lambda: len(processes(tmp_path)) >= 3)
        child.send_signal(ending)
    until(lambda: processes(tmp_path) == [])
    if ending == signal.SIGINT:
        assert left_behind(tmp_path) == []


def test_no_way_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.VARIABLE, "docker")
    with pytest.raises(ConfigError, match="is 'docker'; expected one of: namespaces, bwrap, landlock, limits"):
        run(Request(("",), "pass"))
    monkeypatch.delenv(sandbox.VARIABLE)
    monkeypatch.setattr(sandbox, "_run", lambda name, *_: Report(None, f"{name}: refused"))
    sandbox._probe.cache_clear()
    with pytest.raises(ConfigError, match=r"namespaces: refused; bwrap: .*MASS_SANDBOX=limits"):
        run(Request(("",), "pass"))
    sandbox._probe.cache_clear()


def test_no_interpreter_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.VARIABLE, "namespaces")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    report = outcome(RIGHT, "assert add(1, 2) == 3")
    assert report.passed is None
    assert "could be started" in report.reason


PASSES = """
# nested data
def f(x): return {"a": [(1, 2.5), {3}], b"k": None, (1,): -2**70}
f(0) == {"a": [(1, 2.5), {3}], b"k": None, (1,): -2**70}
# types are kept
def f(x): return (1, True, [1.0])
repr(f(0)) == "(1, True, [1.0])"
# named tuples
import collections
P = collections.namedtuple("P", "x y")
def f(x): return P(1, 2)
f(0) == (1, 2)
# fractions, decimals, complex numbers
import decimal, fractions
def f(x): return fractions.Fraction(1, 3), decimal.Decimal("0.1"), 1 + 2j
f(0)[0] * 3 == 1 and f(0)[1] * 10 == 1 and f(0)[2] == 1 + 2j
# dates
import datetime
def f(x): return datetime.date(2020, 1, 2), datetime.timedelta(3)
f(0)[0].year == 2020 and f(0)[1].days == 3
# not a number
def f(x): return float("nan")
f(0) != f(0)
# counters
import collections
def f(x): return collections.Counter(x)
f("aab").most_common(1) == [("a", 2)]
# ranges, bytes, frozen sets
def f(x): return range(3), bytearray(b"a"), frozenset({1})
f(0) == (range(3), b"a", {1})
# generators
def f(x): yield from range(x)
list(f(4)) == [0, 1, 2, 3]
# iterators that never end
import itertools
def f(x): return itertools.count()
[value for value, _ in zip(f(0), range(3))] == [0, 1, 2]
# classes
class P:
    def __init__(self, x): self.x = x
    def twice(self): return 2 * self.x
P(4).twice() == 8 and P(3).x == 3
# objects as arguments
class P:
    def __init__(self, x): self.x = x
def f(ps): return sum(p.x for p in ps)
f([P(1), P(2)]) == 3
# keywords
def f(x, *, y=0): return x - y
f(5, y=2) == 3
# lengths, items, truth
class B:
    def __len__(self): return 3
    def __getitem__(self, i): return i
def f(x): return B()
len(f(0)) == 3 and bool(f(0)) and f(0)[2] == 2
# state
n = 0
def f(x):
    global n
    n += 1
    return n
f(0) == 1 or f(0) == 3
# modules are Python's
def f(x): return 0.1 + 0.2
math.isclose(f(0), 0.3)
# types of plain data
def f(x): return [v for v in (1, 2.5, "a") if isinstance(v, x)], type(x([])), type(None)
f(list) == ([], list, type(None)) and f(str)[0] == ["a"]
# half a surrogate pair
def f(x): return x
f("\\ud800é") == "\\ud800é"
"""
PROGRAMS = dict(part.split("\n", 1) for part in PASSES.strip().removeprefix("# ").split("\n# "))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_program_returns_is_what_the_tests_see(name: str) -> None:
    program, _, condition = PROGRAMS[name].rstrip().rpartition("\n")
    assert outcome(program, f"assert {condition}") == Report(True, "all tests passed")
    assert outcome(program, f"assert not ({condition})").passed is False


STATEMENTS = """
# arguments that change
def f(x):
    x.sort()
    x.append(9)
---
a = [3, 1]
assert f(a) is None
assert a == [1, 3, 9]
# exceptions
def f(x): raise ValueError("no")
---
try: f(0)
except ValueError as error: assert str(error) == "no"
else: assert False
# attributes that are set
class N: pass
def f(n): return n.left.v
---
n = N()
n.left = N()
n.left.v = 7
assert f(n) == 7
"""
BLOCKS = dict(part.split("\n", 1) for part in STATEMENTS.strip().removeprefix("# ").split("\n# "))


@pytest.mark.parametrize("name", BLOCKS)
def test_tests_may_be_statements(name: str) -> None:
    program, tests = BLOCKS[name].split("---\n")
    assert outcome(program, tests) == Report(True, "all tests passed")


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("x = 1", "assert f(1) == 2", "NameError: name 'f' is not defined"),
        ("def f(x):\n    raise KeyError('k')", "assert f(1) == 2", "KeyError: \"'k'\" at test line 1"),
        ("class E(Exception): pass\ndef f(x):\n    raise E('mine')", "\nassert f(1) == 2", "E: mine at test line 2"),
        ("def f(x):\n    return x", "assert f(1) == 2", "AssertionError at test line 1: assert f(1) == 2"),
        ("def f(x:\n", "assert f(1) == 2", "the program does not run: SyntaxError: '(' was never closed"),
        ("import no_such_module", "assert f(1) == 2", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import math\nmath.isclose = max\ndef f(x):\n    return 0", "assert math.isclose(f(1), 2)", "AssertionError"),
    ],
)
def test_a_failure_says_why(program: str, tests: str, reason: str) -> None:
    report = outcome(program, tests)
    assert report.passed is False
    assert reason in report.reason


@pytest.mark.parametrize(
    ("tests", "prompt", "reason"),
    [
        ("assert f(1) ==", "", "the task's own code does not run: SyntaxError"),
        ("assert f(1) == 2", "def f(x", "the task's own code does not run: SyntaxError"),
        ("assert f(1) == 2", "import no_such_module", "the task's own code does not run: ModuleNotFoundError"),
        ("assert f(lambda: 1) == 2", "", "the tests hand the program a function, which is no data"),
    ],
)
def test_what_is_wrong_with_the_task_is_no_verdict(tests: str, prompt: str, reason: str) -> None:
    report = outcome("def f(x):\n    return x", tests, prompt)
    assert report.passed is None
    assert reason in report.reason


def test_helpers_of_the_prompt_are_out_of_reach() -> None:
    prompt = "def double(x):\n    return 2 * x\n\ndef half(x):\n    '''Inverse of double.'''\n"
    tests = "def check(candidate):\n    assert double(candidate(6)) == 6\n\ncheck(half)\n"
    assert outcome(f"{prompt}    return x / 2", tests, prompt, "half").passed is True
    cheat = f"{prompt}    return 0\n\ndef double(x):\n    return 6\n"
    assert outcome(cheat, tests, prompt, "half").passed is False


def test_the_first_program_that_compiles_is_run() -> None:
    programs = ("def f(:", "def f(x):\n    return 1", "def f(x):\n    return 2")
    assert run(Request(programs, "assert f(0) == 1")).passed is True
