"""Entries of a plan -> points in a run folder, each measured in a process of its own.

The processes of one setting live side by side and idle; a round asks each in turn for one repeat, so that whatever
disturbs the machine disturbs all routes alike, and ratios within a round are fair. Where they are too many, or need too
much memory together, they go in groups, the plain unroll in each. A point is a JSON file, written beside and renamed
once its group is through; what is there already is not measured again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagrad_machine import available_bytes, commit, describe
from metagrad_measure import MEMORY_ENVIRONMENT
from metagrad_plan import Entry, estimated_bytes, estimated_seconds
from metagrad_problem import Setting
from metagrad_routes import BASELINE, ROUTES

from mass.runs.folder import replace_text

SCRIPT = Path(__file__).with_name("metagrad.py")
GIB = 2**30
IDLE_BYTES = 0.4 * GIB
"""What a process holds beside its tensors: libraries and the model."""
GROUP = 7
"""Processes side by side, beside that of the unroll: so many points are lost when a run is broken off."""


@dataclass(frozen=True)
class Options:
    folder: Path
    repeats: int
    threads: int
    max_bytes: float
    """No point may need more."""


class Worker:
    """A process that measures one point, then repeats it on command."""

    def __init__(self, options: Options, setting: Setting, route: str, reference: Path, budget: float | None) -> None:
        self.route = route
        self.log = options.folder / "logs" / f"{_file_name(setting, route)}.log"
        self.log.parent.mkdir(exist_ok=True)
        point = {
            "route": route,
            "setting": setting.to_json(),
            "threads": options.threads,
            "reference": str(reference),
            "budget_bytes": budget,
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "--point", json.dumps(point)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(options.threads),
            )
        self.found = self._read()
        self.seconds: list[float] = []

    def repeat(self, cold: bool) -> None:
        if "unavailable" in self.found or "failed" in self.found or self._process.stdin is None:
            return
        try:
            self._process.stdin.write("cold\n" if cold else "repeat\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._read()
        if "seconds" in reply:
            self.seconds.append(reply["seconds"])
        else:
            self.found = reply

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        last = (self.log.read_text().strip().splitlines() or ["no message"])[-1]
        return {"failed": "killed, out of memory?" if code == -9 else f"exit {code}: {last[:200]}"}

    @property
    def result(self) -> dict[str, Any]:
        for status in ("unavailable", "failed"):
            if status in self.found:
                return {"status": status, "reason": self.found[status]}
        return {"status": "measured", **self.found, "seconds": self.seconds}


def run(entries: Sequence[Entry], options: Options) -> None:
    """Measure what is missing, saying how far it is."""
    replace_text(options.folder / "machine.json", json.dumps(describe(), indent=1) + "\n")
    todo = [entry for entry in entries if not _complete(options, entry)]
    print(f"{len(entries) - len(todo)} of {len(entries)} settings are there already", flush=True)
    guesses = [estimated_seconds(entry, options.repeats) for entry in todo]
    began = time.monotonic()
    for i, entry in enumerate(todo):
        spent, done = time.monotonic() - began, sum(guesses[:i])
        left = sum(guesses[i:]) * (spent / done if done else 1.0)
        print(f"[{i + 1}/{len(todo)}] {entry.setting.key}: about {left / 60:.0f} min left", flush=True)
        _measure(entry, options)


def _measure(entry: Entry, options: Options) -> None:
    """What is missing of an entry, a few routes at a time, the plain unroll with each of them."""
    setting = entry.setting
    reference, unroll_bytes = _reference(setting, options)
    missing = [name for name in entry.routes if not _point_file(options, setting, name).exists()]
    expected = {name: estimated_bytes(ROUTES[name], setting.steps, unroll_bytes) for name in {BASELINE, *missing}}
    for name in [name for name in missing if expected[name] > options.max_bytes]:
        reason = f"needs about {expected[name] / GIB:.1f} GiB, the limit is {options.max_bytes / GIB:.1f}"
        _write(options, setting, name, {"status": "skipped", "reason": reason})
        missing.remove(name)
    for names in _groups(missing, expected):
        together = [*([BASELINE] if expected[BASELINE] <= options.max_bytes else []), *names]
        held = sum(expected[name] + IDLE_BYTES for name in together)
        crowded = setting.device == "cpu" and held > 0.8 * available_bytes()
        workers = _side_by_side(together, setting, options, reference, expected[BASELINE], crowded)
        same_rounds = next((worker.seconds for worker in workers if worker.route == BASELINE), [])
        for worker in workers:
            if not _point_file(options, setting, worker.route).exists():
                _write(options, setting, worker.route, {**worker.result, "baseline_seconds": same_rounds})


def _groups(names: Sequence[str], expected: Mapping[str, float]) -> list[list[str]]:
    """Routes whose processes fit the machine together, beside that of the baseline. The baseline comes first."""
    room = 0.6 * available_bytes() - expected[BASELINE]
    groups: list[list[str]] = [[]]
    for name in names:
        if name == BASELINE:
            continue
        taken = sum(expected[other] + IDLE_BYTES for other in groups[-1])
        if groups[-1] and (len(groups[-1]) == GROUP or taken + expected[name] + IDLE_BYTES > room):
            groups.append([])
        groups[-1].append(name)
    return groups if groups[0] or BASELINE in names else []


def _side_by_side(
    names: Sequence[str], setting: Setting, options: Options, reference: Path, budget: float, crowded: bool
) -> list[Worker]:
    """A process for each route, and their repeats in turn. The unroll's measured memory is the others' budget."""
    workers: list[Worker] = []
    try:
        for name in names:
            worker = Worker(options, setting, name, reference, budget)
            workers.append(worker)
            if name == BASELINE and "live_bytes" in worker.found:
                budget = worker.found["live_bytes"]
            print(f"    {name}: {_said(worker)}", flush=True)
            if crowded and ROUTES[name].graphs:
                worker.repeat(cold=True)  # gives its memory back; the time is not kept
                worker.seconds.clear()
        for turn in range(options.repeats):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                worker.repeat(cold=crowded and ROUTES[worker.route].graphs > 0)
    finally:
        for worker in workers:
            worker.close()
    return workers


def _said(worker: Worker) -> str:
    found = worker.found
    for status in ("unavailable", "failed"):
        if status in found:
            return f"{status}: {found[status]}"
    live, error = found.get("live_bytes"), found.get("error_w")
    return (f"{live / 2**20:.1f} MiB" if live is not None else "") + (f", error {error:.1e}" if error else "")


def _reference(setting: Setting, options: Options) -> tuple[Path, list[float]]:
    """The file of the float64 gradients, and the plain unroll's bytes at 1 and 2 steps."""
    folder = options.folder / "references"
    folder.mkdir(exist_ok=True)
    file, about = folder / f"{setting.key}.pt", folder / f"{setting.key}.json"
    if not about.exists():
        asked = json.dumps({"setting": setting.to_json(), "file": str(file), "threads": options.threads})
        log = options.folder / "logs" / f"{setting.key}-reference.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as errors:
            done = subprocess.run(
                [sys.executable, str(SCRIPT), "--reference", asked],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                check=True,
                env=_environment(options.threads),
            )
        replace_text(about, done.stdout)
    return file, json.loads(about.read_text())["unroll_bytes"]


def _environment(threads: int) -> dict[str, str]:
    single = f"--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads={threads}"
    return {
        **os.environ,
        **MEMORY_ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "XLA_FLAGS": single if threads == 1 else os.environ.get("XLA_FLAGS", ""),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _file_name(setting: Setting, route: str) -> str:
    return f"{setting.key}--{route.replace(', ', '-').replace(' ', '_').replace('/', '_')}"


def _point_file(options: Options, setting: Setting, route: str) -> Path:
    return options.folder / "points" / f"{_file_name(setting, route)}.json"


def _complete(options: Options, entry: Entry) -> bool:
    return all(_point_file(options, entry.setting, name).exists() for name in entry.routes)


def _write(options: Options, setting: Setting, name: str, found: Mapping[str, Any]) -> None:
    about = {"route": name, "setting": setting.to_json(), "key": setting.key, "commit": commit()}
    file = _point_file(options, setting, name)
    file.parent.mkdir(exist_ok=True)
    replace_text(file, json.dumps({**about, "threads": options.threads, **found}, indent=1) + "\n")


def points(folder: Path) -> Iterator[dict[str, Any]]:
    """What a run folder holds."""
    for file in sorted((folder / "points").glob("*.json")):
        yield json.loads(file.read_text())
