"""Store the results of `mass train` and `mass eval` as small JSON files that a repository can keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mass.errors import DataError, RunError
from mass.runs import folder as runlog
from mass.runs.folder import COMPARISON, CONFIG, METRICS, RECORDS, RunFolder, json_values, replace_text
from research.results.packing import pack
from research.results.stored import EVALUATION, PRACTICE, ROOM, TRAINING

ROOM_FILE = "headroom.json"
MAX_POINTS = 25
"""Maximum number of points of a training curve; held-out evaluations are all kept."""


def collect(runs: Path, into: Path) -> list[Path]:
    """Store every finished run below `runs` in the part `into`; return the files, in the order of the run folders.

    A run is named after its folder without the seed at the end: `eval/test-0` is evaluation 'test' of seed 0. A file
    with the same name is replaced.

    Raises:
        RunError: There is nothing to store.
        DataError: A run's files cannot be read.
    """
    found = [path for path in sorted({p.parent for p in runs.rglob("*.json")}) if into not in (path, *path.parents)]
    stored = [made for folder in found if (made := store(folder, into)) is not None]
    if not stored:
        raise RunError(
            f"{runs} holds no finished run; give a folder of python -m research study, or with runs of train and eval "
            "in it"
        )
    return stored


def store(folder: Path, into: Path) -> Path | None:
    """Store one run and return its file; None for a folder that is not a run, or a run that is not finished."""
    try:
        if (folder / COMPARISON).is_file():
            return _write(into / EVALUATION, evaluation_of(folder))
        if (folder / ROOM_FILE).is_file():
            return _write(into / ROOM, room_of(folder))
        if (folder / runlog.PRACTICE).is_file():
            return _write(into / PRACTICE, _json(folder / runlog.PRACTICE))
        if (folder / METRICS).is_file() and (folder / CONFIG).is_file():
            training = training_of(folder)
            return None if training is None else _write(into / TRAINING, training)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} cannot be read as a run ({error!r}); run it anew, or leave it out") from error
    return None


def _write(folder: Path, data: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{data['name']}-{data['seed']}.json"
    replace_text(path, json.dumps(json_values(data), separators=(",", ":")) + "\n")
    return path


def _json(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def name_of(folder: Path, seed: int) -> str:
    """Return a run's name: that of its folder without the seed."""
    return folder.name.removesuffix(f"-{seed}") or folder.name


# --- evaluations


def evaluation_of(folder: Path) -> dict[str, Any]:
    """Return the stored form of a comparison's folder."""
    comparison = _json(folder / COMPARISON)
    records: dict[str, list[dict[str, Any]]] = {}
    for record in _records(folder / RECORDS):
        records.setdefault(record["method"], []).append(record)
    training = comparison["config"].get("training", {})
    rows = [_row(row, records[row["method"]], training.get(row["method"], {})) for row in comparison["rows"]]
    first = records[comparison["rows"][0]["method"]]
    kept = ("model", "tasks", "created", "version", "config_hash", "notes")
    return {
        "name": name_of(folder, comparison["seed"]),
        "seed": comparison["seed"],
        **{key: comparison[key] for key in kept},
        "commit": comparison.get("commit"),
        "config": comparison["config"],
        "problems": _problems(first),
        "rows": rows,
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    kept = ("method", "correct", "sampled", "subject", "level")
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            yield {key: record.get(key) for key in kept}


def _problems(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    subjects = [record["subject"] for record in records]
    names = list(dict.fromkeys(subjects)) if all(subjects) else []
    return {
        "subjects": names,
        "subject": pack([names.index(s) for s in subjects], 255) if names else "",
        "level": pack([record["level"] for record in records], 255),
    }


def _row(row: Mapping[str, Any], records: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": row["method"],
        "label": row["label"],
        "training": training,
        "tokens": _short(row["tokens_per_answer"]),
        "seconds": _short(row["seconds_per_answer"]),
        "fallbacks": row["fallbacks"],
        "right": pack([None if r["correct"] is None else int(r["correct"]) for r in records]),
        "sampled": [_sampled(part, [r["sampled"][i] for r in records]) for i, part in enumerate(row["sampled"])],
    }


def _sampled(part: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    n: int = part["samples"]
    judged = [sum(right is not None for right in record["correct"]) for record in records]
    right = [sum(r is True for r in record["correct"]) for record in records]
    votes = [record["majority"] for record in records]
    return {
        "temperature": part["temperature"],
        "samples": n,
        "tokens": _short(part["tokens_per_answer"]),
        "seconds": _short(part["seconds_per_answer"]),
        "right": pack([r if j else None for r, j in zip(right, judged, strict=True)], n),
        **({} if set(judged) == {n} else {"judged": pack([j or None for j in judged], n)}),
        "majority": pack([None if vote is None else int(vote) for vote in votes]),
    }


# --- trainings


def training_of(folder: Path) -> dict[str, Any] | None:
    """Return the stored form of a training's folder; None if it has not reached its last step."""
    train = _json(folder / CONFIG)["train"]
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    rows = {
        row["step"]: row for row in (json.loads(line) for line in lines)
    }  # of two rows for a step, the later one counts
    ordered = [rows[step] for step in sorted(rows)]
    if max(rows, default=0) < train["steps"]:
        return None
    keys = dict.fromkeys(key for row in ordered for key in row if key != "step")
    return {
        "name": name_of(folder, train["seed"]),
        "seed": train["seed"],
        "method": train["method"],
        "steps": train["steps"],
        "curves": {key: _curve(ordered, key) for key in keys if not key.startswith("seconds/")},
        "tokens": _total(ordered, "tokens"),
        "seconds": _total(ordered, "seconds/"),
        "commits": RunFolder(folder).commits(),
    }


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return a curve: held-out values as they are, others as means over equal ranges of steps."""
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    stretch = 1 if key.startswith("eval/") else -(-len(points) // MAX_POINTS) or 1
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [
        (_short(sum(s for s, _ in part) / len(part)), _short(sum(v for _, v in part) / len(part), 6)) for part in parts
    ]


def _total(rows: Sequence[Mapping[str, Any]], start: str) -> float | None:
    """Return the sum over all steps and all keys that begin with `start`; None where there are none."""
    values = [v for row in rows for key, v in row.items() if key.startswith(start) and isinstance(v, int | float)]
    return _short(sum(values), 6) if values else None


# --- headroom


def room_of(folder: Path) -> dict[str, Any]:
    """Return the stored form of what `benchmarks/headroom.py` measured, without answers, subjects and levels."""
    data = _json(folder / ROOM_FILE)
    seed = data["settings"]["seed"]
    points = [_without_groups({k: v for k, v in point.items() if k != "answers"}) for point in data["points"].values()]
    unadapted = {
        key: value if key in ("written", "right") else _without_groups({"row": value})["row"]
        for key, value in data["unadapted"].items()
        if key != "answers"
    }
    return {
        "name": name_of(folder, seed),
        "seed": seed,
        "settings": data["settings"],
        "unadapted": unadapted,
        "points": points,
    }


def _without_groups(point: Mapping[str, Any]) -> dict[str, Any]:
    if "row" not in point:
        return dict(point)
    row = {key: value for key, value in point["row"].items() if not key.startswith("by_")}
    return {**point, "row": row}


def _short(value: float | None, digits: int = 5) -> Any:
    return None if value is None else float(f"{value:.{digits}g}")
