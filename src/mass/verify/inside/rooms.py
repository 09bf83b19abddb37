"""A way of isolation -> a `Room`: what judge and program do at their start to be shut in.

`namespaces`: processes, network, IPC and mounts of its own, a file system of Python's folders (read only) and a `/tmp`
in memory. `bwrap`: the same, made by bubblewrap before this process began. `landlock`: no namespaces; the kernel's
rules for files, TCP and signals, and no process leaves its group. `limits`: resource limits alone, and no safety.

Whatever the way: the program runs as a user that owns nothing (where the caller is root), without privileges, under
resource limits, and with the system calls of `confine.filter_calls` refused. (With `landlock` it may read what root
may, among the folders that are open to it: Python's own may lie in root's home.)
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

from . import confine

HOME = "/tmp"
"""Where the program runs, in namespaces."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FIRST_UID = 1_000_000_000
"""Users of programs: two for each process id, so that their counts of processes are apart."""


@dataclass(frozen=True)
class Room:
    way: str
    limits: dict[str, Any]
    readable: list[str]
    scratch: str
    uid: int | None
    """The program's user; the judge's is the next. None: the caller's own."""

    def settle(self) -> None:
        """In the judge, before the program's process is made."""
        if self.way == "namespaces":
            os.chroot(f"{self.scratch}/root")
        home = HOME if self.way in ("namespaces", "bwrap") else self.scratch
        os.chdir(home)
        os.environ["HOME"] = os.environ["TMPDIR"] = home

    def harden_judge(self) -> None:
        """In the judge, after: not to be looked into, and not to outlive its time."""
        self._step_down(0 if self.uid is None else self.uid + 1)
        longest_s = 3 * float(self.limits["wall_s"]) + 5  # the launcher's patience, and more
        confine.limit({"CPU": int(longest_s), "AS": self.limits["memory_mb"] << 20, "CORE": 0})
        if sys.platform == "linux":
            confine.prctl(confine.PR_SET_DUMPABLE, 0)
            confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGALRM, _leave)
        signal.setitimer(signal.ITIMER_REAL, longest_s)

    def confine_program(self) -> None:
        """In the program's process, before it hears of the program."""
        limits = self.limits
        shared = 0 if self.uid is not None else _own_processes() if self.way != "namespaces" else 2
        self._step_down(self.uid or 0)
        confine.limit(
            {
                "CPU": int(limits["cpu_s"]),
                "AS": limits["memory_mb"] << 20,
                "FSIZE": limits["file_mb"] << 20,
                "NPROC": limits["processes"] + shared,
                "NOFILE": 64,
                "CORE": 0,
                "MEMLOCK": 0,
                "MSGQUEUE": 0,
            }
        )
        if self.way == "landlock":
            confine.landlock([*self.readable, *DEVICES[1:]], [self.scratch, DEVICES[0]])
        if self.way != "limits" and not confine.filter_calls() and self.way == "landlock":
            raise OSError("no list of system calls for this kind of processor")

    def _step_down(self, uid: int) -> None:
        if self.uid is not None:
            confine.become(uid, reading=self.way == "landlock")
        elif self.way == "namespaces":
            confine.set_capabilities()


def enter(way: str, setting: dict[str, Any]) -> Room:
    """In the launcher. Raises OSError where the system refuses."""
    root = os.geteuid() == 0
    limits, scratch, readable = setting["limits"], setting["scratch"], setting["readable"]
    if way == "namespaces":
        confine.unshare(*(() if root else ("user",)), "mount", "pid", "net", "ipc", "uts")
        _furnish(scratch, readable, limits["disk_mb"])
    uid = FIRST_UID + 2 * os.getpid() if root else None
    if uid is not None and way in ("landlock", "limits"):
        os.chown(scratch, uid, uid)
    return Room(way, limits, readable, scratch, uid)


def _furnish(scratch: str, readable: list[str], disk_mb: int) -> None:
    """A file system below `scratch`/root that only processes of these namespaces see."""
    confine.mount("", "/", flags=confine.MS_REC | confine.MS_PRIVATE)
    with contextlib.suppress(OSError), open("/proc/sys/kernel/shmall", "w") as file:
        file.write("0")
    confine.mount("tmpfs", scratch, "tmpfs", confine.MS_NOSUID | confine.MS_NODEV, "size=1m,mode=755")
    root = f"{scratch}/root"
    os.mkdir(root)
    for path in sorted(readable):
        _show(path, root)
    os.makedirs(f"{root}/dev", exist_ok=True)
    for device in DEVICES:
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY))
        confine.mount(device, root + device, flags=confine.MS_BIND)
    os.makedirs(root + HOME, exist_ok=True)
    kept = confine.MS_NOSUID | confine.MS_NODEV
    confine.mount("tmpfs", root + HOME, "tmpfs", kept, f"size={disk_mb}m,nr_inodes=4096,mode=1777")
    confine.mount("", scratch, flags=kept | confine.MS_REMOUNT | confine.MS_RDONLY)


def _show(path: str, root: str) -> None:
    """`path` under the same name below `root`: a link as a link, a file or folder bound, read only."""
    place = root + path
    if os.path.lexists(place) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.mkdir(place)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
    confine.bind(path, place, read_only=True)


def _leave(_number: int, _frame: object) -> None:
    os._exit(1)


def _own_processes() -> int:
    """How many threads the caller's user has, where the count is not the program's alone."""
    uid, count = os.getuid(), 0
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(os.listdir(f"{entry.path}/task"))
    return count or resource.getrlimit(resource.RLIMIT_NPROC)[0]
