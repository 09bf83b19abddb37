"""Configuration files, dotted options, and what is said of mistakes in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from research.pretrain_config import PretrainConfig

from mass.cli.options import add_model_options, add_task_options, load_tasks, make_parser, parse
from mass.cli.spelling import pairs, spelled_out
from mass.config import ModelConfig, RunConfig, TasksConfig, to_dict
from mass.errors import ConfigError
from study_folders import is_study

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def recipe_verb(path: Path) -> str:
    if path.stem.endswith("base"):
        return "pretrain"
    return "study" if is_study(path) else "train"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_parses(run: Callable, path: Path) -> None:
    ran = run(recipe_verb(path), "--config", path, "--print_config")
    assert ran.code == 0, ran.err
    assert yaml.safe_load(ran.out)


def test_the_recipe_of_the_base_is_the_default() -> None:
    path = next(path for path in RECIPES if path.parts[-2:] == ("minimath", "base.yaml"))
    assert yaml.safe_load(path.read_text()) == to_dict(PretrainConfig())


def test_print_config_shows_the_defaults_in_full_and_reads_back(run: Callable, tmp_path: Path) -> None:
    printed = run("train", "--print_config").out
    assert yaml.safe_load(printed) == to_dict(RunConfig())
    (tmp_path / "again.yaml").write_text(printed)
    assert run("train", "--config", tmp_path / "again.yaml", "--print_config").out == printed


def test_a_run_folders_config_is_a_recipe(run: Callable, tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(to_dict(RunConfig())))
    assert run("train", "--config", tmp_path / "config.json", "--print_config").code == 0


def test_the_command_line_comes_on_top_of_the_file(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("train: {steps: 11, seed: 5}\nlora: {target_modules: [q_proj, v_proj]}\n")
    ran = run("train", "--config", tmp_path / "r.yaml", "--train.steps", "12", "--print_config")
    found = yaml.safe_load(ran.out)
    assert (found["train"]["steps"], found["train"]["seed"]) == (12, 5)
    assert found["lora"]["target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "adapt: {inner: {stepz: 3}}",
            "'adapt.inner.stepz' is not a configuration key; did you mean 'adapt.inner.steps'?",
        ),
        ("trian: {steps: 3}", "did you mean 'train'?"),
        ("train.stepz: 3", "did you mean 'train.steps'?"),
        ("train: {steps: many}", "train.steps is 'many'; expected int"),
        ("train: {steps: 0}", "train.steps is 0; expected at least 1"),
        ("train: {method: maas}", "train.method"),
        ("train: [", "line 1 is not YAML"),
        ("- a", "holds no keys"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(fails: Callable, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert expected in fails("train", "--config", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_free_keys_below_a_mapping_are_not_unknown(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("tasks: {source: a.jsonl, fields: {problem: my_question}}")
    ran = run("train", "--config", tmp_path / "r.yaml", "--print_config")
    assert yaml.safe_load(ran.out)["tasks"]["fields"] == {"problem": "my_question"}, ran


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--adapt.inner.steps", "two"], "adapt.inner.steps is 'two'; expected int"),
        (["--adapt.inner.stepz", "2"], "did you mean '--adapt.inner.steps'?"),
        (["--seeed", "2"], "--seeed is not an option of mass train"),
        (["--adapt.inner.lr", "2"], "not an option of mass train; known: "),
        (["--adapt.synthesis.verify", "true"], "adapt.synthesis.verify is a group of options; give one of them, as in"),
        (["--train.steps"], "expected one argument"),
        (["--config", "none.yaml"], "'none.yaml' cannot be read (No such file or directory)"),
        ([], "--out is missing"),
    ],
)
def test_a_bad_option_is_named(fails: Callable, arguments: list[str], expected: str) -> None:
    assert expected in fails("train", *arguments)


def test_pairs() -> None:
    assert pairs("--tasks.fields", "problem=my_q, answer=a b,") == {"problem": "my_q", "answer": "a b"}
    assert pairs("--tasks.fields", "") == {}
    with pytest.raises(ConfigError, match=r"--tasks.fields has 'problem'; expected name=value"):
        pairs("--tasks.fields", "problem")


def test_levels_and_subjects_choose_tasks_and_are_recorded_only_where_they_are_given() -> None:
    parser = make_parser("eval", "", "", ())
    add_task_options(parser, default="minimath")
    parser.add_argument("--seed", type=int, default=0)
    everything = parse(parser, ["--tasks.size=35"])
    found, source = load_tasks(everything)
    assert len({task.level for task in found}) == 5
    assert source == {"source": "minimath", "split": "test", "seed": 0}
    found, source = load_tasks(
        parse(parser, ["--tasks.size=8", "--tasks.levels=[4,5]", "--tasks.subjects=[Counting & Probability]"])
    )
    assert {(task.subject, task.level) for task in found} == {("Counting & Probability", level) for level in (4, 5)}
    assert (source["levels"], source["subjects"]) == ([4, 5], ["Counting & Probability"])


def test_a_configuration_names_levels_and_subjects(run: Callable, fails: Callable, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("tasks: {levels: [1, 2], subjects: [Algebra, Counting & Probability]}")
    ran = run("train", "--config", tmp_path / "r.yaml", "--validation.levels=[5]", "--print_config")
    resolved = yaml.safe_load(ran.out)
    assert resolved["tasks"]["levels"] == [1, 2], ran
    assert resolved["tasks"]["subjects"] == ["Algebra", "Counting & Probability"]
    assert (resolved["validation"]["levels"], resolved["validation"]["subjects"]) == ([5], None)
    assert "tasks.levels is []; expected some, each once" in fails("train", "--tasks.levels=[]", "--out", tmp_path)
    assert "tasks.levels is '5'; expected list[int] or null" in fails("train", "--tasks.levels=5", "--out", tmp_path)


SHORTER = (("analyse",), ("collect", "runs/table"), ("document", "results/minimath"), ("demo",))


@pytest.mark.parametrize("verb", SHORTER, ids=lambda verb: verb[0])
def test_print_config_of_the_shorter_verbs_prints_and_runs_nothing(
    run: Callable, verb: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*verb, "--print_config")
    assert ran.code == 0, ran.err
    assert len(yaml.safe_load(ran.out)) > 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_model_and_of_tasks_are_called_as_in_a_recipe() -> None:
    parser = make_parser("eval", "", "", ())
    add_model_options(parser, checkpoint="")
    add_task_options(parser, default="minimath")
    given = parse(parser, [])
    assert set(vars(given.model)) == set(to_dict(ModelConfig()))
    assert set(vars(given.tasks)) == set(to_dict(TasksConfig()))


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_the_short_forms_are_the_same_everywhere(run: Callable, verb: str) -> None:
    short = run(
        verb, "--model", "tiny-terms", "--tasks=a.jsonl", "--tasks.fields", "problem=q,answer=a", "--print_config"
    )
    full = run(verb, "--model.name", "tiny-terms", "--tasks.source=a.jsonl", "--tasks.fields={problem: q, answer: a}",
               "--print_config")  # fmt: skip
    assert short.code == 0, short.err
    assert short.out == full.out
    found = yaml.safe_load(short.out)
    assert (found["model"]["name"], found["tasks"]["source"]) == ("tiny-terms", "a.jsonl")
    assert found["tasks"]["fields"] == {"problem": "q", "answer": "a"}


def test_what_eval_prints_reads_back(run: Callable, tmp_path: Path) -> None:
    printed = run("eval", "--checkpoints", "mass-gold=runs/gold", "--train_tasks", "t.jsonl", "--print_config").out
    found = yaml.safe_load(printed)
    assert found["checkpoints"] == {"mass-gold": "runs/gold"}
    assert (found["train_tasks"]["source"], found["train_tasks"]["split"]) == ("t.jsonl", "train")
    (tmp_path / "again.yaml").write_text(printed)
    assert run("eval", "--config", tmp_path / "again.yaml", "--print_config").out == printed


def test_values_are_not_taken_for_options() -> None:
    known = ("replay", "tasks.fields", "model.name", "out")
    assert spelled_out(["--replay", "--tasks.fields", "a=b", "model", "--out=--model"], known) == [
        "--replay", "--tasks.fields", '{"a": "b"}', "model", "--out=--model",
    ]  # fmt: skip


FORMER = {
    "--decode-rows=8": "--model.decode_rows",
    "--dtype": "--model.dtype",
    "--engine.url=http://a:1": "--model.engine.url",
    "--trust-remote-code": "--model.trust_remote_code",
    "--size": "--tasks.size",
    "--tasks-seed=3": "--tasks.seed",
    "--checkpoint-of=mass=a": "--checkpoints",
    "--train-tasks": "--train_tasks",
    "--train-levels=[1]": "--train_tasks.levels",
    "--vote-temperature": "--vote_temperature",
    "--print-config": "--print_config",
}


@pytest.mark.parametrize("old", FORMER)
def test_a_former_name_is_answered_with_todays(fails: Callable, old: str) -> None:
    assert f"{old.partition('=')[0]} is now called {FORMER[old]}; use that name" in fails("eval", old)


def test_the_gate_has_one_seed_of_tasks(fails: Callable) -> None:
    assert "--tasks-seed is now called --tasks.seed" in fails("gate", "--tasks-seed=3")


@pytest.mark.parametrize(
    ("verb", "text", "expected"),
    [
        ("eval", "decode_rows: 8", "'decode_rows' is now called 'model.decode_rows'"),
        ("eval", "engine: {url: 'http://a:1'}", "'engine' is now called 'model.engine'"),
        ("eval", "tasks: minimath", "'tasks' is 'minimath'; expected keys below it, as in tasks: {source: minimath}"),
        ("train", "model: mine", "'model' is 'mine'; expected keys below it, as in model: {name: mine}"),
        ("train", "lora: {rank: 4}", "'lora.rank' is now called 'lora.r'"),
        ("train", "outer: {sampling: {max_tokens: 9}}", "is now called 'outer.sampling.max_new_tokens'"),
    ],
)
def test_a_former_key_is_answered_with_todays(
    fails: Callable, tmp_path: Path, verb: str, text: str, expected: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert expected in fails(verb, "--config", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
