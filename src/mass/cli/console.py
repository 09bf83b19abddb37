"""Print results to standard output, and progress and notes to standard error."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PIPE_WIDTH = 100
"""Columns used where the output is not a terminal and COLUMNS is not set."""

LINE_EVERY_S, REFRESH_EVERY_S = 10.0, 0.5
"""Seconds between two progress reports: lines in a file or pipe, and updates in place on a terminal."""


def stdout() -> Console:
    """Return a console for standard output."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_width())


def stderr() -> Console:
    """Return a console for standard error."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print plain text to standard output. Lines are not broken here, so that paths and commands can be copied."""
    stdout().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """Print plain text to standard error, without breaking lines."""
    stderr().print(text, markup=False, soft_wrap=True)


def notes(texts: Iterable[str]) -> None:
    """Print several texts to standard error."""
    for text in texts:
        note(text)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"note: {record.getMessage()}")


def show_package_notes() -> None:
    """Print what the package logs while it loads a model as notes. With several processes, only the first one
    prints."""
    package = logging.getLogger("mass")
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(one, _Notes) for one in package.handlers):
        package.addHandler(_Notes())
        package.setLevel(logging.INFO)


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else PIPE_WIDTH


@contextmanager
def working(what: str) -> Generator[None, None, None]:
    """Show on standard error that something is in progress: with a spinner, or with a line now and then where there
    is no terminal."""
    from mass.cli.stages import watching

    console = stderr()
    if not console.is_terminal:
        with watching(lambda said: console.print(f"{what}: {said}", markup=False), LINE_EVERY_S):
            yield
        return
    with console.status(what) as status, watching(lambda said: status.update(f"{what}: {said}"), REFRESH_EVERY_S):
        yield


def progress_bar(console: Console) -> Progress:
    """Return a progress bar. Its task needs the field `left`, as `duration` writes it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left {task.fields[left]}"),
        console=console,
        transient=True,
    )


@dataclass
class Pace:
    """Estimates the time left from the steps that this process has made."""

    total: int
    clock: Callable[[], float] = time.monotonic
    first: int | None = None
    began: float = field(default=0.0)

    def left_s(self, done: int) -> float | None:
        """Return the seconds until `total`; None before two steps were seen."""
        if self.first is None:
            self.first, self.began = done, self.clock()
        if done <= self.first:
            return None
        return (self.clock() - self.began) / (done - self.first) * (self.total - done)
