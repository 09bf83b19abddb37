"""Prompts on the command line: printed, changed, given back, and kept with what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mass.lm.prompts import CHATS, PLAIN, PLAINS
from mass.lm.prompts_file import complete, parse

OWN = "=== solve\nTask: {problem}\nSteps:\n=== solve choice\nPick: {problem}\nSteps:\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.txt").write_text(OWN)
    return tmp_path / "own.txt"


def test_the_defaults_are_printed_as_a_file(run: Callable, fails: Callable, tmp_path: Path) -> None:
    assert complete(parse(run("prompts").out), chat=False) == CHATS
    printed = run("prompts", "--form", "plain").out
    assert complete(parse(printed), chat=True) == PLAINS
    (tmp_path / "mine.txt").write_text(printed)
    assert "is whole; it sets: solve, synthesis" in run("prompts", "--check", tmp_path / "mine.txt").out
    (tmp_path / "mine.txt").write_text("=== solve\nx")
    assert "'solve' has no {problem}" in fails("prompts", "--check", tmp_path / "mine.txt")
    assert "cannot be read" in fails("solve", "x", "--model.prompts", tmp_path / "none.txt")


def test_given_prompts_ask_and_are_kept_in_the_record(solve: Callable, own: Path) -> None:
    plain = json.loads(solve("2 + 2?", "--json").out)["adaptation"]
    assert (plain["kind"], plain["prompts"]["solve"]) == ("math", PLAIN.solve)
    ran = solve("2 + 2?", "--json", "--model.prompts", own, "--kind", "choice")
    record = json.loads(ran.out)["adaptation"]
    assert (record["kind"], record["prompts"]["solve"]) == ("choice", "Pick: {problem}\nSteps:")
    own.with_name("record.json").write_text(ran.out)
    again = solve("--json", "--replay", own.with_name("record.json"))
    assert json.loads(again.out)["text"] == record["text"], "the replay asks as the record was asked"


def test_a_checkpoint_brings_its_prompts_and_others_are_said(
    run: Callable, fails: Callable, checkpoint: Path, tiny_base: Path, own: Path
) -> None:
    base = ("--model", tiny_base, "--checkpoint", checkpoint, "--json")
    assert complete(parse(run("prompts", "--checkpoint", checkpoint).out), chat=True) == PLAINS
    assert run("solve", "2 + 2?", *base).err == ""
    other = run("solve", "2 + 2?", *base, "--model.prompts", own)
    assert "The prompts are not those that" in other.err
    description = json.loads((checkpoint / "mass.json").read_text())
    description["prompts"]["math"]["solve"] = "Mine: {problem}"
    (checkpoint / "mass.json").write_text(json.dumps(description))
    ran = run("solve", "2 + 2?", *base)
    assert (ran.err, json.loads(ran.out)["adaptation"]["prompts"]["solve"]) == ("", "Mine: {problem}")
    del description["prompts"]
    (checkpoint / "mass.json").write_text(json.dumps(description))
    assert run("solve", "2 + 2?", *base).err == "", "one from before prompts were kept"
    assert "does not say with which prompts" in fails("prompts", "--checkpoint", checkpoint)


def rows(path: Path, *made: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_eval_takes_a_verifier_and_asks_by_kind(run: Callable, tiny_base: Path, own: Path, tmp_path: Path) -> None:
    tasks = rows(tmp_path / "t.jsonl", {"problem": "2 + 2?", "answer": "4"}, {"problem": "1 + 1?", "answer": "2"})
    judge = tmp_path / "judge.py"
    judge.write_text("def always(task, text):\n    return True\n")
    short = ("--methods", "base", "--answer.max_new_tokens", "4", "--model", tiny_base, "--json")
    ran = run("eval", "--tasks", tasks, "--tasks.verifier", f"{judge}:always", *short, "--out", tmp_path / "out")
    found = json.loads(ran.out)
    assert found["rows"][0]["accuracy"] == 1.0
    assert found["config"]["prompts"]["kind"] == "other"
    ran = run(
        "eval",
        "--tasks",
        tasks,
        "--model.prompts",
        own,
        "--tasks.verifier",
        "choice",
        *short,
        "--out",
        tmp_path / "again",
    )
    asked = json.loads(ran.out)["config"]["prompts"]
    assert (asked["kind"], asked["asked"]["solve"]) == ("choice", "Pick: {problem}\nSteps:")


def test_programs_do_not_vote(fails: Callable, tiny_base: Path, tmp_path: Path) -> None:
    tasks = rows(
        tmp_path / "t.jsonl", {"text": "Write f.", "code": "def f(): pass", "test_list": ["assert f() is None"]}
    )
    said = fails("eval", "--tasks", tasks, "--methods", "base,maj@4", "--model", tiny_base, "--out", tmp_path / "out")
    assert "maj@4 votes on final answers, and a program has none" in said
