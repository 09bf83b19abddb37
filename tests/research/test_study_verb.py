"""python -m research study: from a file to trained and evaluated checkpoints."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mass.runs.folder import held
from mass.tasks.minimath import SUBJECTS
from study_folders import is_study
from waiting import until


def study_file(base: Path, folder: Path, steps: int = 1) -> Path:
    short = {
        "model.name": str(base), "train.steps": steps, "train.tasks_per_step": 2, "train.eval_size": 2,
        "outer.samples": 2, "adapt.synthesis.examples": 2, "outer.sampling.max_new_tokens": 6,
        "adapt.synthesis.sampling.max_new_tokens": 6, "test.answer.max_new_tokens": 6,
    }  # fmt: skip
    options = {"model": str(base), "methods": "base,mass", "tasks": "minimath", "tasks.size": 2}
    options |= {"answer.max_new_tokens": 6}
    study = {
        "seeds": [1],
        "trainings": {"mine": {"set": short}},
        "evaluations": {"test": {"checkpoints": {"mass": "mine"}, "set": options}},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


@pytest.mark.slow
def test_a_study_trains_evaluates_and_does_nothing_twice(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    arguments = ("study", "--config", study_file(tiny_base, tmp_path), "--out", tmp_path / "out")
    assert run(*arguments, "--dry_run").out.count("to do ") == 2
    ran = run(*arguments)
    assert ran.code == 0, (ran, *[log.read_text() for log in tmp_path.glob("out/*/*.txt")])
    assert "0/2 runs done" in ran.err
    assert "done: 2 runs" in ran.out
    table = json.loads((tmp_path / "out" / "eval" / "test-1" / "comparison.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["base", "mass"]
    assert run(*arguments, "--dry_run").out.count("finished ") == 2
    before = (tmp_path / "out" / "train" / "mine-1" / "metrics.jsonl").stat().st_mtime_ns
    assert run(*arguments).code == 0
    assert (tmp_path / "out" / "train" / "mine-1" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_study_that_is_told_to_end_ends_its_runs(tiny_base: Path, tmp_path: Path) -> None:
    file, out = study_file(tiny_base, tmp_path, steps=10_000), tmp_path / "out"
    command = [sys.executable, "-m", "research", "study", "--config", str(file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as study:
        trained = out / "train" / "mine-1"
        until(lambda: (trained / "metrics.jsonl").is_file() or study.poll() is not None)
        study.terminate()
        _, said = study.communicate()
    assert study.returncode == 130
    assert "the same command goes on" in said
    with held(trained):  # by nobody else any more
        pass


def test_what_fails_is_named_with_its_log(run: Callable, tmp_path: Path) -> None:
    ran = run("study", "--config", study_file(tmp_path / "no-model", tmp_path), "--out", tmp_path / "out")
    assert ran.code == 2
    said = ran.err.strip().splitlines()[-1]
    assert said.startswith("error: 2 of 2 runs did not finish: mine, seed 1")
    assert str(tmp_path / "out" / "train" / "mine-1.log.txt") in said
    assert "no-model" in (tmp_path / "out" / "train" / "mine-1.log.txt").read_text()


RECIPES = Path(__file__).parents[2] / "recipes"
STUDIES = sorted(path for path in RECIPES.rglob("*.yaml") if is_study(path))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_command_of_a_checked_in_study_is_one(
    run: Callable, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    listed = run("study", "--config", path, "--seeds", "[0]", "--out", tmp_path / "out", "--dry_run")
    assert listed.code == 0, listed.err
    commands = [shlex.split(line.split("python -m ", 1)[1])[1:] for line in listed.out.splitlines()]
    assert {"train"} <= {command[0] for command in commands} <= {"train", "eval", "analyse"}
    for command in commands:
        ran = run(*command, "--print_config")
        assert ran.code == 0, (command, ran.err)


def test_the_study_of_hard_problems_is_tested_on_a_level_that_nothing_is_trained_on(
    run: Callable, tmp_path: Path
) -> None:
    listed = run("study", "--config", RECIPES / "minimath-terms" / "hard.yaml", "--out", tmp_path / "out", "--dry_run")
    commands = [shlex.split(line.split("python -m ", 1)[1])[1:] for line in listed.out.splitlines()]
    assert [command[0] for command in commands] == 3 * [*4 * ["train"], "eval", "eval"]
    for command in commands:
        trained = {"--tasks.levels=[1, 2, 3, 4]", "--validation.levels=[1, 2, 3, 4]"}
        tested = {"--tasks.levels=[5]", "--train_tasks.levels=[1, 2, 3, 4]"}
        assert (trained if command[0] == "train" else tested) <= set(command)


def test_the_study_of_unseen_subjects_leaves_out_each_once_and_trains_on_all_others() -> None:
    study = yaml.safe_load((RECIPES / "minimath-terms" / "unseen.yaml").read_text())
    evaluations = study["evaluations"]
    tested = {group: evaluations[group]["set"]["tasks.subjects"] for group in "abc"}
    assert sorted(subject for subjects in tested.values() for subject in subjects) == sorted(SUBJECTS)
    for name, training in study["trainings"].items():
        others = [subject for subject in SUBJECTS if subject not in tested[name[-1]]]
        assert training["set"]["tasks.subjects"] == training["set"]["validation.subjects"] == others
    for name, evaluation in evaluations.items():
        group = name[-1]
        assert evaluation["set"]["tasks.subjects"] == tested[group]
        if name.startswith("likelihood"):  # not trained
            assert "checkpoints" not in evaluation
            continue
        mass, grpo = ("mass-one-step", "solver-grpo-tuned") if name.startswith("tuned") else ("mass", "solver-grpo")
        trained = {"mass": mass, "solver-grpo": grpo, "solver-sft": "solver-sft"}
        assert evaluation["checkpoints"] == {method: f"{run}-{group}" for method, run in trained.items()}


def test_a_study_without_a_folder_is_refused(fails: Callable) -> None:
    assert "--out is missing" in fails("study")
