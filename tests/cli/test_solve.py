"""mass solve: what it prints, what it leaves, and what it says of bad input."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mass.types import Example

PRACTICE = (Example("What is 1 + 1?", "1+1=2. Answer: 2"), Example("What is 2 + 3?", "Answer: 5"))


@pytest.fixture
def practises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random model writes nothing that parses; let synthesis give practice all the same."""
    import mass.adaptation.synthesis

    monkeypatch.setattr(
        mass.adaptation.synthesis, "synthesise", lambda _, problems, *__, **___: [PRACTICE for _ in problems]
    )


def write_tasks(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.usefixtures("practises")
def test_json_is_one_object_and_nothing_else(solve: Callable) -> None:
    ran = solve("What is 3 + 4?", "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert list(data) == ["text", "answer", "adaptation"]
    assert [e["problem"] for e in data["adaptation"]["examples"]] == [e.problem for e in PRACTICE]
    assert all(e["loss_after"] < e["loss_before"] for e in data["adaptation"]["examples"])
    assert ran.out.count("\n") == 1


@pytest.mark.usefixtures("practises")
@pytest.mark.parametrize("whole", [True, False])
def test_replay_gives_the_same_text_and_update(solve: Callable, tmp_path: Path, whole: bool) -> None:
    first = json.loads(solve("What is 3 + 4?", "--json", "--seed", "7", "--adapt.inner.steps=3").out)
    (tmp_path / "record.json").write_text(json.dumps(first if whole else first["adaptation"]))
    again = json.loads(solve("--json", "--replay", tmp_path / "record.json").out)
    assert again["text"] == first["text"]
    assert again["adaptation"]["adapter_hash"] == first["adaptation"]["adapter_hash"]
    assert again["adaptation"]["config"]["inner"]["steps"] == 3


@pytest.mark.usefixtures("practises")
def test_replay_finds_model_checkpoint_rate_and_precision_in_the_record(
    run: Callable, tiny_base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    short = ("--adapt.answer.max_new_tokens=8",)
    for name, made in (
        ("rate", ("--adapt.inner.learning_rate=0.7", "--model.dtype=bfloat16", *short)),
        ("trained", ("--checkpoint", checkpoint)),
    ):
        ran = run("solve", "What is 3 + 4?", "--json", "--model", tiny_base, *made)
        first = json.loads(ran.out)
        (tmp_path / name).write_text(ran.out)
        replayed = run("solve", "--json", "--replay", tmp_path / name)
        assert replayed.code == 0, replayed.err
        again = json.loads(replayed.out)
        assert again["adaptation"]["adapter_hash"] == first["adaptation"]["adapter_hash"]
        assert again["text"] == first["text"]
    wrong = run("solve", "--replay", tmp_path / "rate", "--model.dtype", "float32")
    assert "was made on base" in wrong.err


@pytest.mark.usefixtures("practises")
def test_replay_of_changed_practice_is_refused(
    solve: Callable, tmp_path: Path, fails: Callable, tiny_base: Path
) -> None:
    record = json.loads(solve("What is 3 + 4?", "--json").out)
    record["adaptation"]["examples"][0]["solution"] = "Answer: 3"
    (tmp_path / "record.json").write_text(json.dumps(record))
    said = fails("solve", "--model", tiny_base, "--replay", tmp_path / "record.json")
    assert "the replayed update differs" in said


def test_a_number_that_json_lacks_is_null_and_reads_back(tmp_path: Path) -> None:
    import math

    from mass.cli import records
    from mass.config import AdaptConfig, to_dict
    from mass.types import Adaptation, Solution

    record = Adaptation("p", "m", 0, to_dict(AdaptConfig()), "h", fallback="non-finite update", update_norm=math.nan)
    text = records.to_json(Solution("t", None, record))
    assert "NaN" not in text
    (tmp_path / "r.json").write_text(text)
    assert math.isnan(records.read(tmp_path / "r.json").update_norm)


@pytest.mark.usefixtures("practises")
def test_the_gate_s_decision_is_shown_and_replayed(solve: Callable, tmp_path: Path) -> None:
    ran = solve("What is 3 + 4?", "--adapt.gate.enabled", "true", "--adapt.gate.max_surprise", "0")
    assert "Fell back to the unadapted answer: practice unlike the model's own." in ran.out
    assert "gate: practice unlike the model's own  update norm " in ran.out
    some = ("--adapt.gate.enabled", "true", "--adapt.gate.max_least_loss", "null", "--adapt.gate.max_drift", "0")
    stored = solve("What is 3 + 4?", *some, "--json")
    gate = json.loads(stored.out)["adaptation"]["gate"]
    assert (gate["adapt"], gate["reason"]) == (False, "drift on canaries")
    assert gate["measures"]["drift"] > 0
    (tmp_path / "record.json").write_text(stored.out)
    again = solve("--json", "--replay", tmp_path / "record.json")
    assert json.loads(again.out)["adaptation"]["gate"] == gate
    assert "gate:" not in solve("What is 3 + 4?").out
    missing = solve("What is 3 + 4?", *some, "--adapt.gate.canaries", tmp_path / "none")
    assert missing.code == 2
    assert "cannot be read" in missing.err


@pytest.mark.usefixtures("practises")
def test_people_see_practice_answers_and_times(solve: Callable, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", {"problem": "What is 3 + 4?", "answer": "7"})
    ran = solve("--tasks", tasks)
    assert ran.code == 0, ran.err
    for expected in (
        "What is 3 + 4?",
        "2 written, 2 used for 1 gradient step",
        "1+1=2. Answer: 2",
        " → ",
        "0.500",
        "Unadapted answer",
        "Adapted answer",
        "right answer: 7",
        "inner loop",
        "in all",
    ):
        assert expected in ran.out, ran.out
    assert "✗ wrong" in ran.out or "? no verdict" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100
    assert "Loading weights" not in ran.out + ran.err


def test_a_fallback_is_said_plainly(solve: Callable) -> None:
    ran = solve("What is 3 + 4?")
    assert "Fell back to the unadapted answer: no valid example." in ran.out
    assert "not used" in ran.out


def test_markup_in_a_problem_is_text(solve: Callable) -> None:
    assert "[bold]x[/bold] [/nope]" in solve("[bold]x[/bold] [/nope]").out


def test_tasks_print_one_json_object_a_line(solve: Callable, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", {"my_q": "What is 1?", "gold": 1}, {"my_q": "What is 2?", "gold": 2})
    ran = solve("--tasks", tasks, "--tasks.fields", "problem=my_q,answer=gold", "--json", "--out", tmp_path / "out")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["adaptation"]["problem"] for row in rows] == ["What is 1?", "What is 2?"]
    assert all(row["adaptation"]["verdict"] is not None for row in rows)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["0001-t-1.json", "0002-t-2.json"]
    assert [json.loads(file.read_text()) for file in files] == rows


def test_no_adapt(solve: Callable) -> None:
    data = json.loads(solve("What is 3 + 4?", "--no_adapt", "--json").out)
    assert data["adaptation"] is None
    assert "without practice" in solve("What is 3 + 4?", "--no_adapt").out


@pytest.mark.parametrize("arguments", [["-"], []])
def test_standard_input(solve: Callable, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 3 + 4?\n"))
    assert json.loads(solve(*arguments, "--json").out)["adaptation"]["problem"] == "What is 3 + 4?"


@pytest.mark.usefixtures("practises")
def test_save_adapter_writes_a_peft_folder(solve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mass.adaptation.adapt

    stacks: list[object] = []
    whole = mass.adaptation.adapt.adapt_stack
    monkeypatch.setattr(
        mass.adaptation.adapt, "adapt_stack", lambda *args, **named: (stacks.append(args), whole(*args, **named))[1]
    )
    ran = solve("What is 3 + 4?", "--save_adapter", tmp_path / "adapter", "--json")
    assert ran.code == 0
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "adapter written to" in ran.err
    assert len(stacks) == 1, "it is saved from the adaptation that answered"


# --- configuration


def test_defaults_then_checkpoint_then_file_then_option(
    run: Callable, tiny_base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text("adapt: {inner: {momentum: 0.5, weight_decay: 0.25}}")
    ran = run(
        "solve", "--model", tiny_base, "--checkpoint", checkpoint, "--config", tmp_path / "s.yaml",
        "--adapt.inner.momentum", "0.75", "--print_config",
    )  # fmt: skip
    inner = yaml.safe_load(ran.out)["adapt"]["inner"]
    assert (inner["steps"], inner["momentum"], inner["weight_decay"]) == (3, 0.75, 0.25)
    assert inner["optimizer"] == "sgd"


@pytest.mark.parametrize(("option", "value"), [("inner.learning_rate", "0.5"), ("scoring.sharpness", "3")])
def test_what_a_checkpoint_decides_cannot_be_overridden_in_silence(
    fails: Callable, tiny_base: Path, checkpoint: Path, option: str, value: str
) -> None:
    said = fails("solve", "x", "--model", tiny_base, "--checkpoint", checkpoint, f"--adapt.{option}", value)
    assert f"adapt.{option} is given, but checkpoint" in said


# --- bad input


def test_a_missing_model_folder(fails: Callable) -> None:
    assert "model folder './nowhere' does not exist" in fails("solve", "x", "--model", "./nowhere")


def test_a_hub_name_out_of_reach_fails_at_once(fails: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import mass.lm.source

    monkeypatch.setattr(mass.lm.source, "hub_answers", lambda: False)
    said = fails("solve", "x", "--model", "nobody/nothing-1B")
    assert "'nobody/nothing-1B' is not a folder here, is not in the hub's cache, and the hub cannot be reached" in said


def test_an_adapter_of_another_base(fails: Callable, tiny_base: Path, checkpoint: Path) -> None:
    data = json.loads((checkpoint / "mass.json").read_text())
    (checkpoint / "mass.json").write_text(json.dumps({**data, "fingerprint": "0" * 16}))
    assert "was trained on base" in fails("solve", "x", "--model", tiny_base, "--checkpoint", checkpoint)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "t.jsonl has no rows"),
        ('{"problem": "x"}\n{"problem": \n', "t.jsonl, line 2 is not JSON"),
        ('{"prompt": "x"}\n', "t.jsonl, line 1: no problem among the fields 'prompt'"),
        ('{"problem": " "}\n', "line 1: the problem is empty"),
    ],
)
def test_a_bad_task_file(fails: Callable, tmp_path: Path, lines: str, expected: str) -> None:
    (tmp_path / "t.jsonl").write_text(lines)
    assert expected in fails("solve", "--tasks", tmp_path / "t.jsonl", "--model", "./nowhere")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tasks", "none.jsonl"], "none.jsonl is not a file"),
        (["--tasks", "minmath"], "did you mean 'minimath'?"),
        (["--tasks", "minimath", "--tasks.split", "tset"], "did you mean 'test'?"),
        (["--tasks", "minimath", "--tasks.levels", "[6]"], "level 6 is unknown"),
        (["--tasks", "minimath", "x"], "a problem and --tasks are both given"),
        (["--tasks", "t.jsonl", "--tasks.fields", "question"], "--tasks.fields has 'question'; expected name=value"),
        ([""], "the problem is empty"),
        (["  \n"], "the problem is empty"),
        (["x", "--model.dtype", "float33"], "model.dtype is 'float33'; expected one of"),
        (["x", "--model.decode_rows", "0"], "model.decode_rows is 0"),
        (["x", "--model.device", "tpu9"], "model.device is 'tpu9'"),
        (["x", "--seed", "one"], "seed is 'one'; expected int"),
        (["x", "--adapt.inner.steps", "one"], "adapt.inner.steps is 'one'; expected int"),
        (["x", "--replay", "r.json"], "--replay brings its own problem"),
        (["two", "words"], "'words' is one argument too many"),
        (
            ["--save_adapter", "a", "--tasks", "minimath", "--tasks.size", "2"],
            "--save_adapter writes the adapter of one",
        ),
    ],
)
def test_bad_options(fails: Callable, arguments: list[str], expected: str) -> None:
    assert expected in fails("solve", *arguments)


def test_an_overlong_problem(fails: Callable, tiny_base: Path) -> None:
    said = fails("solve", "7 " * 2100, "--model", tiny_base)
    assert "tokens with its prompt" in said
    assert "reads at most 2047" in said


def test_used_and_unwritable_folders(fails: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is in use" in fails("solve", "x", "--out", tmp_path)
    assert "is in use" in fails("solve", "x", "--save_adapter", tmp_path)
    assert "cannot be written (Not a directory)" in fails("solve", "x", "--out", tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no adaptation"),
        ('{"text": "a", "answer": null, "adaptation": null}', "is an answer without practice"),
        ('{"surprise": 1}', "is not a record of an adaptation"),
    ],
)
def test_a_bad_record(fails: Callable, tiny_base: Path, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert expected in fails("solve", "--model", tiny_base, "--replay", tmp_path / "r.json")


def test_a_missing_record(fails: Callable, tiny_base: Path) -> None:
    assert "--replay 'none.json' cannot be read" in fails("solve", "--model", tiny_base, "--replay", "none.json")
