"""A run or a comparison -> what it was made with: versions, commit, device, and the problems by number and hash.

Kept beside the configuration as one entry for each time it was started or resumed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mass.lm import LM
from mass.runs.data import Problems
from mass.tasks import content_hash
from mass.types import Task

PACKAGES = ("mass-adapt", "torch", "transformers", "tokenizers", "safetensors", "datasets", "math-verify", "numpy")
GIT_S = 5.0


@dataclass(frozen=True)
class Sitting:
    """One process's work on a run, from its start or from where it was resumed."""

    step: int
    """The step of a training, the number of answers of a comparison, that it went on from."""
    device: str
    processes: int
    python: str
    versions: dict[str, str] = field(default_factory=dict[str, str])
    commit: str | None = None
    """Of the package's own source, where it is a git checkout; "+" at its end where that was changed."""
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    """`rows` and `hash` (SHA-256 over the problems) of what is trained on; empty for an endless stream."""
    validation: dict[str, Any] = field(default_factory=dict[str, Any])


def sitting(lm: LM, step: int, processes: int = 1, problems: Problems | None = None) -> Sitting:
    cuda = lm.device.type == "cuda"
    return Sitting(
        step,
        torch.cuda.get_device_name(lm.device) if cuda else lm.device.type,
        processes,
        platform.python_version(),
        versions(),
        commit(),
        _described(problems.training if problems else None),
        _described(problems.validation if problems else None),
    )


def versions() -> dict[str, str]:
    """Of the packages that decide a run, those that are installed."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Of the checkout that this file is tracked in. A package that is installed into somebody's repository has none."""
    here = Path(__file__).resolve()
    try:
        if not _git(here.parent, "ls-files", here.name):
            return None
        return _git(here.parent, "rev-parse", "HEAD") + ("+" if _git(here.parent, "status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S, stdin=subprocess.DEVNULL)
    return done.stdout.strip()


def _described(tasks: Sequence[Task] | None) -> dict[str, Any]:
    return {"rows": len(tasks), "hash": content_hash(tasks)} if tasks else {}
