"""Which problems a run sees, by their number, and that few of them are enough for any method."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from mass.config import AtTestConfig, LoraConfig, ModelConfig, RunConfig, SamplingConfig, TasksConfig
from mass.errors import ConfigError, DataError
from mass.lm import LM, load_lm
from mass.runs.data import canary_stream, load_tasks, read_problems, task_stream
from mass.runs.folder import RunFolder
from mass.tasks import minimath
from mass.training.trainer import Trainer
from small_lms import small_sums
from small_runs import METHODS, config_for


def test_a_file_is_read_in_a_new_order_each_epoch(sums: Path) -> None:
    stream = task_stream(TasksConfig(source=str(sums)), 0)
    epochs = [[stream(9 * e + i).problem for i in range(9)] for e in range(3)]
    assert all(sorted(epoch) == sorted(t.problem for t in small_sums()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream(4) == task_stream(TasksConfig(source=str(sums)), 0)(4)
    assert [task_stream(TasksConfig(source=str(sums)), 1)(i).problem for i in range(9)] != epochs[0]


def test_minimath_is_endless() -> None:
    stream = task_stream(TasksConfig("minimath"), 0)
    assert stream(10**9).id == "minimath-train-0-1000000000"
    few = task_stream(TasksConfig("minimath", size=5), 0)
    assert len({few(i).problem for i in range(50)}) == 5


# ------------------------------------------------------------------------------- levels and subjects

EASY = TasksConfig("minimath", levels=[1, 2], subjects=["Algebra", "Geometry"])
CELLS = {(subject, level) for subject in ("Algebra", "Geometry") for level in (1, 2)}


def test_an_endless_stream_keeps_to_its_levels_and_subjects() -> None:
    stream = task_stream(EASY, 0)
    assert {(task.subject, task.level) for task in map(stream, range(60))} == CELLS
    assert stream(7) == minimath.task_at("train", 0, 7, EASY.subjects, EASY.levels)
    whole = task_stream(TasksConfig("minimath"), 0)
    assert [whole(n) for n in range(20)] == [minimath.task_at("train", 0, n) for n in range(20)]


def test_canaries_keep_to_the_levels_and_subjects_of_the_tasks() -> None:
    stream = task_stream(EASY, 0)
    drawn = canary_stream(EASY, 0, 4, stream, None)
    for number in range(8):
        found, subject = drawn(number), stream(number).subject
        assert {(task.subject, task.level) for task in found} <= {cell for cell in CELLS if cell[0] != subject}
    alone = dataclasses.replace(EASY, subjects=["Algebra"])
    with pytest.raises(DataError, match="no task has another subject than 'Algebra'"):
        canary_stream(alone, 0, 4, task_stream(alone, 0), None)(0)


def test_training_and_validation_take_levels_of_their_own(plain: LM) -> None:
    config = RunConfig(
        tasks=dataclasses.replace(EASY, size=40), validation=TasksConfig("minimath", split="test", levels=[5])
    )
    problems = read_problems(plain, config)
    assert {(task.subject, task.level) for task in problems.training or ()} == CELLS
    assert {(task.subject, task.level) for task in map(problems.task_at, range(40))} == CELLS
    assert {task.level for task in problems.validation} == {5}
    assert problems.validation == load_tasks(config.validation, config.train.eval_size)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TasksConfig("minimath", levels=[6]), "level 6 is unknown; levels are 1 to 5"),
        (TasksConfig("minimath", subjects=["Algbra"]), "subject 'Algbra' is unknown; did you mean 'Algebra'"),
        (TasksConfig("minimath", split="tset"), "split 'tset' is unknown"),
    ],
)
def test_an_endless_stream_of_what_there_is_not_is_refused_before_the_run(config: TasksConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task_stream(config, 0)


# ------------------------------------------------------------------------------- data efficiency


SIZES = (30, 100, 300, 1000, 3000)


def test_a_smaller_set_of_one_seed_is_part_of_a_larger_one() -> None:
    most = minimath.load("train", SIZES[-1], 0)
    assert len({task.problem for task in most}) == SIZES[-1]
    for size in SIZES:
        assert minimath.load("train", size, 0) == most[:size]
    assert minimath.load("train", 30, 1) != most[:30], "another seed, other problems"


@pytest.fixture(scope="module")
def plain(tiny_base: Path) -> LM:
    """A random model: it reads any problem of minimath, and has nothing to say."""
    return load_lm(ModelConfig(name=str(tiny_base)), LoraConfig(r=2, lora_alpha=4.0))


def config_of(base: Path, method: str, size: int) -> RunConfig:
    config = config_for(base, Path("unused"), method, eval_every=0, tasks_per_step=3)
    short = SamplingConfig(max_new_tokens=6)
    return dataclasses.replace(
        config, tasks=TasksConfig("minimath", size=size), outer=dataclasses.replace(config.outer, sampling=short),
        test=AtTestConfig(3, 2, short),
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [30, 3000])
def test_a_set_of_any_size_is_gone_through_in_whole_epochs(size: int, method: str, plain: LM, tiny_base: Path) -> None:
    task_at = read_problems(plain, config_of(tiny_base, method, size)).task_at
    epochs = [[task_at(epoch * size + i).problem for i in range(size)] for epoch in range(2)]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(t.problem for t in minimath.load("train", size, 0))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_on_thirty_problems(method: str, plain: LM, tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base, method, 30)
    problems = read_problems(plain, config)
    trainer = Trainer(plain, config, problems, RunFolder(tmp_path))
    trainer.step = 9
    assert trainer.outer_step()["gradient norm/theta"] >= 0
    crossed = {problems.task_at(n).problem for n in range(27, 33)}
    assert crossed <= {task.problem for task in minimath.load("train", 30, 0)}
