"""(gold, answer) -> whether math-verify finds them equal, in worker processes that can be killed.

math-verify guards itself with SIGALRM, which fails in threads and there gives wrong grades, so it runs elsewhere.
Workers start when first needed, as plain programs (no fork of a threaded process, no second import of the caller's
main module), and end with their parent: their input closes, and a watchdog of their own stops one that hangs.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("worker.py")
PATIENCE = 3
"""On a busy machine a request gets so many times its time at most."""


class NoVerdict(Exception):
    """The comparison timed out or crashed; says which."""


class _NotReceived(NoVerdict):
    """The worker ended before it had read the request, which is therefore not why."""


class _Worker:
    """One process, and a thread that reads its replies so that waiting for one can have a time limit."""

    def __init__(self, mode: str, timeout_s: float) -> None:
        command = [sys.executable, str(PROGRAM), str((PATIENCE + 1) * timeout_s + 5), mode]
        try:
            # A session of its own: Ctrl-C in the terminal is the parent's to handle.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise NoVerdict(f"no math-verify worker could be started: {error}") from error
        self._replies: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._greeted = False

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as replies:
            for line in replies:
                self._replies.put(line)
        self._replies.put(b"")

    def ask(self, request: Sequence[Any], timeout_s: float, start_s: float) -> dict[str, Any]:
        """The worker's reply. After any exception its state is unknown: kill it."""
        if not self._greeted:
            greeting = self._receive(start_s)
            if "error" in greeting:
                raise NoVerdict(f"math-verify does not work here: {greeting['error']}")
            self._greeted = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _NotReceived("math-verify crashed") from error
        self._receive(timeout_s, _NotReceived)
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float, ended: type[NoVerdict] = NoVerdict) -> dict[str, Any]:
        queued_s, granted_s = self._queued_s(), timeout_s
        wait_s = timeout_s
        while True:
            try:
                line = self._replies.get(timeout=wait_s)
                break
            except queue.Empty:
                # On a busy machine the time in which others had the processor does not count, up to a limit.
                allowed_s = min(timeout_s + self._queued_s() - queued_s, PATIENCE * timeout_s)
                wait_s, granted_s = allowed_s - granted_s, allowed_s
                if wait_s < 0.1 * timeout_s:
                    raise NoVerdict(f"math-verify timed out after {timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            raise ended("math-verify crashed")
        return json.loads(line)

    def _queued_s(self) -> float:
        """Seconds that the worker was ready to run and others ran; 0 where the system does not say."""
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{self._process.pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
        return 0.0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


class Pool:
    """At most `size` workers, each started when no idle one is at hand. Safe to use from any thread."""

    def __init__(self, size: int, timeout_s: float = 5.0, start_s: float = 60.0, mode: str = "math") -> None:
        self.size = size
        self.mode = mode
        self.timeout_s = timeout_s
        self.start_s = start_s
        self.forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Leave all workers to another owner: after a fork they are the parent's."""
        self._slots = threading.Semaphore(self.size)
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    def equal(self, gold: str, answer: str) -> bool:
        """Whether the two are the same mathematics. Raises NoVerdict on a timeout or a crash."""
        return bool(self.ask([gold, answer])["equal"])

    def ask(self, request: Sequence[Any]) -> dict[str, Any]:
        """A worker's reply to one request. Raises NoVerdict on a timeout, a crash or an error of the worker's."""
        with self._slots:
            try:
                reply = self._ask(self._take(), request)
            except _NotReceived:  # it died idle
                reply = self._ask(self._start(), request)
        if "error" in reply:
            raise NoVerdict(f"math-verify failed with {reply['error']}")
        return reply

    def _ask(self, worker: _Worker, request: Sequence[Any]) -> dict[str, Any]:
        try:
            reply = worker.ask(request, self.timeout_s, self.start_s)
        except BaseException:
            self._workers.discard(worker)
            worker.kill()
            raise
        self._idle.append(worker)
        return reply

    def _take(self) -> _Worker:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return self._start()

    def _start(self) -> _Worker:
        worker = _Worker(self.mode, self.timeout_s)
        self._workers.add(worker)
        return worker

    def close(self) -> None:
        """End all workers. The pool can be used again: it starts new ones."""
        workers, self._workers, self._idle = self._workers, set(), []
        for worker in workers:
            worker.kill()
