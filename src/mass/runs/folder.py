"""Keep a run's folder: resolved configuration, metrics as JSON lines, checkpoints. No file in it is ever half-written.

A checkpoint is written under a hidden name next to its place and renamed when it is complete. So a run that is killed
at any moment resumes from the last complete checkpoint; metrics of later steps are then dropped, and written again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mass.config import to_dict
from mass.errors import RunError

CONFIG, PROVENANCE = "config.json", "provenance.json"
"""Files of a training run or a comparison: its configuration, and the versions and machines it was made with."""
METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
"""Files of a training run."""
COMPARISON, RECORDS = "comparison.json", "records.jsonl"
"""Files of a comparison."""
PRACTICE = "practice.json"
"""File of an analysis."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to the metrics. Numbers that are not finite, which JSON does not have, become null."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(json_values(row), allow_nan=False) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged rows, oldest first."""
        file = self.path / METRICS
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def sessions(self) -> list[dict[str, Any]]:
        """Return the periods in which the run was worked on, as `mass.runs.provenance` notes them, oldest first.
        Empty for runs made before these were noted."""
        file = self.path / PROVENANCE
        return json.loads(file.read_text()) if file.is_file() else []

    def commits(self) -> list[str]:
        """Return the distinct commits of the source at which it was worked on, oldest first; empty where none was
        noted."""
        return list(dict.fromkeys(session["commit"] for session in self.sessions() if session.get("commit")))

    def note(self, session: dict[str, Any]) -> None:
        """Add a period in which the run was worked on."""
        replace_text(self.path / PROVENANCE, json.dumps([*self.sessions(), session], indent=2) + "\n")

    def write_checkpoint(self, step: int, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a hidden folder, then rename it to the checkpoint of the step, replacing one that exists."""
        return self._write(f"step-{step:06d}", write)

    def write_best(self, write: Callable[[Path], None], score: dict[str, Any]) -> None:
        """Keep a checkpoint as the best one, with its score.

        It is written before the checkpoint of its step: a run that is killed between the two comes to that step again.
        """

        def with_score(folder: Path) -> None:
            write(folder)
            (folder / "score.json").write_text(json.dumps(score))

        self._write("best", with_score)

    def best_score(self) -> dict[str, Any] | None:
        """Return the score of the best checkpoint, or None."""
        file = self.checkpoints / "best" / "score.json"
        return json.loads(file.read_text()) if file.exists() else None

    def latest(self) -> tuple[int, Path] | None:
        """Return (step, folder) of the last complete checkpoint, or None."""
        found = sorted(self.checkpoints.glob("step-*"))
        return (int(found[-1].name.removeprefix("step-")), found[-1]) if found else None

    def keep_latest(self, count: int) -> None:
        """Delete all step checkpoints but the last `count`."""
        for old in sorted(self.checkpoints.glob("step-*"))[:-count]:
            shutil.rmtree(old)

    def recover(self) -> None:
        """Restore a checkpoint that was set aside when a kill came between the two renames of a replacement."""
        for old in self.checkpoints.glob(".*.old"):
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not final.exists():
                old.rename(final)

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps after `step`, and a line that a kill cut short."""
        file = self.path / METRICS
        if not file.exists():
            return
        kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
        replace_text(file, "".join(f"{line}\n" for line in kept))

    def _write(self, name: str, write: Callable[[Path], None]) -> Path:
        beside, final = self.checkpoints / f".{name}.tmp", self.checkpoints / name
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        if final.exists():
            # A folder cannot be renamed over another. The old one is set aside and deleted last, so one whole version
            # always exists.
            old = self.checkpoints / f".{name}.old"
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            beside.rename(final)
            shutil.rmtree(old)
        else:
            beside.rename(final)
        return final


def open_run(path: Path, config: Any, *, resume: bool) -> RunFolder:
    """Create a run folder, or open a used one to resume it with the configuration it was started with.

    Raises:
        RunError: As `check_folder`, or the folder cannot be written.
    """
    check_folder(path, config, resume=resume)
    run = RunFolder(path)
    if resume:
        run.recover()
        return run
    try:
        run.checkpoints.mkdir(parents=True)
        replace_text(path / CONFIG, json.dumps(to_dict(config), indent=2))
    except OSError as error:
        raise cannot_be_written(path, error) from error
    return run


def check_folder(path: Path, config: Any, *, resume: bool) -> None:
    """Refuse what `open_run` would refuse, without writing anything; called before a model is loaded.

    Raises:
        RunError: The folder is in use and `resume` is not given, there is nothing to resume, the configuration differs,
            or the folder cannot be read.
    """
    if resume:
        if not is_begun(path, "train"):
            raise RunError(
                f"{path} holds no run to resume; expected its {CONFIG} in it; leave --resume out to start one"
            )
        _same_config(path, to_dict(config), to_dict(type(config)()))
        return
    try:
        used = is_used(path)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    if used:
        raise RunError(f"{path} is in use; a run needs a folder of its own; add --resume, or name another folder")


def is_used(path: Path) -> bool:
    """Return True if the path exists and is not an empty folder."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def is_begun(path: Path, section: str) -> bool:
    """Return True if a folder has a configuration with this section: 'train' for a training run, 'methods' for a
    comparison."""
    file = path / CONFIG
    return file.is_file() and section in json.loads(file.read_text(encoding="utf-8"))


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Create a folder if needed, and keep every other process from working in it while the block runs.

    The lock ends with the process, however that ends. Where the system or the file system has no locks, there is none.

    Raises:
        RunError: Another process holds the folder, or it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    try:
        import fcntl
    except ImportError:  # this system has no such locks
        yield
        return
    # The kernel releases the lock of a killed process, so no stale lock file can block a resume.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is at work in {folder}; wait for it or end it, then do this again"
            ) from error
        except OSError:  # this file system has no locks
            pass
        yield
    finally:
        os.close(handle)


def cannot_be_written(path: Path, error: OSError) -> RunError:
    """Return the error for a folder that cannot be written."""
    return RunError(f"{path} cannot be written ({error.strerror}); name a folder that can with --out")


def _same_config(path: Path, resolved: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse another configuration. An option that did not exist when the run was started counts as its default."""
    saved, usual, current = _flat(json.loads((path / CONFIG).read_text())), _flat(defaults), _flat(resolved)

    def before_of(key: str) -> Any:
        related = any(f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.") for other in saved)
        return saved.get(key) if related else usual.get(key)

    free = ("train.steps", "model.engine.")  # a run may be made longer, and its server may have moved
    different = [key for key in current if before_of(key) != current[key] and not key.startswith(free)]
    if different:
        key = different[0]
        before, now = before_of(key), current[key]
        raise RunError(
            f"{path} was started with {key} = {before!r}, now it is {now!r}; resume with the same configuration "
            "(only train.steps may grow, and model.engine change), or start another run"
        )


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Return (dotted name, value before, value now) of the first difference of two configurations; None where they
    are equal."""
    flat, other = _flat(before), _flat(now)
    keys = (key for key in {**flat, **other} if flat.get(key) != other.get(key))
    return next(((key, flat.get(key), other.get(key)) for key in keys), None)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line).get("step", float("inf")))
    except ValueError:
        return float("inf")


def training_of(folder: Path) -> dict[str, Any]:
    """Return how the checkpoint of a run folder, or in one, was trained: run, seed, steps, and the number of problems.

    Empty where no configuration of a run is found with it. `problems` counts each problem of a data set once, however
    often the run repeats it.
    """
    for run in (folder, *folder.absolute().parents[:2]):
        config = json.loads((run / CONFIG).read_text()) if (run / CONFIG).is_file() else {}
        if "train" in config and "tasks" in config:
            train, size = config["train"], config["tasks"]["size"]
            drawn = train["steps"] * train["tasks_per_step"]
            problems = drawn if size is None else min(size, drawn)
            return {"run": run.name, "seed": train["seed"], "steps": train["steps"], "problems": problems}
    return {}


def replace_text(path: Path, text: str) -> None:
    """Write a file next to `path`, then rename it over `path`.

    A rename within one folder is atomic: a reader, or a run that resumes after a kill, sees the old text or the new
    one.
    """
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    os.replace(beside, path)


def json_values(value: Any) -> Any:
    """Return the value as plain JSON: lists for tuples, and null for a number that is not finite (a lost loss, a
    discarded update)."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in cast("Sequence[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
