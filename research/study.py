"""List the runs that a study consists of, each a command of its own in a folder of its own, and run them.

A study trains checkpoints for each of its seeds, evaluates them, and analyses their practice: many `mass train`, `mass
eval` and `python -m research analyse` commands that differ in a few settings. Finished runs are not repeated, so an
interrupted study continues where it stopped.

    seeds: [0, 1, 2, 3, 4]
    trainings:
      mass: {config: recipes/minimath/mass.yaml}
      mass-first-order: {config: recipes/minimath/mass.yaml, set: {adapt.inner.mode: first_order}}
    evaluations:
      test:
        checkpoints: {mass: mass}          # method of `mass eval` -> training
        set: {methods: "base,tt-ss,mass", tasks.source: minimath, tasks.size: 1000}
    analyses:
      mass: {training: mass, set: {tasks.size: 200}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from mass.errors import ConfigError, nearest
from mass.runs.folder import COMPARISON, CONFIG, PRACTICE, RunFolder


@dataclass(frozen=True)
class TrainingConfig:
    """One `mass train` for each seed."""

    config: str = ""
    """The recipe. Empty: the defaults of `mass train`."""
    set: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options that change the recipe, by their dotted name."""


@dataclass(frozen=True)
class EvaluationConfig:
    """One `mass eval` for each seed."""

    checkpoints: dict[str, str] = field(default_factory=dict[str, str])
    """Method of `mass eval` -> the training whose checkpoint it uses."""
    config: str = ""
    """A YAML file of options of `mass eval`. Empty: its defaults."""
    set: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options that change the file's, by their dotted name."""
    seeds: list[int] | None = None
    """Seeds to run it for. None: all of the study. `[0]` for an evaluation without checkpoints."""


@dataclass(frozen=True)
class AnalysisConfig:
    """One `python -m research analyse` for each seed."""

    training: str
    """The training whose checkpoint's practice is analysed."""
    config: str = ""
    """A YAML file of options of `python -m research analyse`. Empty: its defaults."""
    set: dict[str, Any] = field(default_factory=dict[str, Any])
    """Options that change the file's, by their dotted name."""
    seeds: list[int] | None = None
    """Seeds to run it for. None: all of the study."""


@dataclass(frozen=True)
class StudyConfig:
    """Configuration of `python -m research study`."""

    seeds: list[int] = field(default_factory=lambda: [0])
    """Each training, evaluation and analysis is run once for each seed."""
    trainings: dict[str, TrainingConfig] = field(default_factory=dict[str, TrainingConfig])
    evaluations: dict[str, EvaluationConfig] = field(default_factory=dict[str, EvaluationConfig])
    analyses: dict[str, AnalysisConfig] = field(default_factory=dict[str, AnalysisConfig])

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}; expected at least one, each once")
        for name in (*self.trainings, *self.evaluations, *self.analyses):
            if "/" in name or not name.strip("."):
                raise ConfigError(f"{name!r} names a part of the study; expected a name that a folder can have")
        for name, evaluation in self.evaluations.items():
            for training in evaluation.checkpoints.values():
                self._require(training, f"evaluation {name!r}")
        for name, analysis in self.analyses.items():
            self._require(analysis.training, f"analysis {name!r}")

    def _require(self, training: str, by: str) -> None:
        if training not in self.trainings:
            raise ConfigError(
                f"{by} uses training {training!r}, which the study has not{nearest(training, self.trainings)}"
            )


@dataclass(frozen=True)
class Run:
    """One command of a study."""

    label: str
    """The part of the study it belongs to."""
    seed: int
    verb: str
    arguments: tuple[str, ...]
    folder: Path
    after: tuple[Path, ...] = ()
    """Folders of the runs that must be finished before."""

    @property
    def name(self) -> str:
        """The run's name for messages."""
        return f"{self.label}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """True if the run has produced its result."""
        if self.verb == "train":
            return _trained(self.folder)
        return (self.folder / (COMPARISON if self.verb == "eval" else PRACTICE)).is_file()

    @property
    def command(self) -> list[str]:
        """The words after `python -m`."""
        package = "research" if self.verb == "analyse" else "mass"
        return [package, self.verb, *self.arguments, "--out", str(self.folder), *(["--resume"] if self.begun else [])]

    @property
    def begun(self) -> bool:
        """True if a training or an evaluation can be resumed."""
        return self.verb != "analyse" and (self.folder / CONFIG).is_file()


def runs(study: StudyConfig, folder: Path) -> list[Run]:
    """Return all runs of a study, trainings first, one seed after the other: a study that is stopped early has whole
    seeds."""
    found: list[Run] = []
    for seed in study.seeds:
        for name, training in study.trainings.items():
            options = {"train.seed": seed, "tasks.seed": seed, **training.set}
            arguments = (*_config(training.config), *_options(options))
            found.append(Run(name, seed, "train", arguments, folder / "train" / f"{name}-{seed}"))
        for name, evaluation in study.evaluations.items():
            if evaluation.seeds is None or seed in evaluation.seeds:
                found.append(_evaluation(name, evaluation, seed, folder))
        for name, analysis in study.analyses.items():
            if analysis.seeds is None or seed in analysis.seeds:
                found.append(_analysis(name, analysis, seed, folder))
    return found


def _evaluation(name: str, evaluation: EvaluationConfig, seed: int, folder: Path) -> Run:
    trained = {method: folder / "train" / f"{training}-{seed}" for method, training in evaluation.checkpoints.items()}
    named = ",".join(f"{method}={path}" for method, path in trained.items())
    checkpoints = ["--checkpoints", named] if named else []
    arguments = (*_config(evaluation.config), *_options({"seed": seed, **evaluation.set}), *checkpoints)
    return Run(name, seed, "eval", arguments, folder / "eval" / f"{name}-{seed}", tuple(trained.values()))


def _analysis(name: str, analysis: AnalysisConfig, seed: int, folder: Path) -> Run:
    trained = folder / "train" / f"{analysis.training}-{seed}"
    options = _options({"seed": seed, "name": name, **analysis.set})
    arguments = (*_config(analysis.config), *options, "--checkpoint", str(trained))
    return Run(name, seed, "analyse", arguments, folder / "analyse" / f"{name}-{seed}", (trained,))


def only(found: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Return the runs of some parts, and the trainings that they need.

    Raises:
        ConfigError: A name is not a part's.
    """
    labels = dict.fromkeys(run.label for run in found)
    for name in names:
        if name not in labels:
            raise ConfigError(f"no part of the study is called {name!r}{nearest(name, labels)}")
    needed = {folder for run in found if run.label in names for folder in run.after}
    return [run for run in found if run.label in names or run.folder in needed]


def run_all(
    found: Sequence[Run], execute: Callable[[Run], bool], parallel: int, report: Callable[[int, Sequence[Run]], None]
) -> list[Run]:
    """Run what is not finished, `parallel` at a time, each as soon as the runs it needs are finished.

    Args:
        found: All runs, in their order.
        execute: Runs one command to its end, and returns True if it succeeded. Called from threads.
        parallel: Number of runs at a time.
        report: Called with the number of finished runs and the running ones whenever these change.

    Returns:
        The runs that failed, or could not be run because one they need failed.
    """
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    waiting = [run for run in found if not run.finished]
    done = len(found) - len(waiting)
    under_way: dict[Future[bool], Run] = {}
    failed: list[Run] = []
    with ThreadPoolExecutor(parallel) as pool:
        while waiting or under_way:
            for run in _ready(waiting, found)[: parallel - len(under_way)]:
                waiting.remove(run)
                under_way[pool.submit(execute, run)] = run
            report(done, list(under_way.values()))
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                run = under_way.pop(future)
                done += 1
                if not future.result():
                    failed.append(run)
    return [*failed, *waiting]


def seconds_left(
    to_do: Sequence[Run], took: Mapping[Run, float], under_way: Mapping[Run, float], parallel: int
) -> tuple[float, bool]:
    """Estimate how long the unfinished runs will take.

    A run is expected to take as long as its part took with other seeds, else as long as other runs of its verb; without
    either it is not counted.

    Args:
        to_do: The runs that were not finished at the start.
        took: Seconds of the runs that have ended.
        under_way: Seconds since the running ones began.
        parallel: Number of runs at a time.

    Returns:
        The seconds, and True if they cover all unfinished runs.
    """
    to_come = [run for run in to_do if run not in took]
    expected = {run: _expected(run, took) for run in to_come}
    left = [max(seconds - under_way.get(run, 0.0), 0.0) for run, seconds in expected.items() if seconds is not None]
    return sum(left) / max(min(parallel, len(to_come)), 1), len(left) == len(to_come)


def _expected(run: Run, took: Mapping[Run, float]) -> float | None:
    same_verb = {one: seconds for one, seconds in took.items() if one.verb == run.verb}
    same_part = [seconds for one, seconds in same_verb.items() if one.label == run.label]
    return mean(same_part or same_verb.values()) if same_verb else None


def _ready(waiting: Sequence[Run], found: Sequence[Run]) -> list[Run]:
    """Return the runs whose trainings are finished."""
    finished = {run.folder for run in found if run.finished}
    return [run for run in waiting if finished.issuperset(run.after)]


def _trained(folder: Path) -> bool:
    """Return True if a training has reached its last step."""
    file = folder / CONFIG
    if not file.is_file():
        return False
    latest = RunFolder(folder).latest()
    return latest is not None and latest[0] >= int(json.loads(file.read_text())["train"]["steps"])


def _config(path: str) -> list[str]:
    return ["--config", path] if path else []


def _options(values: Mapping[str, Any]) -> list[str]:
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [f"--{name}={value}" for name, value in words.items()]
