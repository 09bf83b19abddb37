"""Provide the problems of a run: numbered training problems, validation problems and canaries.

Problem number n is a function of the configuration and n alone. So an interrupted run finds its place again, and
processes that share a step each take their own numbers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mass import tasks as task_sets
from mass.config import RunConfig, TasksConfig, TrainConfig
from mass.errors import DataError
from mass.lm import LM
from mass.lm.prompts import MATH, common_kind
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Task
from mass.verify import has_gold

BEYOND = 1 << 41
"""Training never reaches numbers from here on in minimath's endless stream; canaries are drawn from there."""
ADD_GOLD = "add it to the file, or map the file's own field to it with the option 'fields'"
DRAWS = 50
"""Draws per canary before it is concluded that there are no more."""


@dataclass(frozen=True)
class Problems:
    """The problems that a run is trained and evaluated on."""

    task_at: Callable[[int], Task]
    """Returns training task number n."""
    validation: Sequence[Task]
    skipped: dict[str, float] = field(default_factory=dict[str, float])
    """Number of tasks left out because they do not fit the model's context, by name of the set; empty when all fit."""
    kind: str = MATH
    """The kind of the training problems, which chooses the model's prompts."""
    training: Sequence[Task] | None = None
    """All training tasks; None for an endless stream."""
    canaries: Callable[[int], list[Task]] | None = None
    """Returns problems of other subjects than task number n; None where the run does not use canaries."""


def read_problems(lm: LM, config: RunConfig) -> Problems:
    """Return the tasks of a run, without those that do not fit the model's context: each of them would stop the run.

    Raises:
        DataError: A task lacks the gold that the method needs, or no task fits.
    """
    train, skipped = config.train, dict[str, float]()

    def usable(found: list[Task], kind: str, *, practice: bool, worked: bool = False) -> list[Task]:
        """Return the tasks that fit. `worked`: the solution itself is learned, not only an answer compared with."""
        fitting = [task for task in found if _fits(lm, task, practice=practice, worked=worked)]
        if not fitting:
            raise DataError(
                f"none of the {len(found)} {kind} fits the {lm.context} tokens that {lm.name!r} reads; shorten them "
                "or use a model with a longer context"
            )
        if len(fitting) < len(found):
            skipped[f"skipped {kind}"] = len(found) - len(fitting)
        return fitting

    drawn = None if _endless(config.tasks) else load_tasks(config.tasks)
    kind = common_kind(drawn or ())
    lm = lm.asking(kind)

    def training(found: list[Task]) -> list[Task]:
        check_training_golds(found, train)
        return usable(found, "tasks", practice=train.practises, worked=train.learns_gold)

    def held_out() -> list[Task]:
        found = load_tasks(config.validation, train.eval_size)
        check_validation_golds(found, train)
        return usable(found, "validation tasks", practice=train.adapts)

    found = None if drawn is None else training(drawn)
    task_at = task_stream(config.tasks, train.seed, found)
    canaries = None
    if train.canary_kl:
        canaries = canary_stream(config.tasks, train.seed, train.canary_tasks, task_at, found)
        canaries(0)  # so that a set without canaries is refused before the run begins
    return Problems(task_at, held_out() if train.eval_every else [], skipped, kind, found, canaries)


def check_training_golds(found: Sequence[Task], train: TrainConfig) -> None:
    """Check that every training task has the gold that the method trains on.

    Raises:
        DataError: A task has none.
    """
    if train.learns_gold or train.samples_solutions:
        _check_golds(found, "tasks", train.method, worked=train.learns_gold)


def check_validation_golds(found: Sequence[Task], train: TrainConfig) -> None:
    """Check that the answers to all validation tasks can be judged.

    Raises:
        DataError: A task has no gold.
    """
    _check_golds(found, "validation tasks", train.method, worked=False)


def _check_golds(found: Sequence[Task], kind: str, method: str, *, worked: bool) -> None:
    """`worked` means that the solution itself is learned (or the answer where there is none), not only compared
    with."""
    missing = [task for task in found if not (_has_text(task) if worked else has_gold(task))]
    if missing:
        what = "solution and no answer" if worked else "answer"
        raise DataError(
            f"{missing[0].id!r} of the {kind} has no {what}, which {method} needs ({len(missing)} of {len(found)} have "
            f"none); {ADD_GOLD}"
        )


def _has_text(task: Task) -> bool:
    return bool((task.solution or task.answer).strip())


def note_of_golds(tasks: Sequence[Task]) -> str:
    """Return a note on tasks whose answers cannot be judged, to show before they are answered; empty where all can.

    Raises:
        DataError: None can be judged, so the evaluation would have no verdicts at all.
    """
    missing = [task for task in tasks if not has_gold(task)]
    if not missing:
        return ""
    if len(missing) == len(tasks):
        raise DataError(f"none of the {len(tasks)} tasks has an answer to judge by, as {missing[0].id!r}; {ADD_GOLD}")
    return f"{len(missing)} of {len(tasks)} tasks have no answer to judge by, the first {missing[0].id!r}: no verdict."


def _fits(lm: LM, task: Task, *, practice: bool, worked: bool) -> bool:
    try:
        lm.solve_prompt(task.problem)
        if practice:
            lm.synthesis_prompt(task.problem)
    except DataError:
        return False
    return not worked or lm.example_tokens(task.problem, task.solution or task.answer) <= lm.context


def _endless(config: TasksConfig) -> bool:
    return config.source in minimath.SOURCES and config.size is None


def _task_of_stream(config: TasksConfig, number: int) -> Task:
    return minimath.task_at(config.split, config.seed, number, config.subjects, config.levels, config.source)


def task_stream(config: TasksConfig, seed: int, tasks: Sequence[Task] | None = None) -> Callable[[int], Task]:
    """Return a function that gives training task number n.

    The tasks come from minimath's endless stream, or from a list in a new random order each epoch. The list is `tasks`,
    or all that the configuration names; for an endless stream `tasks` is ignored.
    """
    if _endless(config):
        minimath.check_choice(config.split, config.subjects, config.levels)
        return lambda number: _task_of_stream(config, number)
    found = load_tasks(config) if tasks is None else tasks

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        places = list(range(len(found)))
        # The order is a function of the epoch, not of what was drawn before: a resumed run continues in the same order.
        random.Random(derive(seed, "order", epoch)).shuffle(places)
        return places

    def at(number: int) -> Task:
        epoch, place = divmod(number, len(found))
        return found[order(epoch)[place]]

    return at


def canary_stream(
    config: TasksConfig, seed: int, count: int, task_at: Callable[[int], Task], tasks: Sequence[Task] | None
) -> Callable[[int], list[Task]]:
    """Return a function that gives, for task number n, up to `count` distinct problems of other subjects.

    They are drawn at random from the training tasks. For tasks without a subject, any other problem will do.

    Raises:
        DataError: On a call, if there are none.
    """

    def drawn(rng: random.Random) -> Task:
        if tasks is not None:
            return rng.choice(tasks)
        return _task_of_stream(config, BEYOND + rng.getrandbits(40))

    def at(number: int) -> list[Task]:
        target, rng = task_at(number), random.Random(derive(seed, "canary", number))
        found: dict[str, Task] = {}
        for _ in range(DRAWS * count):
            task = drawn(rng)
            if task.problem != target.problem and (task.subject != target.subject or not task.subject):
                found.setdefault(task.problem, task)
            if len(found) == count:
                break
        if not found:
            raise DataError(
                f"train.canary_kl asks for problems unlike {target.id!r}, and no task has another subject than "
                f"{target.subject!r}; expected several; give tasks of more subjects, or set train.canary_kl to 0"
            )
        return list(found.values())

    return at


def load_tasks(config: TasksConfig, size: int | None = None) -> list[Task]:
    """Load the tasks that a configuration names; `size` is used where the configuration has none."""
    return task_sets.load(
        config.source,
        split=config.split,
        size=config.size or size,
        seed=config.seed,
        fields=config.fields or None,
        verifier=config.verifier,
        part=config.part,
        levels=config.levels,
        subjects=config.subjects,
    )
