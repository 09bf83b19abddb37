"""Prepare output folders, or report a one-line error before any work is done."""

from __future__ import annotations

import time
from pathlib import Path

from mass.errors import RunError
from mass.runs.folder import is_used


def new_folder(option: str, folder: Path) -> None:
    """Create an output folder.

    Raises:
        RunError: It is in use or cannot be created.
    """
    try:
        if is_used(folder):
            raise RunError(f"{option} {str(folder)!r} is in use; name a folder that is new or empty")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{option} {str(folder)!r} cannot be written ({error.strerror}); name a folder that can"
        ) from error


def dated_folder(verb: str) -> Path:
    """Return a folder name with the time, `runs/VERB-20260102-030405`."""
    return Path("runs") / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
