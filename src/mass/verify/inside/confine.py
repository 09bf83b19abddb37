"""Linux calls that take powers away from a process: namespaces, Landlock, seccomp, resource limits, user.

All of them go through the C library, since Python offers few. Each function changes the calling process for good and
raises OSError where the kernel refuses. The numbers are those of Linux's headers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Mapping
from typing import Any

CLONE = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MS_RELATIME = 1 << 21
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAP_DAC_READ_SEARCH = 2

_KEPT_FLAGS = MS_NOSUID | MS_NODEV | 8 | 1024 | 2048
"""The flags of a mount that a remount has to repeat, since a user namespace may not clear them: nosuid, nodev,
noexec (8), noatime (1024) and nodiratime (2048)."""

_libc: Any = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


def prctl(option: int, value: int, pointer: Any = 0) -> None:
    _call("prctl", option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))


def unshare(*kinds: str) -> None:
    """Move this process into new namespaces of these kinds (the keys of `CLONE`).

    `pid` takes effect for the children. In a new user namespace, this user and group keep their numbers.
    """
    uid, gid = os.geteuid(), os.getegid()  # asked for now: in a new user namespace they are not mapped yet
    _call("unshare", sum(CLONE[kind] for kind in kinds))
    if "user" not in kinds:
        return
    # The kernel lets an unprivileged process map its group only after it has given up setgroups.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), data.encode() or None)


def bind(source: str, target: str, *, read_only: bool) -> None:
    """Make `source` visible at `target` too."""
    mount(source, target, flags=MS_BIND | MS_REC)
    # The kernel ignores "read only" in the call that binds; it takes a second call that changes the mount.
    if read_only:
        kept = os.statvfs(target).f_flag
        # statvfs has another number for relatime (4096) than mount.
        flags = (kept & _KEPT_FLAGS) | (MS_RELATIME if kept & 4096 else 0)
        mount("", target, flags=flags | MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def become(uid: int, *, reading: bool = False) -> None:
    """Change from root to a user that owns nothing. With `reading`, it keeps the power to read files without having
    rights to them."""
    # Groups first: without root they can no longer be changed.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    if reading:
        # Otherwise the change of user takes all capabilities away, and none could be kept.
        prctl(PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    if reading:
        set_capabilities(1 << CAP_DAC_READ_SEARCH)


def set_capabilities(kept: int = 0) -> None:
    """Keep only the capabilities in the bit mask `kept`, all of them below 32."""
    # Version 3 of the call, for this process: twice (effective, permitted, inheritable), 32 bits each.
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, struct.pack("6I", kept, kept, 0, 0, 0, 0))


def limit(limits: Mapping[str, int]) -> None:
    """Set resource limits by name (`CPU` for RLIMIT_CPU). Names that the system does not know are left out."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            _, hard = resource.getrlimit(number)
            # Only root may raise a hard limit, so a lower one that is already set stays.
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (least, least))


# --- seccomp: system calls that fail with EPERM, by their numbers on x86-64 and arm64

# The network; signals; leaving the process group, by which the launcher ends everything; looking into other processes;
# namespaces and mounts, which could undo the isolation; memory outside the limits (System V, memfd); io_uring, which
# makes system calls that seccomp does not see; and parts of the kernel that no test needs.
_DENIED: Mapping[str, tuple[int, int]] = {
    "socket": (41, 198),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""For each kind of processor: its column in the table above, and its number in the kernel's audit headers."""
# x86-64 also takes the numbers of the x32 interface, which have this bit and would not match the list.
_X32_BIT = 0x40000000
# "Deny" is an error (EPERM) and not the end of the process: an honest program may try and carry on.
_ALLOW, _DENY = 0x7FFF0000, 0x00050001


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_calls() -> bool:
    """Deny the calls above to this process and its children. Return False on a processor whose numbers are not known
    here."""
    if platform.machine() not in _MACHINES:
        return False
    column, architecture = _MACHINES[platform.machine()]
    numbers = [numbers[column] for numbers in _DENIED.values()]
    # A program for the kernel's packet filter. 0x20 loads a word: at 4 the architecture, at 0 the number of the call.
    # 0x15 jumps if equal and 0x35 if greater or equal; 0x06 returns.
    rules = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), (0x06, 0, 0, _DENY), (0x20, 0, 0, 0)]
    rules += [(0x35, len(numbers) + 1, 0, _X32_BIT)]  # these jumps lead to the last rule, which denies
    rules += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    rules += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _DENY)]
    code = b"".join(struct.pack("HBBI", *rule) for rule in rules)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(_Program(len(rules), code)))
    return True


# --- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 0b1101  # execute, read a file, read a folder
_FILE_ONLY = 0b1_0100_0000_0000_0111  # the rights that a rule on a single file can have


def landlock(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Allow only these files and folders, no TCP, and no signals to processes outside. Raises OSError where the
    kernel has no Landlock."""
    version = _call("syscall", _CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    # The rights on files that each version of Landlock knows: naming one that the kernel does not know is an error.
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    # Version 4 added the network (bind and connect), version 6 scopes (abstract sockets and signals).
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call("syscall", _CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, rights in ((readable, _READ), (writable, files)):
        for path in paths:
            _add_path(ruleset, path, rights & files)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _call("syscall", _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _add_path(ruleset: int, path: str, rights: int) -> None:
    if not os.path.exists(path):
        return
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    allowed = rights if os.path.isdir(path) else rights & _FILE_ONLY
    _call("syscall", _ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, handle), 0)
    os.close(handle)
