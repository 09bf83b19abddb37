"""A user's own verifier: a function, or a program that reads JSON and answers JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from traces import running

from mass.errors import ConfigError, DataError
from mass.types import Task, Verdict
from mass.verify import check, check_all, own
from waiting import until

JUDGES = """
from mass.types import Verdict
def same(task, text): return text == task.answer
def full(task, text): return Verdict(text == task.answer, "looked", text)
def unsure(task, text): return None
def number(task, text): return 1.0
def mapping(task, text): return {"correct": False, "reason": "no", "extracted": text}
def broken(task, text): raise RuntimeError("boom")
constant = 5
"""


@pytest.fixture
def judges(tmp_path: Path) -> str:
    (tmp_path / "judges.py").write_text(JUDGES)
    own.find.cache_clear()
    return str(tmp_path / "judges.py")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("same", Verdict(True)),
        ("full", Verdict(True, "looked", "7")),
        ("unsure", Verdict(None)),
        ("mapping", Verdict(False, "no", "7")),
    ],
)
def test_a_function_in_a_file(judges: str, name: str, expected: Verdict) -> None:
    assert check(Task("p", answer="7", verifier=f"{judges}:{name}"), "7") == expected


def test_a_function_in_a_module(judges: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(judges).parent)
    task = Task("p", answer="", verifier="judges:same")
    assert check(task, "").correct is True
    assert [v.correct for v in check_all([(task, ""), (task, "x")])] == [True, False]


@pytest.mark.parametrize(
    ("name", "reason"), [("number", "answered 1.0; expected true, false or null"), ("broken", "RuntimeError: boom")]
)
def test_what_is_no_verdict(judges: str, name: str, reason: str) -> None:
    verdict = check(Task("p", answer="7", verifier=f"{judges}:{name}"), "7")
    assert verdict.correct is None
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:judge", "cannot be imported .*ModuleNotFoundError"),
        ("json:constant", "json has no function 'constant'"),
        ("missing.py:judge", "cannot be imported"),
        ("command:no-such-program --x", "is not a program"),
        ("command:", "is not a program"),
        ("command:python 'x", "open quote"),
    ],
)
def test_a_verifier_that_cannot_be_had(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(Task("p", answer="7", verifier=name), "7")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="did you mean 'math'"):
        check(Task("p", answer="7", verifier="maths"), "7")


def command(program: str) -> str:
    return f'command:{sys.executable} -S -c "{program}"'


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import json, sys; d = json.load(sys.stdin); print(json.dumps(d['text'] == d['answer']))", Verdict(True)),
        ("print('null')", Verdict(None)),
        (
            "import json; print(json.dumps({'correct': False, 'reason': 'no', 'extracted': 7}))",
            Verdict(False, "no", "7"),
        ),
    ],
)
def test_a_command(program: str, expected: Verdict) -> None:
    assert check(Task("é", answer="7", verifier=command(program)), "7") == expected


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise SystemExit('out of luck')", "exited with 1 out of luck"),
        ("print('yes')", "answered 'yes', which is not JSON"),
        ("print('[1]')", "answered [1]; expected true"),
        ("import os; os.kill(os.getpid(), 9)", "exited with -9"),
    ],
)
def test_a_command_that_fails(program: str, reason: str) -> None:
    verdict = check(Task("p", answer="7", verifier=command(program)), "7")
    assert verdict.correct is None
    assert reason in verdict.reason


def test_a_command_that_hangs_is_ended_with_its_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(own, "TIMEOUT_S", 1.0)
    pids = tmp_path / "pids"
    program = f"""command:sh -c 'sleep 1000 & echo $$ $! > {pids}; wait'"""
    verdict = check(Task("p", answer="7", verifier=program), "7")
    assert (verdict.correct, "timed out after 1 s" in verdict.reason) == (None, True)
    both = [int(pid) for pid in pids.read_text().split()]
    assert len(both) == 2
    until(lambda: not any(map(running, both)))
