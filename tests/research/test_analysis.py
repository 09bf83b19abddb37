"""The effect of an example alone against an update made by hand, and what is stored of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from research.analysis import analyse
from research.results import collect, read
from research.results.practice import measured, per_problem

from mass.adaptation import adapt, synthesis
from mass.config import AdaptConfig, InnerConfig, SamplingConfig, ScoringConfig, SynthesisConfig
from mass.errors import DataError
from mass.model import Mass, load
from mass.types import Example, Task
from mass.verify import check
from research import analysis
from small_lms import small_sums

SAMPLING = SamplingConfig(max_new_tokens=24)
CONFIG = AdaptConfig(
    SynthesisConfig(4, SAMPLING), ScoringConfig(), InnerConfig(learning_rate=2.0), replace(SAMPLING, temperature=0.0)
)
SOURCE = {"source": "sums.jsonl", "split": None, "seed": 0}
TASKS = small_sums()[:5]


def taught(taught_base: Path, rate: float = 2.0) -> Mass:
    return load(str(taught_base), config=replace(CONFIG, inner=replace(CONFIG.inner, learning_rate=rate)))


def test_the_effect_is_that_of_one_step_on_the_example_alone(
    taught_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = taught(taught_base)
    written: list[tuple[Example, ...]] = []
    synthesise = synthesis.synthesise

    def kept(*args: Any, **kwargs: Any) -> Any:
        groups = synthesise(*args, **kwargs)
        written.extend(groups)
        return groups

    monkeypatch.setattr(adapt.synthesis, "synthesise", kept)
    done: list[tuple[str, int, int]] = []
    found = analyse(model, TASKS, source=SOURCE, seed=3, stack=2, on_progress=lambda *p: done.append(p))
    assert done == [(when, n, 5) for when in ("before", "after") for n in (0, 2, 4, 5)]
    lm, theta = model.lm, model.state.theta
    columns = found["after"]["columns"]
    checked = changed = 0
    for i, (task, group) in enumerate(zip(TASKS, written[5:], strict=True)):
        for j, example in enumerate(group):
            assert columns["valid"][i][j] == int(example.valid)
            if not example.valid:
                assert columns["effect"][i][j] is None
                continue
            params = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
            lm.losses(lm.batch([lm.example_row(example.problem, example.solution)]), params)[0].backward()
            moved = {name: (t - 2.0 * t.grad).detach() for name, t in params.items() if t.grad is not None}
            gold = lm.batch([lm.example_row(task.problem, task.solution)])
            with torch.no_grad():
                effect = float(lm.losses(gold, theta)[0] - lm.losses(gold, moved)[0])
            assert columns["effect"][i][j] == pytest.approx(effect, abs=2e-4)
            prompt = [lm.solve_prompt(task.problem)]
            then, now = (check(task, lm.sample(prompt, CONFIG.answer, [0], p)[0].text).correct for p in (theta, moved))
            assert columns["verdict"][i][j] == int(bool(now)) - int(bool(then))
            checked += 1
            changed += abs(effect) > 1e-3
    assert checked > 8
    assert changed > 4


def test_without_a_step_nothing_has_an_effect_and_weights_are_those_of_the_scorer(taught_base: Path) -> None:
    found = analyse(taught(taught_base, 0.0), TASKS, source=SOURCE)
    for when in ("before", "after"):
        columns = found[when]["columns"]
        assert {e for row in columns["effect"] for e in row} <= {0.0, None}
        assert {e for row in columns["verdict"] for e in row} <= {0, None}
        for weights, valid in zip(columns["weight"], columns["valid"], strict=True):
            assert sum(weights) == pytest.approx(1.0 if any(valid) else 0.0, abs=1e-3)
        assert found[when]["unadapted"] == found[when]["adapted"]
    assert found["before"] == found["after"]  # an untrained checkpoint is its own start
    assert found["before"]["columns"]["correct"][0] == [None] * 4  # nobody can say of a file's problems


def test_what_the_adaptation_does_elsewhere(taught_base: Path) -> None:
    subjects = ("odd", "even")
    tasks = [replace(task, subject=subjects[i % 2]) for i, task in enumerate(TASKS)]
    model, asked = taught(taught_base), list[list[Task]]()
    sample_answers = analysis.sample_answers

    def kept(lm: Any, others: Any, *args: Any) -> Any:
        asked.extend(others)
        return sample_answers(lm, others, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "sample_answers", kept)
        found = analyse(model, tasks, source=SOURCE, seed=3, stack=2, alone=False)["after"]
    assert all(value is None for row in found["columns"]["effect"] for value in row)
    for task, others in zip(tasks, asked[5:], strict=True):
        assert len({other.problem for other in others}) == 2
        assert all(other.subject != task.subject for other in others)
    moved = [any(valid) for valid in found["columns"]["valid"]]
    assert any(moved)
    assert [drift > 1e-6 for drift in found["drift"]] == moved
    lm, greedy = model.lm, replace(model.config.answer, temperature=0.0)
    for others, before in zip(asked[5:], found["others_unadapted"], strict=True):
        samples = lm.sample([lm.solve_prompt(o.problem) for o in others], greedy, [0, 0], model.state.theta)
        assert before == [int(bool(check(o, s.text).correct)) for o, s in zip(others, samples, strict=True)]
    assert np.shape(found["others_adapted"]) == (5, 2)
    still = analyse(taught(taught_base, 0.0), tasks, source=SOURCE, alone=False)["after"]
    assert max(still["drift"]) < 1e-6
    assert still["others_adapted"] == still["others_unadapted"]
    alike = analyse(model, [replace(task, subject="one") for task in TASKS], source=SOURCE, alone=False)
    assert "drift" not in alike["after"]


def test_what_is_analysed_is_stored_and_measured(
    taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = {task.problem: task for task in small_sums()}

    class Stated:
        kind, level = "sum", 1

        def __init__(self, task: Task) -> None:
            self.task: Callable[[], Task] = lambda: task

    monkeypatch.setattr(analysis, "recogniser", lambda _: lambda text: Stated(sums[text]) if text in sums else None)
    found = analyse(taught(taught_base), TASKS, source=SOURCE, name="mine", seed=2)
    folder = tmp_path / "runs" / "some"
    folder.mkdir(parents=True)
    (folder / "practice.json").write_text(json.dumps(found))
    (path,) = collect(tmp_path / "runs", tmp_path / "results" / "learned")
    assert path.name == "mine-2.json"
    stored = read(tmp_path / "results").parts["learned"].practice["mine"]
    columns = found["after"]["columns"]
    valid = np.array(columns["valid"]) == 1
    correct = np.array([[c == 1 for c in row] for row in columns["correct"]])
    expected = [correct[i][valid[i]].mean() if valid[i].any() else np.nan for i in range(5)]
    assert per_problem(stored[2], "after", "correct") == pytest.approx(np.array(expected), nan_ok=True)
    assert measured(stored, "after", "valid").mean == pytest.approx(valid.mean())  # type: ignore[union-attr]
    assert set(columns["same_kind"][0]) <= {1, 0, None}


def test_bad_input_is_one_line(taught_base: Path) -> None:
    model = taught(taught_base)
    with pytest.raises(DataError, match="no problems"):
        analyse(model, [], source=SOURCE)
    with pytest.raises(DataError, match="'a' has neither a solution nor an answer"):
        analyse(model, [Task("1 + 1?", id="a")], source=SOURCE)


def test_the_verb_leaves_a_file_and_says_what_it_found(
    taught_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from research.__main__ import main

    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"problem": t.problem, "answer": t.answer}) + "\n" for t in TASKS))
    out = tmp_path / "out"
    arguments = ["analyse", "--model", str(taught_base), "--tasks", str(file), "--tasks.size", "2", "--out", str(out)]
    assert main([*arguments, "--name", "it"]) == 0
    said = capsys.readouterr()
    assert "before meta-training" in said.out
    assert "valid" in said.out
    assert json.loads((out / "practice.json").read_text())["name"] == "it"
    assert main(arguments) == 2
    assert "is in use" in capsys.readouterr().err


def test_of_an_attempt_only_its_solution_is_judged(taught_base: Path) -> None:
    model = taught(taught_base)
    config = replace(model.config.synthesis, attempts=2)
    model = replace(model, config=replace(model.config, synthesis=config))
    columns = analyse(model, TASKS, source=SOURCE, seed=3, stack=2)["after"]["columns"]
    assert [row[-2:] for row in columns["attempt"]] == [[1, 1]] * len(TASKS)
    assert {value for row in columns["distance"] for value in row[-2:]} == {None}
    assert {value for row in columns["correct"] for value in row[-2:]} <= {0, 1}
