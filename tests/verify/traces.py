"""What a sandbox would leave behind: processes (zombies too) and folders, found by the folder it works in."""

from __future__ import annotations

import os
from pathlib import Path


def processes(folder: Path) -> list[int]:
    """Of sandboxes whose scratch folder lies in `folder`: it stands in the command line, which children inherit."""
    return [pid for pid in _pids() if str(folder).encode() in _read(pid, "cmdline")]


def zombies() -> list[int]:
    """Children of this process that have ended and nobody has waited for."""
    found: list[int] = []
    for pid in _pids():
        state, parent = [*_stat(pid), b"", b"0"][:2]
        if state == b"Z" and int(parent) == os.getpid():
            found.append(pid)
    return found


def running(pid: int) -> bool:
    """Return True for a process that has not ended."""
    return _stat(pid)[:1] not in ([], [b"Z"])


def ticks(pid: int) -> int:
    """Return how long a process has computed, in ticks of the processor."""
    user, system = _stat(pid)[11:13]
    return int(user) + int(system)


def left_behind(folder: Path) -> list[str]:
    folders = [str(path) for path in folder.glob("mass-sandbox-*")]
    return [*(f"process {pid}" for pid in processes(folder)), *(f"zombie {pid}" for pid in zombies()), *folders]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat after the name, the state first; none for a process that is gone."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
