"""The sandbox's first process: isolates, starts judge and program, and ends both when the time is up.

It is given a way of isolation and a JSON object: `limits`, `readable` (what the program may read: Python itself),
`paths` (where it finds modules) and `scratch` (an empty folder). It prints the judge's report, or `unavailable` with
the reason why there is no sandbox, and exits with TIMED_OUT when it had to end them.

    launcher ── judge ── program        in namespaces the judge is process 1 of its own: with it, all end
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
"""On a busy machine a program gets so many times its wall-clock time at most: the time that it stood in the queue for a
processor does not count."""
MAX_REASON_CHARS = 1000
LINUX = sys.platform == "linux"


def main() -> None:
    way, setting = sys.argv[1], json.loads(sys.argv[2])
    sys.path[:] = [*sys.path, *setting["paths"]]
    out = os.dup(1)
    try:
        if LINUX:
            confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGTERM)
            confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
        room = rooms.enter(way, setting)
        child = _start(room, out)
    except OSError as error:
        os.write(out, json.dumps({"unavailable": f"{way}: {error}"}).encode())
        return
    sys.exit(_wait(child, float(setting["limits"]["wall_s"])))


def _start(room: rooms.Room, out: int) -> int:
    """The judge's process, in a process group of its own. Raises OSError where it could not be made safe."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready)
        with _exiting():
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
    """Until the judge ends or its time does. Then all are gone, and waited for."""
    code, granted = 0, 0.0

    def end(number: int = 0, _frame: object = None) -> None:
        nonlocal code
        code = TIMED_OUT if number else code
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)

    def time_is_up(number: int, _frame: object) -> None:
        nonlocal granted
        more = min(_queued_s(child), (PATIENCE - 1) * wall_s) - granted
        if more < 0.1 * wall_s:
            end(number)
        else:
            granted += more
            signal.setitimer(signal.ITIMER_REAL, more)

    signal.signal(signal.SIGALRM, time_is_up)
    signal.signal(signal.SIGTERM, end)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its group is still there to be ended
    signal.setitimer(signal.ITIMER_REAL, 0)
    end()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return code


def _queued_s(judge: int) -> float:
    """Seconds that judge and program were ready to run and others ran; 0 where the system does not say."""
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
    """Start the program's process while this one knows nothing yet; then read the request, and judge."""
    try:
        room.settle()
        pipes, program = _program(room)
        room.harden_judge()
    except OSError as error:
        os.write(tell, str(error).encode()[:MAX_REASON_CHARS])
        return
    os.close(tell)
    with open(os.devnull, "w") as silence:
        sys.stdout = sys.stderr = silence
        request = json.loads(sys.stdin.buffer.read())
        report = judge.judge(request, *pipes, program)
        os.write(out, json.dumps(report).encode())


def _program(room: rooms.Room) -> tuple[tuple[int, int], int]:
    """(Write end of its requests, read end of its replies), process id. Raises OSError where it is not confined."""
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
    """Close every other descriptor; the standard streams lead nowhere."""
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
    """What follows is a child's: it never returns into the code of its parent."""
    try:
        yield
    finally:
        os._exit(0)
