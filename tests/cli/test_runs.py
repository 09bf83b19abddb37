"""The verbs that leave a folder behind: train, pretrain, eval, demo, report."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mass.cli.console import Pace
from mass.cli.training import Monitor, plain_line
from mass.evaluation import runner as running
from mass.runs.folder import held
from mass.tasks import minimath
from mass.timing import duration

METRICS = {
    "step": 2,
    "outer loss": 0.5,
    "reward": 0.25,
    "valid": 0.75,
    "inner rate": 0.1,
    "tokens": 1200.0,
    "seconds/synthesis": 1.5,
    "seconds/outer": 0.5,
    "eval/accuracy": 0.4,
    "eval/unadapted accuracy": 0.3,
}


def small_run(base: Path, out: Path, steps: int = 2) -> list[str | Path]:
    return [
        "train", "--model.name", base, "--out", out, "--train.steps", str(steps), "--train.tasks_per_step", "2",
        "--train.eval_size", "2", "--train.checkpoint_every", "1", "--outer.samples", "2", "--adapt.synthesis.examples",
        "2", "--outer.sampling.max_new_tokens=6", "--adapt.synthesis.sampling.max_new_tokens=6",
        "--test.answer.max_new_tokens=6",
    ]  # fmt: skip


def test_train_reports_each_step_and_leaves_a_page(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    ran = run(*small_run(tiny_base, tmp_path / "run"))
    assert ran.code == 0, ran.err
    lines = ran.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 0/2", "step 1/2", "step 2/2"]
    assert "reward" in lines[1]
    assert "held-out accuracy, adapted" in lines[0]
    assert str(tmp_path / "run" / "report.html") in ran.out
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_train_says_what_it_leaves_out(run: Callable, fails: Callable, tiny_base: Path, tmp_path: Path) -> None:
    short, long = {"problem": "What is 1?", "answer": "1"}, {"problem": "What is 1? " * 2000, "answer": "1"}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(short)}\n{json.dumps(long)}\n")
    files = ["--tasks.source", tmp_path / "t.jsonl", "--validation.source", tmp_path / "t.jsonl"]
    ran = run(*small_run(tiny_base, tmp_path / "run", steps=1), *files)
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[:2] == [
        "1 tasks left out: they do not fit the model's context",
        "1 validation tasks left out: they do not fit the model's context",
    ]
    (tmp_path / "t.jsonl").write_text(json.dumps({"problem": "What is 1?", "solution": "It is 1."}))
    assert "'t-1' of the tasks has no answer" in fails(*small_run(tiny_base, tmp_path / "other"), *files)
    assert not (tmp_path / "other").exists()


def test_train_refuses_a_used_folder_and_resumes_when_told(
    run: Callable, fails: Callable, tiny_base: Path, tmp_path: Path
) -> None:
    first = small_run(tiny_base, tmp_path / "run", steps=1)
    assert run(*first).code == 0
    assert "is in use" in fails(*first)
    assert run(*small_run(tiny_base, tmp_path / "run", steps=2), "--resume").code == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]


def test_ctrl_c_leaves_a_run_that_the_said_command_resumes(
    run: Callable, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Monitor.on_step

    def interrupted(self: Monitor, metrics: Any) -> None:
        shown(self, metrics)
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Monitor, "on_step", interrupted)
    ran = run(*small_run(tiny_base, tmp_path / "run", steps=3))
    assert ran.code == 130
    said = ran.err.splitlines()[-1]
    assert said.startswith("stopped after step 2; the run goes on from the checkpoint of step 1 with: mass train ")
    monkeypatch.setattr(Monitor, "on_step", shown)
    import shlex

    assert run(*shlex.split(said.partition("with: mass ")[2])).code == 0


def test_unwritable_run_folder(fails: Callable, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in fails(*small_run(tiny_base, tmp_path / "file" / "run"))


def test_report_is_rebuilt(run: Callable, fails: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS) + "\n" + '{"step": 3, "rew')
    assert run("report", tmp_path).code == 0
    assert (tmp_path / "report.html").is_file()
    (tmp_path / "metrics.jsonl").write_text('{"step": \n' + json.dumps(METRICS) + "\n")
    assert "metrics.jsonl, line 1 is not JSON" in fails("report", tmp_path)
    assert "holds neither comparison.json nor metrics.jsonl" in fails("report", tmp_path / "nothing")


# --- progress


def test_plain_line() -> None:
    line = plain_line(METRICS, 10, 90.0)
    assert line.startswith("step 2/10  outer loss 0.5000  reward 0.250  valid practice 75%")
    assert line.endswith("2.0 s  left 90 s")
    assert "outer loss 0.0000" in plain_line({"step": 1, "outer loss": -1e-9}, 10, None)


def test_what_is_rare_is_shown_when_it_happens() -> None:
    rare = ("generator KL", "no verdict", "not finite", "skipped updates")
    quiet = plain_line({**METRICS, **dict.fromkeys(rare, 0.0)}, 10, None)
    assert not any(key in quiet for key in rare)
    loud = plain_line({**METRICS, "generator KL": 0.02, "no verdict": 0.5, "skipped updates": 2, "practice loss": 1.5},
                      10, None)  # fmt: skip
    for expected in ("practice loss 1.5000", "generator KL 0.0200", "no verdict 50.0%", "skipped updates 2"):
        assert expected in loud
    assert "not finite" not in loud


def test_a_terminal_gets_a_live_table(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=100, _environ={})
    with Monitor(10, console) as monitor:
        monitor.on_step(METRICS)
    shown = capsys.readouterr().out
    for expected in (
        "step 2/10",
        "held-out accuracy, adapted",
        "40.0%",
        "at step 2",
        "synthesis",
        "1.50 s",
        "mean weight",
    ):
        assert (expected in shown) == (expected != "mean weight"), expected


def test_pace_counts_from_where_this_process_began() -> None:
    times = iter([100.0, 110.0])
    pace = Pace(60, clock=lambda: next(times))
    assert pace.left_s(50) is None
    assert pace.left_s(55) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (4.21, "4.2 s"), (45.0, "45 s"), (600.0, "10 min"), (9000.0, "2.5 h")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# --- eval and demo


def test_eval_prints_a_table_and_leaves_a_folder(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"my_q": "What is 1?", "gold": "1"}\n{"my_q": "What is 2?", "gold": "2"}\n')
    ran = run(
        "eval", "--model", tiny_base, "--methods", "base,mass", "--checkpoints", "mass=untrained", "--tasks",
        tmp_path / "t.jsonl", "--tasks.fields", "problem=my_q,answer=gold", "--out", tmp_path / "out",
        "--answer.max_new_tokens=4", "--resamples=50",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "2 problems of" in ran.out
    assert "mass 2/2" in ran.err
    files = {f.name for f in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "provenance.json", "comparison.json", "records.jsonl", "report.html"}
    (tmp_path / "out" / "report.html").unlink()
    assert run("report", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_eval_samples_and_says_so(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    ran = run("eval", "--model", tiny_base, "--methods", "base,tt-ss", "--tasks.size", "2", "--out", tmp_path / "out",
              "--seed=3", "--tasks.seed=0", "--answer.max_new_tokens=4", "--resamples=50", "--samples=2",
              "--temperatures=[0.5]", "--synthesis.examples=2", "--synthesis.sampling.max_new_tokens=4",
              "--examples=1")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "sampled at temperature 0.5, 2 answers to each problem" in ran.out
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (comparison["tasks"]["seed"], comparison["seed"]) == (0, 3)
    assert comparison["config"]["adapt"]["tt-ss"]["synthesis"]["examples"] == 1
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert all(len(record["sampled"][0]["correct"]) == 2 for record in records)


def test_eval_of_tasks_without_golds(run: Callable, fails: Callable, tiny_base: Path, tmp_path: Path) -> None:
    def ask(*answers: str | None) -> list[str | Path]:
        rows = [{"problem": f"What is {i}?", "answer": answer} for i, answer in enumerate(answers)]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = ["eval", "--methods=base", "--model", tiny_base, "--tasks", tmp_path / "t.jsonl"]
        return [*given, "--answer.max_new_tokens=6", "--out", tmp_path / f"of {len(answers)}"]

    assert "none of the 2 tasks has an answer to judge by, as 't-1'; add it" in fails(*ask(None, " "))
    assert not (tmp_path / "of 2").exists()
    ran = run(*ask("0", None, "2", None, "4"))
    assert ran.code == 0, ran.err
    said = "2 of 5 tasks have no answer to judge by, the first 't-2': no verdict."
    assert ran.err.startswith(f"note: {said}\n")
    assert said in json.loads((tmp_path / "of 5" / "comparison.json").read_text())["notes"]
    whole = run(*ask("0", "1", "2", "3"))
    assert "no answer" not in whole.err + (tmp_path / "of 4" / "comparison.json").read_text()


def test_eval_json(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    ran = run("eval", "--model", tiny_base, "--methods", "base", "--tasks.size", "2", "--out", tmp_path / "out",
              "--answer.max_new_tokens=4", "--resamples=50", "--json")  # fmt: skip
    comparison = json.loads(ran.out)
    assert [row["method"] for row in comparison["rows"]] == ["base"]
    assert comparison["tasks"]["source"] == "minimath-terms"


def test_eval_records_which_levels_were_chosen(run: Callable, tiny_base: Path, tmp_path: Path) -> None:
    ran = run("eval", "--model", tiny_base, "--methods", "base,base-ttt", "--tasks.size=7", "--out", tmp_path / "out",
              "--tasks.levels=[5]", "--train_tasks=minimath", "--train_tasks.levels=[1,2]",
              "--train_tasks.subjects=[Algebra]",
              "--examples=1", "--answer.max_new_tokens=4", "--resamples=50", "--json")  # fmt: skip
    comparison = json.loads(ran.out)
    assert (comparison["tasks"]["levels"], "subjects" in comparison["tasks"]) == ([5], False)
    assert all(list(row["by_level"]) == ["5"] for row in comparison["rows"])
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    texts = {t.problem for t in minimath.load("train", None, 0, ["Algebra"], [1, 2])}
    practised = {e["problem"] for r in records if r["adaptation"] for e in r["adaptation"]["examples"]}
    assert practised
    assert practised <= texts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "base,maas"], "method 'maas' is unknown; did you mean 'mass'?"),
        (["--methods", ","], "no methods given"),
        (["--tasks.size", "many"], "size is 'many'; expected int or null"),
        (["--tasks.size", "0"], "size is 0; expected at least 1"),
        (["--checkpoints", "mass"], "--checkpoints has 'mass'; expected name=value"),
        (["--tasks.fields", "a=b"], "minimath-terms is built in; leave fields out"),
        (["--tasks.levels", "[6]"], "level 6 is unknown; levels are 1 to 5"),
        (["--tasks.subjects", "[Algbra]"], "subject 'Algbra' is unknown; did you mean 'Algebra'?"),
        (["--tasks.levels", "5"], "levels is '5'; expected list[int] or null"),
        (["--train_tasks.levels", "[1]"], "--train_tasks.levels is given without --train_tasks"),
        (["--train_tasks", "minimath", "--train_tasks.subjects", "[Sums]"], "subject 'Sums' is unknown"),
        (["--model", "./nowhere", "--out", "{tmp}/new"], "model folder './nowhere' does not exist"),
        (["--votes", "0"], "votes is 0; expected at least 1"),
        (["--samples", "-1"], "samples is -1; expected 0 or more"),
        (["--temperatures", "[0.5,0]"], "expected numbers above 0, each once"),
        (["--examples", "0"], "examples is 0; expected at least 1, or null"),
    ],
)
def test_eval_of_bad_input(fails: Callable, tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert expected in fails("eval", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))


def test_eval_that_was_stopped_says_how_to_go_on(
    run: Callable, fails: Callable, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", str(tiny_base), "--methods", "base,tt-ss", "--tasks.size", "3", "--answer.max_new_tokens=4",
                 "--resamples=50", "--stack=2", "--synthesis.examples=2", "--synthesis.sampling.max_new_tokens=4",
                 "--out", str(tmp_path / "out")]  # fmt: skip
    answer = running.answer_adapted

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "answer_adapted", stop)
    ran = run("eval", *arguments)
    assert ran.code == 130
    said = ran.err.strip().splitlines()[-1]
    assert said == f"stopped after 3 answers; the comparison goes on with: mass eval {shlex.join(arguments)} --resume"
    monkeypatch.setattr(running, "answer_adapted", answer)
    assert "seed = 0, now it is 1" in fails("eval", *arguments, "--seed=1", "--resume")
    ran = run(*shlex.split(said.split("mass ")[1]))
    assert ran.code == 0, ran.err
    assert "base 3/3" not in ran.err
    assert "tt-ss 3/3" in ran.err
    assert "is finished" in fails("eval", *arguments, "--resume")
    assert "holds no comparison" in fails("eval", "--out", tmp_path / "none", "--resume")
    assert "--resume is given without --out" in fails("eval", "--resume")


def test_eval_refuses_a_used_folder(fails: Callable, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    assert "is in use" in fails("eval", "--out", tmp_path)


def test_demo_solves_and_compares(
    run: Callable, tiny_base: Path, checkpoint: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from mass.cli import demo
    from mass.config import EvalConfig, SamplingConfig

    short = functools.partial(EvalConfig, answer=SamplingConfig(max_new_tokens=4), resamples=50)
    monkeypatch.setattr(demo, "EvalConfig", short)
    ran = run("demo", "--model", tiny_base, "--checkpoint", checkpoint, "--tasks.size", "4", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.out.count("Problem\n") == 3
    assert "tt-ss" in ran.out
    assert "report.html" in ran.out
    assert "mass 4/4" in ran.err


def test_demo_of_a_model_that_nothing_was_trained_on(
    run: Callable, tiny_base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from mass.cli import demo

    monkeypatch.setattr(demo, "MAX_TOKENS", 4)
    ran = run("demo", "--model", tiny_base, "--tasks.size", "4", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "Nothing was meta-trained on it" in " ".join(ran.out.split())
    assert "Now base, tt-ss on 4 problems." in ran.out
    assert "mass-unadapted" not in ran.out


def test_the_word_problems_of_the_demo_are_right() -> None:
    from mass import tasks, verify
    from mass.cli.demo import WORD_PROBLEMS

    found = tasks.load(WORD_PROBLEMS)
    assert len(found) == 12
    for task in found:
        assert task.solution is not None
        assert verify.check(task, task.solution).correct
        *_, calculation = [part for part in task.solution.split(".") if "=" in part]
        shown, result = calculation.replace(",", " ").rsplit("=", 1)
        numbers = "".join(c if c in "0123456789+-*/ " else "|" for c in shown).strip(" |").rsplit("|", 1)[-1]
        assert eval(numbers) == int(result.split()[0]) == int(task.answer or "")


# --- pretrain


def test_pretrain_resumes_its_own_folder_only(run: Callable, fails: Callable, tmp_path: Path) -> None:
    small = ["--layers=1", "--width=16", "--heads=2", "--mlp=16", "--vocabulary=280", "--steps=2", "--pages=4"]
    ran = run("pretrain", "--out", tmp_path / "base", *small)
    assert ran.code == 0, ran.err
    assert (tmp_path / "base" / "model" / "model.safetensors").is_file()
    assert "step 2/2  loss " in ran.err
    assert "is in use" in fails("pretrain", "--out", tmp_path / "base", *small)
    with held(tmp_path / "base"):
        assert "another process is at work" in fails("pretrain", "--out", tmp_path / "base", *small, "--resume")
    assert run("pretrain", "--out", tmp_path / "base", *small, "--resume").code == 0
    said = fails("pretrain", "--out", tmp_path / "base", *small, "--seed=1", "--resume")
    assert "was begun with seed = 0, now it is 1" in said
    assert "holds no run to resume" in fails("pretrain", "--out", tmp_path / "none", "--resume")
