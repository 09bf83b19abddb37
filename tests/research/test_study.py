"""A study's file -> commands, their order, and what is not run again."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from research.study import (
    AnalysisConfig,
    EvaluationConfig,
    Run,
    StudyConfig,
    TrainingConfig,
    only,
    run_all,
    runs,
    seconds_left,
)

from mass.errors import ConfigError
from mass.runs.folder import COMPARISON, CONFIG, PRACTICE

STUDY = StudyConfig(
    seeds=[0, 3],
    trainings={
        "mass": TrainingConfig("mass.yaml"),
        "first-order": TrainingConfig("mass.yaml", {"adapt.inner.mode": "first_order", "train.gamma": 0.5}),
    },
    evaluations={
        "test": EvaluationConfig({"mass": "mass"}, set={"methods": "base,mass", "tasks.size": 10}),
        "base": EvaluationConfig(set={"methods": "base"}, seeds=[0]),
    },
    analyses={"practised": AnalysisConfig("mass", set={"tasks.size": 5}, seeds=[3])},
)


def finish(run: Run, steps: int = 2) -> None:
    """Leave what a finished run of that verb leaves."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.verb != "train":
        (run.folder / {"eval": COMPARISON, "analyse": PRACTICE}[run.verb]).write_text("{}")
        return
    (run.folder / CONFIG).write_text(json.dumps({"train": {"steps": 2}}))
    (run.folder / "checkpoints" / f"step-{steps:06d}").mkdir(parents=True, exist_ok=True)


def test_each_part_is_a_command_for_each_seed(tmp_path: Path) -> None:
    found = runs(STUDY, tmp_path)
    assert [run.name for run in found] == [
        "mass, seed 0", "first-order, seed 0", "test, seed 0", "base, seed 0",
        "mass, seed 3", "first-order, seed 3", "test, seed 3", "practised, seed 3",
    ]  # fmt: skip
    assert found[5].command == [
        "mass", "train", "--config", "mass.yaml", "--train.seed=3", "--tasks.seed=3", "--adapt.inner.mode=first_order",
        "--train.gamma=0.5", "--out", str(tmp_path / "train" / "first-order-3"),
    ]  # fmt: skip
    assert found[6].command == [
        "mass", "eval", "--seed=3", "--methods=base,mass", "--tasks.size=10", "--checkpoints",
        f"mass={tmp_path / 'train' / 'mass-3'}", "--out", str(tmp_path / "eval" / "test-3"),
    ]  # fmt: skip
    assert found[7].command == [
        "research", "analyse", "--seed=3", "--name=practised", "--tasks.size=5", "--checkpoint",
        str(tmp_path / "train" / "mass-3"), "--out", str(tmp_path / "analyse" / "practised-3"),
    ]  # fmt: skip
    assert len({run.folder for run in found}) == len(found)


def test_a_training_that_was_begun_goes_on(tmp_path: Path) -> None:
    training = runs(STUDY, tmp_path)[0]
    assert (training.finished, training.command[-1]) == (False, str(training.folder))
    finish(training, steps=1)
    assert (training.finished, training.command[-1]) == (False, "--resume")
    finish(training, steps=2)
    assert training.finished


def test_an_evaluation_that_was_begun_goes_on(tmp_path: Path) -> None:
    evaluation = next(run for run in runs(STUDY, tmp_path) if run.verb == "eval")
    assert "--resume" not in evaluation.command
    evaluation.folder.mkdir(parents=True)
    (evaluation.folder / CONFIG).write_text("{}")
    assert (evaluation.finished, evaluation.command[-1]) == (False, "--resume")


@pytest.mark.parametrize("parallel", [1, 3])
def test_runs_wait_for_what_they_need_and_what_is_finished_is_not_run_again(tmp_path: Path, parallel: int) -> None:
    found, order, lock = runs(STUDY, tmp_path), list[str](), threading.Lock()
    finish(found[1])
    busy, most = 0, 0

    def execute(run: Run) -> bool:
        nonlocal busy, most
        with lock:
            order.append(run.name)
            busy += 1
            most = max(most, busy)
        assert all(other.finished for other in found if other.folder in run.after)
        finish(run)
        with lock:
            busy -= 1
        return True

    assert run_all(found, execute, parallel, lambda *_: None) == []
    assert sorted(order) == sorted(run.name for run in found if run.name != "first-order, seed 0")
    assert most <= parallel
    if parallel == 1:
        assert order == [run.name for run in found if run.name != "first-order, seed 0"]
    assert run_all(found, execute, parallel, lambda *_: None) == []
    assert len(order) == 7


def test_what_fails_stops_only_what_needs_it(tmp_path: Path) -> None:
    found, reported = runs(STUDY, tmp_path), list[tuple[int, list[str]]]()

    def execute(run: Run) -> bool:
        if run.name == "mass, seed 3":
            return False
        finish(run)
        return True

    def report(done: int, under_way: Sequence[Run]) -> None:
        reported.append((done, [run.name for run in under_way]))

    failed = run_all(found, execute, 1, report)
    assert [run.name for run in failed] == ["mass, seed 3", "test, seed 3", "practised, seed 3"]
    assert reported[0] == (0, ["mass, seed 0"])
    assert reported[-1] == (6, [])


def test_some_parts_are_chosen_with_what_they_need(tmp_path: Path) -> None:
    found = runs(STUDY, tmp_path)
    assert [run.name for run in only(found, ["practised", "base"])] == [
        "base, seed 0", "mass, seed 3", "practised, seed 3",
    ]  # fmt: skip
    assert only(found, ["first-order"]) == [found[1], found[5]]
    with pytest.raises(ConfigError, match="no part of the study is called 'tests'; did you mean 'test'"):
        only(found, ["tests"])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"seeds": []}, "expected at least one"),
        ({"seeds": [1, 1]}, "each once"),
        ({"trainings": {"a/b": TrainingConfig()}}, "a name that a folder can have"),
        (
            {"trainings": {"mass": TrainingConfig()}, "evaluations": {"t": EvaluationConfig({"mass": "mas"})}},
            "uses training 'mas', which the study has not; did you mean 'mass'",
        ),
        (
            {"trainings": {"mass": TrainingConfig()}, "analyses": {"p": AnalysisConfig("mas")}},
            "analysis 'p' uses training 'mas', which the study has not; did you mean 'mass'",
        ),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(values: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        StudyConfig(**values)


def test_the_time_left_is_told_from_the_same_part_else_from_the_same_verb(tmp_path: Path) -> None:
    mass_0, first_order_0, test_0, base_0, mass_3, first_order_3, test_3 = found = runs(STUDY, tmp_path)[:7]
    assert seconds_left(found, {}, {mass_0: 5.0}, 2) == (0.0, False)
    assert seconds_left(found, {mass_0: 60.0}, {first_order_0: 20.0}, 2) == ((40.0 + 60.0 + 60.0) / 2, False)
    took = {mass_0: 60.0, first_order_0: 30.0, test_0: 10.0, base_0: 2.0}
    assert seconds_left(found, took, {}, 1) == (60.0 + 30.0 + 10.0, True)
    assert seconds_left(found, {**took, mass_3: 60.0, first_order_3: 30.0}, {test_3: 12.0}, 8) == (0.0, True)
