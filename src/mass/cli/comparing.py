"""Run a comparison with a progress display, and print its table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mass.cli import console
from mass.cli.console import LINE_EVERY_S as STAGE_EVERY_S
from mass.cli.console import REFRESH_EVERY_S, progress_bar
from mass.cli.stages import watching
from mass.config import EvalConfig
from mass.timing import duration

if TYPE_CHECKING:
    from mass.evaluation.evaluate import Comparison
    from mass.model import Mass
    from mass.types import Task

LINE_EVERY_S = 5.0
"""Seconds between progress lines where there is no terminal."""


class ComparisonMonitor:
    """Shows the progress of a comparison. Use it as a context manager.

    The time left assumes that all remaining answers take as long as those of the current method, though methods can
    differ a hundredfold.
    """

    def __init__(self, methods: int, screen: Console) -> None:
        self._methods, self._screen = methods, screen
        self._done: dict[str, int] = {}
        self._bar = progress_bar(screen)
        self._task = self._bar.add_task("starting", total=None, left="?")
        self._began = self._said = time.monotonic()
        self._first = 0
        self._at = "starting"
        self._hold = ExitStack()

    def __enter__(self) -> ComparisonMonitor:
        if self._screen.is_terminal:
            self._hold.enter_context(self._bar)
        every_s = REFRESH_EVERY_S if self._screen.is_terminal else STAGE_EVERY_S
        self._hold.enter_context(watching(self._on_stage, every_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.__exit__(kind, error, trace)

    def _on_stage(self, said: str) -> None:
        if self._screen.is_terminal:
            self._bar.update(self._task, description=f"{self._at}: {said}")
        else:
            self._screen.print(f"{self._at}: {said}", markup=False)

    def on_progress(self, method: str, done: int, total: int) -> None:
        """Update the display: `done` of `total` problems of `method` are answered."""
        now = time.monotonic()
        if self._done.get(method) == done:
            return
        if method not in self._done:  # problems done at the first call were done before this process began
            self._began, self._first = now, done
        self._done[method] = done
        answers, of, new = sum(self._done.values()), self._methods * total, done - self._first
        left = duration((now - self._began) / new * (of - answers) if new else None)
        self._at = f"{method} {done}/{total}"
        self._bar.update(self._task, description=method, completed=answers, total=of, left=left)
        if self._screen.is_terminal or not new or (done < total and now - self._said < LINE_EVERY_S):
            return
        self._said = now
        self._screen.print(f"{method} {done}/{total}" + (f"  left {left}" if answers < of else ""), markup=False)


def compare(
    model: Mass,
    tasks: Sequence[Task],
    methods: Sequence[str],
    *,
    config: EvalConfig,
    source: Mapping[str, Any],
    folder: Path,
    resume: bool = False,
    against: str | None = None,
    seed: int = 0,
    checkpoints: Mapping[str, str] | None = None,
    train_tasks: Sequence[Task] | None = None,
) -> Comparison:
    """Run the methods, and leave every answer, the table and its page in the folder."""
    from mass.cli.report import write_comparison_page
    from mass.evaluation.evaluate import evaluate
    from mass.evaluation.methods import check_methods

    names = check_methods(methods)
    with ComparisonMonitor(len(names), console.stderr()) as monitor:
        comparison = evaluate(
            model,
            tasks,
            names,
            checkpoints=checkpoints,
            config=config,
            seed=seed,
            train_tasks=train_tasks,
            source=source,
            out=folder,
            resume=resume,
            against=against,
            on_progress=monitor.on_progress,
        )
    write_comparison_page(folder)
    return comparison


def print_comparison(comparison: Comparison, folder: Path) -> None:
    """Print the tables of a comparison, and where its files are."""
    from mass.cli.report import PAGE
    from mass.report import sampled_tables, terminal_table

    out, data = console.stdout(), comparison.to_dict()
    out.print(terminal_table(data))
    for table in sampled_tables(data):
        out.print()
        out.print(table)
    written = f"\npage with plots: {folder / PAGE}\nevery answer:    {folder / 'records.jsonl'}"
    console.say(written)
