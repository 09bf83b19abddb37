"""Describe how a run or a comparison was made: versions, commit, device, and the problems by number and hash.

It is stored next to the configuration, with one entry for each time the run was started or resumed.
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
class Session:
    """One process's work on a run, from its start or from where it resumed it."""

    step: int
    """The starting point: the step of a training run, or the number of answers of a comparison."""
    device: str
    processes: int
    python: str
    versions: dict[str, str] = field(default_factory=dict[str, str])
    commit: str | None = None
    """The commit of the package's own source, where that is a git checkout; "+" at the end if files were changed."""
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    """`rows` and `hash` (SHA-256 over the problems) of the training tasks; empty for an endless stream."""
    validation: dict[str, Any] = field(default_factory=dict[str, Any])
    """`rows` and `hash` of the validation tasks."""


def session(lm: LM, step: int, processes: int = 1, problems: Problems | None = None) -> Session:
    """Describe this process's work on a run that starts or resumes at `step`."""
    cuda = lm.device.type == "cuda"
    return Session(
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
    """Return the versions of the installed packages that can change a run's results."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of the checkout in which this file is tracked. None if the package is installed inside
    somebody else's repository."""
    here = Path(__file__).resolve()
    try:
        # git would name the commit of any repository around an installed package; only a tracked file makes it ours.
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
