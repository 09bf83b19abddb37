"""Where text goes: results to standard output, progress and notes to standard error."""

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
"""Columns where the output is no terminal and COLUMNS does not say."""

LINE_EVERY_S, REFRESH_EVERY_S = 10.0, 0.5
"""Seconds between two words on how far work is: lines of a file or pipe, and in place on a terminal."""


def stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_width())


def stderr() -> Console:
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Plain text to standard output; a terminal breaks its lines, not we, so that paths and commands can be copied."""
    stdout().print(text, markup=False, soft_wrap=True)


def note(text: str) -> None:
    """The same to standard error."""
    stderr().print(text, markup=False, soft_wrap=True)


def notes(texts: Iterable[str]) -> None:
    for text in texts:
        note(text)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"note: {record.getMessage()}")


def show_package_notes() -> None:
    """From now on what the package says of a model while it loads it is a note. Of several processes the first says
    it for all."""
    package = logging.getLogger("mass")
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(one, _Notes) for one in package.handlers):
        package.addHandler(_Notes())
        package.setLevel(logging.INFO)


def _width() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else PIPE_WIDTH


@contextmanager
def working(what: str) -> Generator[None, None, None]:
    """Say on standard error how far something is that takes its time: a spinner, or now and then a line where that is
    no terminal."""
    from mass.cli.stages import watching

    console = stderr()
    if not console.is_terminal:
        with watching(lambda said: console.print(f"{what}: {said}", markup=False), LINE_EVERY_S):
            yield
        return
    with console.status(what) as status, watching(lambda said: status.update(f"{what}: {said}"), REFRESH_EVERY_S):
        yield


def progress_bar(console: Console) -> Progress:
    """Give its task the field `left`, as `duration` writes it."""
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
    """Time left, from the steps that this process has made."""

    total: int
    clock: Callable[[], float] = time.monotonic
    first: int | None = None
    began: float = field(default=0.0)

    def left_s(self, done: int) -> float | None:
        """Seconds until `total`; None before two steps were seen."""
        if self.first is None:
            self.first, self.began = done, self.clock()
        if done <= self.first:
            return None
        return (self.clock() - self.began) / (done - self.first) * (self.total - done)


def duration(seconds: float | None) -> str:
    """'45 s', '12 min', '3.1 h'; '?' when unknown."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
