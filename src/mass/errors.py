"""The errors that a user can cause, each with one line that says what was given, what was expected and what to do.

Each of them is a `MassError`; the command line prints its text on one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MassError(Exception):
    """Base of all errors that a user can correct. The text is one line: given, expected, what to do."""


class ConfigError(MassError):
    """A configuration value or key that cannot be used."""


class DataError(MassError):
    """A data file or a task that cannot be used; names the file and the line."""


class ModelError(MassError):
    """A model folder, tokenizer or checkpoint that cannot be used."""


class ShapeError(MassError, ValueError):
    """A tensor whose shape does not fit; gives the expected and the received shape."""


class EngineError(MassError):
    """A sampling server that cannot be used: unreachable, refusing, too slow, or answering wrongly."""


class RunError(MassError):
    """A run folder that cannot be written, or must not be overwritten."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a phrase with the known name closest to `name`, `; did you mean 'steps'?`, or with all names when none
    is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
