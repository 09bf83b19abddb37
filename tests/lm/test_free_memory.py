"""What a machine, a container and a process say is free, from files as Linux writes them."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mass.lm import free_memory
from mass.lm.free_memory import SHARE, free_bytes, spare_bytes, total_bytes

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB of which 40 are available, in no control group."""
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(free_memory, "_held_for_reuse", lambda: 0.0)
    write(tmp_path, "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 12 kB\nMemAvailable: {40 << 20} kB\n")
    return tmp_path


def write(root: Path, name: str, text: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(f"{text}\n")


def group(root: Path, folder: str, limit: object, used: int, cached: int, *, first: bool = False) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if first else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, used), strict=True):
        write(root, f"cgroup/{folder}/{name}", value)
    stat = f"anon 5\ninactive_file {cached if not first else 0}\ntotal_inactive_file {cached}"
    write(root, f"cgroup/{folder}/memory.stat", stat)


def test_what_the_kernel_calls_available(machine: Path) -> None:
    assert machine
    assert (free_bytes(CPU), total_bytes(CPU), spare_bytes(CPU)) == (40 * GIB, 64 * GIB, SHARE * 40 * GIB)


@pytest.mark.parametrize("first", [False, True], ids=["version 2", "version 1"])
def test_a_container_s_limit_less_what_it_uses(machine: Path, first: bool) -> None:
    write(machine, "proc/self/cgroup", "5:cpu,cpuacct:/a\n3:memory:/a/b" if first else "0::/a/b")
    root = "memory/" if first else ""
    group(machine, f"{root}a/b", (1 << 63) - 4096 if first else "max", 3 * GIB, 0, first=first)
    assert (free_bytes(CPU), total_bytes(CPU)) == (40 * GIB, 64 * GIB), "no limit"
    group(machine, f"{root}a", 8 * GIB, 5 * GIB, 2 * GIB, first=first)
    assert (free_bytes(CPU), total_bytes(CPU)) == (5 * GIB, 8 * GIB), "of the group around; its cache is given up"
    group(machine, f"{root}a/b", 4 * GIB, 3 * GIB, 0, first=first)
    assert (free_bytes(CPU), total_bytes(CPU)) == (1 * GIB, 4 * GIB)


def test_in_a_container_its_own_group_is_the_root(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/docker/0123")
    group(machine, "", 2 * GIB, GIB, 0)
    assert free_bytes(CPU) == GIB


def test_more_used_than_allowed_is_nothing_free(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/")
    group(machine, "", 2 * GIB, 3 * GIB, 0)
    assert free_bytes(CPU) == 0


def test_where_nobody_says_there_is_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "PROC", tmp_path)
    assert free_bytes(CPU) == math.inf == total_bytes(CPU)
    assert free_bytes(torch.device("meta")) == math.inf


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="another C library than glibc")
def test_memory_that_the_allocator_keeps_is_free() -> None:
    program = (
        "import torch\nfrom mass.lm.free_memory import _held_for_reuse\nbefore = _held_for_reuse()\n"
        "some = [torch.ones(1 << 22) for _ in range(16)]\nlast = torch.ones(8)\nhad = _held_for_reuse()\ndel some\n"
        "print(_held_for_reuse() - had)"
    )
    kept = {"MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_MMAP_MAX_": "0", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=kept)
    assert float(done.stdout) > 0.9 * 16 * (1 << 24)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_limit_of_the_address_space_counts() -> None:
    program = (
        "import resource, torch\nfrom mass.lm.free_memory import free_bytes\nprint(free_bytes(torch.device('cpu')))"
    )
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({8 * GIB}, {8 * GIB}))\n{program}"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 8 * GIB
