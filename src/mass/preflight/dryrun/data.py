"""Read a run's tasks and describe them before training: rows, golds, and problems that both sets share."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mass import verify
from mass.config import RunConfig, TasksConfig
from mass.errors import MassError
from mass.lm.source import hub_answers
from mass.runs.data import check_training_golds, check_validation_golds, load_tasks
from mass.tasks import content_hash, known, minimath
from mass.types import Task

GOLDS = 64
"""Number of tasks of a set whose gold is judged, evenly spread over the set."""
ACCEPTED = 0.95
"""Share of them that has to be accepted: a verifier that rejects golds gives wrong rewards too."""


@dataclass(frozen=True)
class TaskSet:
    """A description of one set."""

    kind: str
    """'tasks' or 'validation'."""
    source: str
    rows: int
    hash: str
    """First 12 hex digits of the hash over the problems; empty for an endless set."""
    checked: int = 0
    refused: tuple[str, ...] = ()
    """Ids of the tasks whose own gold their verifier does not accept, with its reason."""
    tasks: Sequence[Task] = field(default=(), repr=False)


@dataclass(frozen=True)
class Data:
    """Both sets, as far as they could be read, and what is wrong with them."""

    sets: tuple[TaskSet, ...] = ()
    shared: int = 0
    """Number of validation problems that are also trained on."""
    problems: tuple[str, ...] = ()
    """Reasons why the run would not start, or its numbers would mislead, one line each."""

    @property
    def sample(self) -> list[Task]:
        """Tasks spread evenly over both sets."""
        return [task for one in self.sets for task in _spread(one.tasks, GOLDS)]


def examine(config: RunConfig) -> Data:
    """Read the sets, judge a sample of their golds, and look for problems that are in both."""
    sets: list[TaskSet] = []
    problems: list[str] = []
    wanted: list[tuple[str, TasksConfig, int | None]] = [("tasks", config.tasks, None)]
    if config.train.eval_every:
        wanted.append(("validation", config.validation, config.train.eval_size))
    with _without_waiting([which for _, which, _ in wanted]):
        for kind, which, size in wanted:
            try:
                sets.append(_examined(kind, which, size))
                check = check_training_golds if kind == "tasks" else check_validation_golds
                check(sets[-1].tasks, config.train)
            except MassError as error:
                problems.append(f"{kind}: {error}")
    for one in sets:
        if one.checked and len(one.refused) > (1 - ACCEPTED) * one.checked:
            problems.append(
                f"{one.kind}: {len(one.refused)} of {one.checked} golds are not accepted by their own verifier, as "
                f"{one.refused[0]}; correct them, or name another with {one.kind}.verifier"
            )
    shared = _shared(sets) if len(sets) == 2 else 0
    if shared:
        problems.append(
            f"{shared} of the {sets[1].rows} validation problems are trained on; expected none; use another split, or "
            "tasks.part: [0, 0.9] and validation.part: [0.9, 1] of one set"
        )
    return Data(tuple(sets), shared, tuple(problems))


@contextmanager
def _without_waiting(configs: Sequence[TasksConfig]) -> Generator[None, None, None]:
    """Use only cached data sets within the block, if the hub does not answer.

    Otherwise the hub's client would retry for most of a minute, for each set.
    """
    from huggingface_hub import constants

    remote = [c for c in configs if not Path(c.source).expanduser().exists() and known.find(c.source)]
    before = constants.HF_HUB_OFFLINE
    offline = bool(remote) and not before and not hub_answers()
    settings = [constants, sys.modules.get("datasets.config")] if offline else []
    for module in filter(None, settings):
        module.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        loaded = [*settings, sys.modules.get("datasets.config")] if offline else []
        for module in filter(None, loaded):
            module.HF_HUB_OFFLINE = before  # pyright: ignore[reportAttributeAccessIssue]


def _examined(kind: str, config: TasksConfig, size: int | None) -> TaskSet:
    endless = kind == "tasks" and config.size is None and config.source in minimath.SOURCES
    found = load_tasks(config, GOLDS if endless else size)
    sample = [task for task in _spread(found, GOLDS) if task.answer.strip()]
    verdicts = verify.check_all([(task, gold_text(task)) for task in sample])
    refused = [
        f"{task.id} ({verdict.reason[:100]})"
        for task, verdict in zip(sample, verdicts, strict=True)
        if not verdict.correct
    ]
    name = Path(config.source).name if Path(config.source).exists() else config.source
    digest = "" if endless else content_hash(found)[:12]
    return TaskSet(kind, name, 0 if endless else len(found), digest, len(sample), tuple(refused), found)


def gold_text(task: Task) -> str:
    """Return the gold as an answer text that a model could give."""
    return task.solution or task.answer


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    step = max(1.0, len(tasks) / count)
    return [tasks[int(i * step)] for i in range(min(count, len(tasks)))]


def _shared(sets: Sequence[TaskSet]) -> int:
    training = {_normal(task.problem) for task in sets[0].tasks} if sets[0].rows else set[str]()
    return sum(_normal(task.problem) in training for task in sets[1].tasks)


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
