"""Isolate the judge and the program in one of four ways.

`namespaces`: new namespaces for processes, network, IPC and mounts, with a file system that has Python's folders (read
only) and a `/tmp` in memory. `bwrap`: the same, made by bubblewrap before this process began. `landlock`: no
namespaces; the kernel's rules for files, TCP and signals, and no process leaves its process group. `limits`: resource
limits alone, and no safety.

In each of the first three, the program runs as a user that owns nothing (where the caller is root), without privileges,
under resource limits, and with the system calls of `confine.filter_calls` refused. (With `landlock` it may read what
root may, within the folders that are open to it: Python's own may lie in root's home.)
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
"""The program's working folder in namespaces."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
FIRST_UID = 1_000_000_000
"""The first user number for programs. Each launcher takes two numbers by its process id: the kernel counts processes
per user, so programs that run side by side do not use up each other's limit."""


@dataclass(frozen=True)
class Room:
    """An isolation that has been prepared, and the steps by which judge and program enter it."""

    way: str
    limits: dict[str, Any]
    readable: list[str]
    scratch: str
    uid: int | None
    """The program's user; the judge's is the next number. None: both run as the caller."""

    def settle(self) -> None:
        """Enter the isolated file system. Called in the judge, before the program's process is made."""
        if self.way == "namespaces":
            os.chroot(f"{self.scratch}/root")
        home = HOME if self.way in ("namespaces", "bwrap") else self.scratch
        os.chdir(home)
        os.environ["HOME"] = os.environ["TMPDIR"] = home

    def harden_judge(self) -> None:
        """Protect the judge from being looked into, and limit its time. Called once the program's process is made."""
        self._step_down(0 if self.uid is None else self.uid + 1)
        # Longer than the launcher waits: this limit ends the judge only where the launcher is gone.
        longest_s = 3 * float(self.limits["wall_s"]) + 5
        confine.limit({"CPU": int(longest_s), "AS": self.limits["memory_mb"] << 20, "CORE": 0})
        if sys.platform == "linux":
            # After the change of user, which resets both. Not dumpable: no process of the same user may trace it or
            # read its memory.
            confine.prctl(confine.PR_SET_DUMPABLE, 0)
            confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGALRM, _leave)
        signal.setitimer(signal.ITIMER_REAL, longest_s)

    def confine_program(self) -> None:
        """Take the program's powers away. Called in its process, before it receives the program."""
        limits = self.limits
        # The kernel counts the processes of a user, not of a program. As the caller's own user, those already running
        # are added; in a user namespace only the judge and the program's first process count.
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
        # DEVICES[0] is /dev/null, the only device to write to.
        if self.way == "landlock":
            confine.landlock([*self.readable, *DEVICES[1:]], [self.scratch, DEVICES[0]])
        # Without namespaces only the filter keeps a program from the network and in its process group, so it must work.
        if self.way != "limits" and not confine.filter_calls() and self.way == "landlock":
            raise OSError("no list of system calls for this kind of processor")

    def _step_down(self, uid: int) -> None:
        if self.uid is not None:
            confine.become(uid, reading=self.way == "landlock")
        elif self.way == "namespaces":
            confine.set_capabilities()


def enter(way: str, setting: dict[str, Any]) -> Room:
    """Prepare an isolation. Called in the launcher. Raises OSError where the system refuses."""
    root = os.geteuid() == 0
    limits, scratch, readable = setting["limits"], setting["scratch"], setting["readable"]
    if way == "namespaces":
        confine.unshare(*(() if root else ("user",)), "mount", "pid", "net", "ipc", "uts")
        _furnish(scratch, readable, limits["disk_mb"])
    uid = FIRST_UID + 2 * os.getpid() if root else None
    # Without a file system of its own the program writes into the scratch folder itself.
    if uid is not None and way in ("landlock", "limits"):
        os.chown(scratch, uid, uid)
    return Room(way, limits, readable, scratch, uid)


def _furnish(scratch: str, readable: list[str], disk_mb: int) -> None:
    """Build a file system in the folder `root` of `scratch`, which only processes of these namespaces see."""
    # Otherwise the mounts below would appear in the rest of the system too.
    confine.mount("", "/", flags=confine.MS_REC | confine.MS_PRIVATE)
    # No shared memory in this IPC namespace: it would not count against the program's address space.
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
    # Both the size and the number of files are limited: empty files cost the kernel memory too.
    kept = confine.MS_NOSUID | confine.MS_NODEV
    confine.mount("tmpfs", root + HOME, "tmpfs", kept, f"size={disk_mb}m,nr_inodes=4096,mode=1777")
    # Last, since everything above still wrote here.
    confine.mount("", scratch, flags=kept | confine.MS_REMOUNT | confine.MS_RDONLY)


def _show(path: str, root: str) -> None:
    """Make `path` visible under the same name below `root`: a link as a link, a file or folder bound and read only."""
    place = root + path
    if os.path.lexists(place) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        # /lib is a link to usr/lib on most systems; bound as a folder, it would show its files twice.
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
    """Return the number of threads that the caller's user has now."""
    uid, count = os.getuid(), 0
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(os.listdir(f"{entry.path}/task"))
    # Without /proc nothing can be counted, so the limit stays as it is.
    return count or resource.getrlimit(resource.RLIMIT_NPROC)[0]
