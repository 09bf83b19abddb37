"""`study`: run the trainings, evaluations and analyses of a file, each once for each seed, in one folder."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.cli.failures import INTERRUPTED
from mass.config import to_dict
from mass.errors import ConfigError, RunError
from mass.timing import duration
from research import PROGRAM

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from research.study import Run

EXAMPLES = (
    "python -m research study --config recipes/minimath-terms/table.yaml --out runs/table --parallel 2",
    "python -m research study --config recipes/minimath-terms/table.yaml --out runs/table --dry_run",
    "python -m research study --config recipes/minimath-terms/table.yaml --out runs/small --seeds [0] --only test",
)
LOG = "log.txt"


def run(arguments: Sequence[str]) -> int:
    """Run `study` and return its exit code."""
    from research.study import StudyConfig, only, run_all, runs

    given = options.parse(_parser(), arguments)
    study = StudyConfig(**{field.name: getattr(given, field.name) for field in fields(StudyConfig)})
    if given.print_config:
        options.print_yaml(to_dict(study))
        return 0
    if given.out is None:
        raise ConfigError("--out is missing; expected a folder for the study, as in --out runs/table")
    if given.parallel < 1:
        raise ConfigError(f"--parallel is {given.parallel}; expected at least 1")
    found = runs(study, Path(given.out))
    if given.only:
        found = only(found, [name.strip() for name in given.only.split(",")])
    if given.dry_run:
        for one in found:
            console.say(f"{'finished  ' if one.finished else 'to do     '}python -m {shlex.join(one.command)}")
        return 0
    monitor, processes = _Monitor(found, given.parallel), _Processes()
    try:
        with processes.ended_with_this_one():
            failed = run_all(found, processes.execute, given.parallel, monitor.report)
    except KeyboardInterrupt:
        console.note(f"stopped; the same command goes on from what is in {given.out}")
        return INTERRUPTED
    if failed:
        logs = ", ".join(f"{one.name} ({_log(one)})" for one in failed)
        raise RunError(f"{len(failed)} of {len(found)} runs did not finish: {logs}; read their logs and run this again")
    console.say(f"study {given.out} is done: {len(found)} runs")
    return 0


def _parser() -> ArgumentParser:
    from research.study import StudyConfig

    parser = options.make_parser(
        "study",
        "--config STUDY.yaml --out FOLDER [options]",
        "Run a study's trainings, evaluations and analyses, each for each seed; what is finished is not run again.",
        EXAMPLES,
        PROGRAM,
    )
    parser.add_argument("--out", type=str | None, default=None, help="The study's folder; a used one goes on.")
    parser.add_argument("--parallel", type=int, default=1, help="Runs at a time, of one thread each when more than 1.")
    parser.add_argument(
        "--only",
        type=str,
        default="",
        help="Parts to run and what they need, as in full,no-scorer; all by default.",
    )
    parser.add_argument("--dry_run", action="store_true", help="List the commands and which are finished.")
    parser.add_class_arguments(StudyConfig)
    return parser


def _log(one: Run) -> Path:
    """Return the path of a run's log. It is outside the run's folder, since the run needs a new folder."""
    return one.folder.with_name(f"{one.folder.name}.{LOG}")


class _Processes:
    """Runs each command as a process of its own, with its output in a log next to its folder."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def execute(self, one: Run) -> bool:
        """Run one command to its end, and return True if it succeeded."""
        one.folder.parent.mkdir(parents=True, exist_ok=True)
        if one.verb != "train" and one.folder.exists() and not one.begun:  # interrupted, and cannot be resumed
            shutil.rmtree(one.folder)
        # Runs side by side would otherwise each start one thread per core and slow each other down.
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with (
            _log(one).open("a") as log,
            subprocess.Popen(
                [sys.executable, "-m", *one.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads},
            ) as process,
        ):
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        return code == 0 and one.finished

    @contextmanager
    def ended_with_this_one(self) -> Generator[None]:
        """End the study's runs when the study itself is ended by SIGTERM. (Ctrl-C reaches them without this.)

        A run that outlived the study would work in the same folder as the run with which a restarted study resumes.
        """

        def end(*_: object) -> None:
            for process in list(self._running):
                process.terminate()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


class _Monitor:
    """Prints what is done, what is running and how long it will take, one line at each change."""

    def __init__(self, found: Sequence[Run], parallel: int) -> None:
        self._total, self._parallel = len(found), parallel
        self._to_do = [one for one in found if not one.finished]
        self._began: dict[Run, float] = {}
        self._took: dict[Run, float] = {}

    def report(self, done: int, under_way: Sequence[Run]) -> None:
        """Print a line; `done` counts finished runs."""
        from research.study import seconds_left

        now = time.monotonic()
        for one in self._began.keys() - set(under_way):
            self._took.setdefault(one, now - self._began[one])
        for one in under_way:
            self._began.setdefault(one, now)
        if under_way:
            since = {one: now - self._began[one] for one in under_way}
            seconds, whole = seconds_left(self._to_do, self._took, since, self._parallel)
            left = duration(seconds) if whole else f"at least {duration(seconds)}"
            names = "; ".join(f"{one.verb} {one.name}" for one in under_way)
            console.note(f"{done}/{self._total} runs done, left {left if seconds else '?'}, now: {names}")
