"""The sandbox's first process: it isolates, starts judge and program, and ends both when the time is up.

Its arguments are a kind of isolation and a JSON object: `limits`, `readable` (folders that the program may read: Python
itself), `paths` (where it finds modules) and `scratch` (an empty folder). It prints the judge's report, or
`unavailable` with the reason why there is no sandbox, and exits with TIMED_OUT when it had to end them.

    launcher ── judge ── program        in namespaces the judge is process 1 of its own: when it ends, all end
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

from . import candidate, confine, judge, rooms

TIMED_OUT = 124
PATIENCE = 3
"""On a busy machine a program may take at most this many times its wall-clock limit: time in which it waited for a
processor does not count."""
MAX_REASON_CHARS = 1000
LINUX = sys.platform == "linux"


def main() -> None:
    """Run one request in isolation and print its report."""
    way, setting = sys.argv[1], json.loads(sys.argv[2])
    sys.path[:] = [*sys.path, *setting["paths"]]
    out = os.dup(1)
    try:
        if LINUX:
            # If mass is killed, this process gets SIGTERM and ends the others.
            confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGTERM)
            # Processes that outlive their parent become this one's children, so it can wait for them.
            confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
        room = rooms.enter(way, setting)
        child = _start(room, out)
    except OSError as error:
        os.write(out, json.dumps({"unavailable": f"{way}: {error}"}).encode())
        return
    sys.exit(_wait(child, float(setting["limits"]["wall_s"])))


def _start(room: rooms.Room, out: int) -> int:
    """Start the judge in its own process group and return its process id. Raises OSError where it could not be made
    safe."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        with _exiting():
            # A group without the launcher: one signal ends the judge and all that the program started.
            os.setpgid(0, 0)
            _judge(room, out, tell)
    os.close(tell)
    failure = os.read(ready, MAX_REASON_CHARS).decode("utf-8", "replace")
    os.close(ready)
    if failure:
        os.waitpid(child, 0)
        raise OSError(failure)
    return child


def _wait(child: int, wall_s: float) -> int:
    """Wait until the judge ends or its time is up, then end and wait for all processes. Return the exit code."""
    code, granted = 0, 0.0

    def end(number: int = 0, _frame: object = None) -> None:
        nonlocal code
        code = TIMED_OUT if number else code
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)

    def time_is_up(number: int, _frame: object) -> None:
        nonlocal granted
        # Time spent waiting for a processor is added to the limit. Less than a tenth is not worth another round.
        more = min(_queued_s(child), (PATIENCE - 1) * wall_s) - granted
        if more < 0.1 * wall_s:
            end(number)
        else:
            granted += more
            signal.setitimer(signal.ITIMER_REAL, more)

    signal.signal(signal.SIGALRM, time_is_up)
    signal.signal(signal.SIGTERM, end)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not yet reaped, so its number still names this group
    signal.setitimer(signal.ITIMER_REAL, 0)
    end()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return code


def _queued_s(judge: int) -> float:
    """Return the seconds in which judge and program were ready but other processes ran; 0 where the system does not
    say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{judge}/task/{judge}/children") as file:
            family = [str(judge), *file.read().split()[:1]]
        times: list[float] = []
        for process in family:
            with open(f"/proc/{process}/schedstat") as file:
                times.append(int(file.read().split()[1]) / 1e9)
        return sum(times)
    return 0.0


def _judge(room: rooms.Room, out: int, tell: int) -> None:
    """Start the program's process, then read the request and judge.

    The order is the protection: a fork copies memory, and at that time this process has read neither tests nor nonce.
    """
    try:
        room.settle()
        pipes, program = _program(room)
        room.harden_judge()
    except OSError as error:
        os.write(tell, str(error).encode()[:MAX_REASON_CHARS])
        return
    os.close(tell)
    with open(os.devnull, "w") as silence:
        # Tests may print; only the report may reach standard output.
        sys.stdout = sys.stderr = silence
        request = json.loads(sys.stdin.buffer.read())
        report = judge.judge(request, *pipes, program)
        os.write(out, json.dumps(report).encode())


def _program(room: rooms.Room) -> tuple[tuple[int, int], int]:
    """Start the program's process.

    Returns:
        ((write end of its requests, read end of its replies), process id).

    Raises:
        OSError: It could not be confined.
    """
    requests, ask = os.pipe()
    answer, replies = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with _exiting():
            _confined(room, tell)
            _keep_only({requests, replies})
            candidate.serve(requests, replies)
    for end in (requests, replies, tell):
        os.close(end)
    failure = os.read(ready, MAX_REASON_CHARS).decode("utf-8", "replace")
    os.close(ready)
    if failure:
        raise OSError(failure)
    return (ask, answer), child


def _confined(room: rooms.Room, tell: int) -> None:
    try:
        room.confine_program()
    except OSError as error:
        os.write(tell, str(error).encode()[:MAX_REASON_CHARS])
        os._exit(1)


def _keep_only(kept: set[int]) -> None:
    """Close every other file descriptor, and connect the standard streams to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 16)


@contextlib.contextmanager
def _exiting() -> Any:
    """Run a child's code and then exit, whatever happens, so that it never returns into its parent's code."""
    try:
        yield
    finally:
        os._exit(0)
