"""A model's folder -> a running vLLM server, on this machine's CPU, and nothing left of it afterwards.

The server runs in a session of its own, in which a guard waits for the end of a pipe that only this process holds: it
ends when the tests do, and also when they are killed. Whatever vLLM caches or logs goes to the folder `home`.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

START_S, STOP_S = 400.0, 20.0
TIDY_S = 3.0
"""Python's tracker of shared memory removes what the server left of it, after the server itself."""
GUARDED = 'exec 3<&0; (trap "" TERM; cat <&3; kill -TERM 0; sleep 5; kill -KILL 0) & exec "$@" 3<&- </dev/null'
"""For `sh -c`: runs its arguments, in whose process group nothing outlives the standard input."""
OPTIONS = (
    "--host 127.0.0.1 --dtype bfloat16 --max-model-len 1024 --enforce-eager --generation-config vllm "
    "--enable-lora --max-lora-rank 16 --max-loras 2 --max-cpu-loras 2"
)
SETTINGS = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class NotStarted(Exception):
    """The server ended, or did not answer in time; one line with the last of its log."""


class RealVllm:
    """`start` it, and use it as a context manager; `url` is where it listens."""

    def __init__(self, program: Path, base: Path, home: Path) -> None:
        self._home, self._log = home, home / "log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.command = [str(program), "serve", str(base), "--port", str(port), *OPTIONS.split()]
        self._environment = {**inherited(), **SETTINGS, "HOME": str(self._home), "TMPDIR": str(self._home)}

    def start(self) -> None:
        """Returns when it answers, in about a minute. Raises NotStarted."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", GUARDED, "sh", *self.command],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=self._home,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.close)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RealVllm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the whole process group, and wait for it."""
        atexit.unregister(self.close)
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
            time.sleep(TIDY_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _wait(self) -> None:
        until = time.monotonic() + START_S
        while not answers(f"{self.url}/health"):
            ended = self._process.poll()
            if ended is not None or time.monotonic() > until:
                what = f"no answer after {START_S:g} s" if ended is None else f"it ended with code {ended}"
                last = " | ".join(line.strip() for line in self.log().splitlines() if line.strip())
                raise NotStarted(f"vLLM did not start on this machine ({what}); the last of its log: ...{last[-1500:]}")
            time.sleep(0.5)


def inherited() -> dict[str, str]:
    """What the server may know of this process: where programs lie, how many threads."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
