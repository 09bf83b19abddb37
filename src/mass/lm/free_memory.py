"""Find the bytes that this process may still use on a device, and the bytes that the device has in total.

On Linux the free memory is the least of three: what the kernel calls available, what each control group around the
process (a container's limit) leaves, and what `ulimit -v` leaves; where none of them can be read, there is no bound.
Memory that the allocator holds for reuse counts as free: glibc's free lists on a CPU, PyTorch's cache on CUDA.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

SHARE = 0.7
"""Share of the free memory that one stage of the work may plan with. Measurements leave out temporaries within an
operation, gaps between tensors, and the memory that other processes take meanwhile."""
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Number from which a limit counts as none: version 1 of control groups writes about 2^63 where there is no limit."""


def spare_bytes(device: torch.device) -> float:
    """Return the bytes to plan with: a share of `free_bytes`."""
    return SHARE * free_bytes(device)


def free_bytes(device: torch.device) -> float:
    """Return the bytes that can still be allocated; infinite where no limit is known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return math.inf
    groups = [limit - used for limit, used in _groups()]
    rooms = [_meminfo("MemAvailable"), *groups, _address_space()]
    return max(0.0, min(rooms)) + _held_for_reuse()


def total_bytes(device: torch.device) -> float:
    """Return all bytes of a GPU, or of the machine or the container that this process runs in."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _groups())])


def _meminfo(name: str) -> float:
    """Return an entry of /proc/meminfo in bytes; infinite where there is none."""
    for line in _read(PROC / "meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024
    return math.inf


def _groups() -> Iterator[tuple[float, float]]:
    """Yield (limit, use) in bytes of each control group around this process that has a limit.

    Cached files do not count as use, as the kernel drops them when memory is needed.
    """
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        # A line of version 1 names its controllers; that of version 2 names none.
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        inner = root / path.lstrip("/")
        folders = [inner, *inner.parents]
        for folder in folders[: folders.index(root) + 1]:
            limit, used = (_number(folder / name) for name in names)
            if limit < NO_LIMIT and used < NO_LIMIT:
                yield limit, used - _dropped_at_need(folder)


def _dropped_at_need(folder: Path) -> float:
    """Return the bytes of cached files that the kernel would drop first."""
    names = ("inactive_file ", "total_inactive_file ")
    found = [float(line.split()[1]) for line in _read(folder / "memory.stat").splitlines() if line.startswith(names)]
    return max(found, default=0.0)


def _address_space() -> float:
    """Return the bytes of address space that `ulimit -v` still leaves to this process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _read(PROC / "self" / "statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return math.inf
    return limit - float(pages[0]) * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo(ctypes.Structure):
    """The `struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


@functools.cache
def _mallinfo() -> ctypes._FuncPointer | None:  # pyright: ignore[reportPrivateUsage]
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # another C library, or an old one
        return None
    function.restype = _Mallinfo
    return function


def _held_for_reuse() -> float:
    """Return the bytes that glibc has freed and kept for later allocations."""
    function = _mallinfo()
    return 0.0 if function is None else float(function().fordblks)


def _number(path: Path) -> float:
    text = _read(path).strip()
    return float(text) if text.isdigit() else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
