"""Read a folder of stored results into frozen values: evaluations and trainings by part, name and seed.

A part is a folder directly below the given one. The name is the one that a study gives to an evaluation or training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from mass.bootstrap import Values
from mass.errors import DataError
from research.results.packing import unpack

EVALUATION, TRAINING, PRACTICE, ROOM = "eval", "train", "practice", "room"
GREEDY = "greedy"
T = TypeVar("T")


@dataclass(frozen=True)
class StoredRow:
    """One method of one evaluation."""

    method: str
    label: str
    """The method's name, for 'maj@n' with the n that was chosen."""
    training: dict[str, Any]
    """A summary of how its checkpoint was trained (run, method, step, seed, steps, problems); empty for an untrained
    method."""
    outcomes: dict[str, Values]
    """By decoding, 'greedy' or a temperature like '0.6': [P] share of a problem's answers that are right, NaN
    without a verdict. Also 'pass 0.6' and 'maj 0.6': 1 where one of the answers, or the most frequent one, is right."""
    samples: dict[str, int]
    """Number of answers sampled for each problem, by temperature."""
    tokens: dict[str, float]
    """Tokens per answer, by decoding."""
    seconds: dict[str, float]
    """Seconds per answer, by decoding."""
    fallbacks: int


@dataclass(frozen=True)
class Evaluation:
    """One stored evaluation."""

    name: str
    seed: int
    model: str
    tasks: dict[str, Any]
    """Source, split, size, seed and hash of the problems."""
    subjects: tuple[str, ...]
    """[P] subject of each problem; empty where the source names none."""
    levels: tuple[int | None, ...]
    """[P] level of each problem."""
    rows: dict[str, StoredRow]
    """The rows, by method."""
    config: dict[str, Any]
    commit: str | None
    """Commit of the source that answered; None where it was not noted."""


@dataclass(frozen=True)
class Training:
    """One stored training."""

    name: str
    seed: int
    method: str
    steps: int
    curves: dict[str, list[tuple[float, float]]]
    """By metric: (step, value) pairs."""
    tokens: float | None
    """Tokens generated in the whole run; None where the run did not count them."""
    seconds: float | None
    commits: tuple[str, ...]
    """Commits of the source that trained; several if the run was resumed at another; empty where none was noted."""

    @property
    def best(self) -> float | None:
        """The highest accuracy on validation problems, by which the checkpoint is chosen; None if not measured."""
        return max((value for _, value in self.curves.get("eval/accuracy", ())), default=None)


@dataclass(frozen=True)
class Part:
    """The stored results of one part: name -> seed -> result."""

    evaluations: dict[str, dict[int, Evaluation]] = field(default_factory=dict[str, dict[int, Evaluation]])
    trainings: dict[str, dict[int, Training]] = field(default_factory=dict[str, dict[int, Training]])
    practice: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict[str, dict[int, dict[str, Any]]])
    """Analyses written by `python -m research analyse`."""
    rooms: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict[str, dict[int, dict[str, Any]]])
    """Headroom measured by `benchmarks/headroom.py`."""


@dataclass(frozen=True)
class Results:
    """The measurements of finished runs, as `python -m research collect` stored them."""

    folder: Path
    parts: dict[str, Part]
    """The parts by name: table, ablations, ..."""


def is_results(folder: Path) -> bool:
    """Return True if a folder contains stored results."""
    return any(True for kind in (EVALUATION, TRAINING, PRACTICE, ROOM) for _ in folder.glob(f"*/{kind}/*.json"))


REAL = "real"
"""The folder, beside the results of a toy world, of what was measured on real models."""


def read(folder: Path) -> Results:
    """Read all stored results in a folder, and those on real models in the folder `REAL` beside it.

    Raises:
        DataError: A file is not a stored result.
    """
    parts: dict[str, Part] = {}
    beside = folder.parent / REAL
    folders = [folder, *([beside] if beside.is_dir() and beside != folder else [])]
    for path in sorted(p for one in folders for p in one.iterdir() if p.is_dir()):
        part = Part(
            _named(path / EVALUATION, evaluation),
            _named(path / TRAINING, training),
            _named(path / PRACTICE, dict[str, Any]),
            _named(path / ROOM, dict[str, Any]),
        )
        if any((part.evaluations, part.trainings, part.practice, part.rooms)):
            parts[path.name] = part
    return Results(folder, parts)


def _named(folder: Path, make: Callable[[Mapping[str, Any]], T]) -> dict[str, dict[int, T]]:
    found: dict[str, dict[int, T]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
            found.setdefault(data["name"], {})[int(data["seed"])] = make(data)
        except (OSError, ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(
                f"{path} is not a stored result ({error!r}); collect it anew with python -m research collect"
            ) from error
    return {name: dict(sorted(seeds.items())) for name, seeds in found.items()}


def evaluation(data: Mapping[str, Any]) -> Evaluation:
    """Return an evaluation from its JSON."""
    problems = data["problems"]
    names = problems["subjects"]
    return Evaluation(
        name=data["name"],
        seed=int(data["seed"]),
        model=data["model"],
        tasks=data["tasks"],
        subjects=tuple(names[int(place)] for place in unpack(problems["subject"], 255)) if names else (),
        levels=tuple(None if level != level else int(level) for level in unpack(problems["level"], 255)),
        rows={row["method"]: _row(row) for row in data["rows"]},
        config=data.get("config", {}),
        commit=data.get("commit"),
    )


def _row(data: Mapping[str, Any]) -> StoredRow:
    outcomes = {GREEDY: unpack(data["right"])}
    samples, tokens, seconds = dict[str, int](), {GREEDY: data["tokens"]}, {GREEDY: data["seconds"]}
    for part in data["sampled"]:
        name, n = f"{part['temperature']:g}", int(part["samples"])
        right = unpack(part["right"], n)
        judged = unpack(part["judged"], n) if "judged" in part else n
        outcomes |= {
            name: right / judged,
            f"pass {name}": _at_least_one(right),
            f"maj {name}": unpack(part["majority"]),
        }
        samples[name], tokens[name], seconds[name] = n, part["tokens"], part["seconds"]
    return StoredRow(
        data["method"], data["label"], data["training"], outcomes, samples, tokens, seconds, int(data["fallbacks"])
    )


def _at_least_one(right: Values) -> Values:
    some = (right > 0).astype(float)
    some[right != right] = float("nan")
    return some


def training(data: Mapping[str, Any]) -> Training:
    """Return a training from its JSON."""
    curves = {name: [(float(s), float(v)) for s, v in points] for name, points in data["curves"].items()}
    return Training(
        name=data["name"],
        seed=int(data["seed"]),
        method=data["method"],
        steps=int(data["steps"]),
        curves=curves,
        tokens=data["tokens"],
        seconds=data["seconds"],
        commits=tuple(data.get("commits", ())),
    )
