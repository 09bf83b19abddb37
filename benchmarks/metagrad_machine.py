"""Where a measurement was taken: machine, versions, commit."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "torchopt", "higher", "betty-ml", "jax", "jaxlib", "numpy")


def describe() -> dict[str, Any]:
    return {
        "processor": _proc("cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(_meminfo("MemTotal") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "gpu": _gpu(),
        "commit": commit(),
    }


def available_bytes() -> float:
    return _meminfo("MemAvailable")


@functools.cache
def commit() -> str:
    """The commit of this working tree, with "+" where the package or the benchmark differs from it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--short", ".", "../src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _proc(file: str, field: str) -> str:
    try:
        lines = Path(f"/proc/{file}").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _meminfo(field: str) -> float:
    """Bytes; as good as without limit where the system does not say."""
    text = _proc("meminfo", field)
    return float(text.split()[0]) * 1024 if text else float(1 << 50)
