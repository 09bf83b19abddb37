"""`mass serve` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

WAIT_S = 120.0
"""How long a test waits for what must happen."""


@contextmanager
def started(*arguments: str) -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    """Start the command in a process of its own; yields it and its address once it answers."""
    command = [sys.executable, "-m", "mass", "serve", "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASS_")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    watchdog = threading.Timer(WAIT_S, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            if found := re.search(r"serving .* at (http://\S+)/v1", line):
                address = found[1]
                break
        assert address
        yield process, address
    finally:
        process.kill()
        process.wait()
        watchdog.cancel()
