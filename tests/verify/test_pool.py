"""Worker processes: time limits, crashes, replacement, the end of their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from traces import running, ticks

from mass.types import Task
from mass.verify import VERIFIERS, check, math
from mass.verify.pool import PROGRAM, NoVerdict, Pool
from waiting import until

ENDLESS = "9^{9^{9^{9}}}"


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(size=1, timeout_s=20)
    yield pool
    pool.close()


def pids(pool: Pool) -> list[int]:
    return [worker._process.pid for worker in pool._workers]


def test_a_worker_is_started_when_needed_and_kept(pool: Pool) -> None:
    assert pids(pool) == []
    assert pool.equal("2k+2", "2(k+1)")
    first = pids(pool)
    assert not pool.equal("2k+2", "2(k+2)")
    assert pids(pool) == first


def test_a_timeout_kills_the_worker_and_the_next_one_answers(pool: Pool) -> None:
    assert pool.equal("2", "1+1")
    (first,) = pids(pool)
    pool.timeout_s = 0.5
    with pytest.raises(NoVerdict, match=r"timed out after 0\.5 s"):
        pool.equal("10", ENDLESS)
    assert not running(first)
    pool.timeout_s = 20
    assert pool.equal("2", "1+1")
    assert not pool.equal("2", "1+2")


def test_timeout_and_crash_are_no_verdict(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "POOL", pool)
    pool.equal("2", "1+1")
    pool.timeout_s = 0.5
    verdict = check(Task("p", answer="10"), rf"\boxed{{{ENDLESS}}}")
    assert (verdict.correct, verdict.reason, verdict.extracted) == (None, "math-verify timed out after 0.5 s", ENDLESS)
    # Equal text needs no algebra, so an endless gold is still accepted.
    assert check(Task("p", answer=ENDLESS), rf"\boxed{{{ENDLESS}}}").correct is True


def test_a_crash_in_the_middle_is_no_verdict(pool: Pool) -> None:
    pool.equal("2", "1+1")
    (first,) = pids(pool)
    idle = ticks(first)

    def kill() -> None:
        until(lambda: ticks(first) > idle + 20)  # it computes
        os.kill(first, signal.SIGKILL)

    threading.Thread(target=kill).start()
    with pytest.raises(NoVerdict, match="crashed"):
        pool.equal("10", ENDLESS)
    assert pool.equal("2", "1+1")


def test_a_worker_that_died_idle_is_replaced_unseen(pool: Pool) -> None:
    pool.equal("2", "1+1")
    (first,) = pids(pool)
    os.kill(first, signal.SIGKILL)
    until(lambda: not running(first))
    assert pool.equal("2", "1+1")
    assert pids(pool) != [first]


def test_no_interpreter_is_no_verdict(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(NoVerdict, match="could be started"):
        pool.equal("2", "1+1")


def test_a_closed_pool_starts_again(pool: Pool) -> None:
    pool.equal("2", "1+1")
    (first,) = pids(pool)
    pool.close()
    assert not running(first)
    assert pool.equal("2", "1+1")


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)"])
def test_workers_end_with_their_parent(ending: str) -> None:
    program = (
        "import os; from mass.verify.pool import Pool; pool = Pool(2); pool.equal('2', '1+1');"
        f"print(*[w._process.pid for w in pool._workers], flush=True); {ending}"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert out.stderr == ""
    (pid,) = map(int, out.stdout.split())
    until(lambda: not running(pid))


def test_the_watchdog_ends_a_worker_that_nobody_kills() -> None:
    with subprocess.Popen([sys.executable, str(PROGRAM), "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == b'{"equal": true}\n'
        worker.stdin.write(f'["10", "{ENDLESS}"]\n'.encode())
        worker.stdin.flush()
        try:
            assert worker.wait() == 1
        finally:
            worker.kill()


def test_a_forked_child_has_workers_of_its_own(pool: Pool) -> None:
    pool.equal("2", "1+1")
    child = os.fork()
    if child == 0:
        os._exit(0 if pids(pool) == [] and pool.equal("2k+2", "2(k+1)") and not pool.equal("2", "1+2") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.equal("2k+2", "2(k+1)")


def test_a_verifier_that_raises_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_task: Task, _text: str) -> None:
        raise RuntimeError("boom")

    monkeypatch.setitem(VERIFIERS, "broken", broken)
    verdict = check(Task("p", answer="1", verifier="broken"), "1")
    assert verdict.correct is None
    assert "boom" in verdict.reason
