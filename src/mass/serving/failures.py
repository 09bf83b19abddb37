"""An exception -> one line for the log, without any text of a request: messages of exceptions repeat what they read."""

from __future__ import annotations

import traceback


def described(error: BaseException) -> str:
    """Return the exception's class, and the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    cause = error.__cause__
    return f"{type(error).__name__}{place}" + (f", after {described(cause)}" if cause is not None else "")
