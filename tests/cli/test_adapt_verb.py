"""`mass adapt`, and `mass solve` with --examples or --adapted, as the user types and sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


QUICK = ("--learn.epochs=[1]", "--learn.folds=2")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"input": f"Compute {a} + 1.", "output": str(a + 1)} for a in (1, 2, 3, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"input": "Compute 4 + 1.", "output": "5"}\n{"input": "Compute 5 + 1."}\n')
    return path


def test_a_file_becomes_an_adapter_that_answers(
    run: Run, tiny_base: Path, examples: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    learned = run("adapt", "--examples", examples, "--out", out, "--model", tiny_base, "--learn.method=adapted", *QUICK)
    assert learned.code == 0, learned
    assert "1 example is repeated; each counts once" in learned.out
    assert "loss before → after" in learned.out
    assert f"adapter written to {out}" in learned.err
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "examples.json",
    ]
    answered = run("solve", "--adapted", out, "--tasks", questions, "--json")
    first, second = map(json.loads, answered.out.splitlines())
    assert first["adaptation"]["verdict"]["correct"] is not None
    assert second["adaptation"]["verdict"]["correct"] is None
    assert first["adaptation"]["examples"] == []


def test_what_was_tried_is_shown_and_a_prompt_leaves_no_adapter(
    run: Run, tiny_base: Path, examples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    shown = run("adapt", "--examples", examples, "--out", out, "--model", tiny_base, *QUICK)
    assert shown.code == 0, shown
    for method in ("zero-shot", "in context", "adapted, rate 0.0005, 1 epoch "):
        assert method in shown.out
    other = tmp_path / "prompt"
    said = run("adapt", "--examples", examples, "--out", other, "--model", tiny_base, "--learn.method=in-context")
    assert "nothing was learned" in said.err
    assert [path.name for path in other.iterdir()] == ["examples.json"]


def test_solve_learns_and_answers(run: Run, tiny_base: Path, examples: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    ran = run(
        "solve", "Compute 4 + 1.", "--examples", examples, "--model", tiny_base, "--learn.method=adapted", *QUICK,
        "--out", records,
    )  # fmt: skip
    assert ran.code == 0, ran
    assert "Compute 4 + 1." in ran.out
    assert "adapted, as asked for" in ran.err
    assert len(list(records.iterdir())) == 1


def test_few_shot_tasks_are_compared(run: Run, tiny_base: Path, examples: Path, tmp_path: Path) -> None:
    ran = run(
        "eval", "--tasks", examples, "--tasks.shots=2", "--methods=examples-in-context,examples-adapted", *QUICK,
        "--model", tiny_base, "--out", tmp_path / "eval", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert [row["method"] for row in found["rows"]] == ["examples-in-context", "examples-adapted"]
    assert found["tasks"]["source"] == str(examples)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapt", "--out", "x"], "--examples is missing"),
        (["adapt", "--examples", "{examples}"], "--out is missing"),
        (["adapt", "--examples", "no.jsonl", "--out", "{new}"], "no.jsonl is not a file"),
        (["adapt", "--examples", "{examples}", "--out", "{new}", "--learn.epochs=[8,4]"], "rising numbers"),
        (["adapt", "--examples", "{examples}", "--out", "{new}", "--budget_s=0"], "budget_s is 0"),
        (["solve", "x", "--examples", "{examples}", "--no_adapt"], "--no_adapt and --examples are both given"),
        (["solve", "x", "--adapted", "x", "--save_adapter", "{new}"], "--save_adapter and --adapted are both given"),
        (["solve", "x", "--examples", "{examples}", "--adapted", "x"], "--examples and --adapted are both given"),
        (["eval", "--tasks", "{examples}", "--tasks.shots=2", "--tasks.levels=[1]"], "not for few-shot tasks"),
        (["eval", "--tasks", "{examples}", "--tasks.shots=9"], "9 examples of 4 rows; expected 1 to 3"),
        (["solve", "x", "--adapted", "nowhere"], "nowhere has no examples.json"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    fails: Callable[..., str], examples: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    filled = [part.format(examples=examples, new=tmp_path / "new") for part in arguments]
    assert said in fails(*filled)
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())
