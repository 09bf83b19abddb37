"""Wait for what another thread or process brings about."""

from __future__ import annotations

import threading
from collections.abc import Callable


def until(holds: Callable[[], bool]) -> None:
    """Return as soon as it holds. A test in which it never does is ended by pytest's own time limit."""
    while not holds():
        threading.Event().wait(0.005)
