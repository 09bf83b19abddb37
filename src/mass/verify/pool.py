"""Compare a gold and an answer with math-verify in worker processes that can be killed.

math-verify limits its own time with SIGALRM. In threads that fails and gives wrong grades, so it runs in other
processes. Workers start when first needed, as plain programs (no fork of a process with threads, no second import of
the caller's main module), and end with their parent: their input closes, and a watchdog inside each one ends it when it
hangs.
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
"""On a busy machine a request may take at most this many times its time limit."""


class NoVerdict(Exception):
    """The comparison timed out or crashed; the message says which."""


class _NotReceived(NoVerdict):
    """The worker ended before it had read the request, so the request is not the reason."""


class _Worker:
    """One process, and a thread that reads its replies, so that waiting for a reply can have a time limit."""

    def __init__(self, mode: str, timeout_s: float) -> None:
        # The worker's own watchdog fires later than the limit here: normally this process decides, and says why.
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
        # An empty line marks the end of the worker's output: real replies end with a line break.
        self._replies.put(b"")

    def ask(self, request: Sequence[Any], timeout_s: float, start_s: float) -> dict[str, Any]:
        """Return the worker's reply. After any exception the worker's state is unknown, and it must be killed."""
        if not self._greeted:
            # The first reply follows the import of math-verify and SymPy, which takes much longer than a comparison.
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
        # The receipt comes first: if the worker ends before it, the request is not to blame and can be sent again.
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
                # On a busy machine, time in which other processes had the processor does not count, up to a limit.
                allowed_s = min(timeout_s + self._queued_s() - queued_s, PATIENCE * timeout_s)
                wait_s, granted_s = allowed_s - granted_s, allowed_s
                if wait_s < 0.1 * timeout_s:
                    raise NoVerdict(f"math-verify timed out after {timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            raise ended("math-verify crashed")
        return json.loads(line)

    def _queued_s(self) -> float:
        """Return the seconds in which the worker was ready but other processes ran; 0 where the system does not say."""
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
    """At most `size` workers; each is started when no idle one is available. Safe to use from any thread."""

    def __init__(self, size: int, timeout_s: float = 5.0, start_s: float = 60.0, mode: str = "math") -> None:
        self.size = size
        self.mode = mode
        self.timeout_s = timeout_s
        self.start_s = start_s
        self.forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            # A fork copies the pipes: two processes that read the same one would get each other's replies.
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Drop all workers without ending them: after a fork they belong to the parent process."""
        self._slots = threading.Semaphore(self.size)
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    def equal(self, gold: str, answer: str) -> bool:
        """Return True if the two are mathematically equal.

        Raises:
            NoVerdict: The comparison timed out or crashed.
        """
        return bool(self.ask([gold, answer])["equal"])

    def ask(self, request: Sequence[Any]) -> dict[str, Any]:
        """Return a worker's reply to one request.

        Raises:
            NoVerdict: The request timed out, or the worker crashed or reported an error.
        """
        with self._slots:
            try:
                reply = self._ask(self._take(), request)
            except _NotReceived:  # it had ended while idle: once more, with a new worker
                reply = self._ask(self._start(), request)
        if "error" in reply:
            raise NoVerdict(f"math-verify failed with {reply['error']}")
        return reply

    def _ask(self, worker: _Worker, request: Sequence[Any]) -> dict[str, Any]:
        try:
            reply = worker.ask(request, self.timeout_s, self.start_s)
        # Even after Ctrl-C: the reply may still come, and would be taken for the answer to the next request.
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
