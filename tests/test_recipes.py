"""The recipes of real models, each run for one step on a small model of its architecture, and tried by its dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from chat_folders import JUDGE, KINDS, REAL, SHARED, chat_folder, practice, two_files
from mass.adaptation.checkpoint import describe
from mass.cli.main import main
from mass.lm.architecture import PUBLISHED

ON_A_CPU = Path(__file__).parents[1] / "recipes" / "qwen2.5-0.5b" / "cpu.yaml"
FOLDERS = [ON_A_CPU.parents[1] / name for name in KINDS]
RECIPES = [path for folder in FOLDERS for path in sorted(folder.glob("*.yaml")) if path != ON_A_CPU]
SMALL = (
    "--model.dtype=float32", "--lora.r=2", "--tasks.size=null", "--tasks.part=null", "--validation.size=null",
    "--validation.part=null", "--adapt.synthesis.sampling.max_new_tokens=8", "--outer.sampling.max_new_tokens=6",
    "--test.answer.max_new_tokens=6", "--outer.samples=4", "--train.steps=1", "--train.tasks_per_step=2",
    "--train.stack=2", "--train.eval_every=1", "--train.eval_size=2",
)  # fmt: skip
"""Reduced sizes; m, K, method and everything else stay the recipe's."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("models")
    return {name: chat_folder(made / name, kind) for name, kind in KINDS.items()}


def arguments(path: Path, folders: dict[str, Path], files: tuple[Path, Path]) -> list[str]:
    return [
        "train", f"--config={path}", f"--model.name={folders[path.parent.name]}", f"--tasks.source={files[0]}",
        f"--validation.source={files[1]}", *SMALL,
    ]  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_one_step_of_a_recipe(
    path: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def synthesise(_: object, problems: list[str], config: Any, *rest: object, **_more: object) -> list[Any]:
        assert rest
        written.append(config.examples)
        return [practice(config.examples)] * len(problems)

    monkeypatch.setattr("mass.adaptation.synthesis.synthesise", synthesise)
    (tmp_path / "judge.py").write_text(JUDGE)
    files = two_files(tmp_path, path.stem, real=False)
    judged = [f"--{kind}.verifier={tmp_path / 'judge.py'}:judge" for kind in ("tasks", "validation")]
    run = tmp_path / "run"
    assert main([*arguments(path, folders, files), *judged, f"--out={run}"]) == 0
    assert set(written) == {6, 12}, "m of training and of held-out problems"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[1]["valid"] == 1.0
    assert rows[1]["attribution"] > 0
    checkpoint = run / "checkpoints" / "step-000001"
    assert describe(checkpoint).adapt.inner.steps == 1
    weights = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    assert any(bool(t.any()) for name, t in weights.items() if "lora_B" in name), "nothing was learned"
    check_card(run, rows)
    assert (checkpoint / "README.md").is_file()


def check_card(run: Path, rows: list[dict[str, Any]]) -> None:
    """Its YAML is what the hub reads, its numbers those of the metrics."""
    text = (run / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["library_name"] == "mass-adapt"
    assert "base_model" not in metadata, "a folder of this machine is no model of the hub"
    assert {"mass", "lora"} <= set(metadata["tags"])
    right = round(rows[1]["eval/accuracy"] * 2)
    assert f"({right} of 2)" in body
    assert "12 practice examples and 2 inner steps" in body
    assert str(run.parent) not in body.replace(f"{run}", "")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance[0]["training"]["hash"][:16] in body
    assert f"torch {provenance[0]['versions']['torch']}" in body


@pytest.mark.parametrize("path", RECIPES[:3], ids=lambda path: path.stem)
def test_a_recipe_s_dry_run_on_public_rows(
    path: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem in REAL and not (SHARED / REAL[path.stem]).is_file():
        pytest.skip(f"no {SHARED / REAL[path.stem]}: public rows are not here")
    files = two_files(tmp_path, path.stem, real=True)
    before = sorted(tmp_path.rglob("*"))
    code = main([*arguments(path, folders, files), "--dry_run", "--json", "--device_gb", "80"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(printed.out)
    assert found["problems"] == []
    assert found["data"]["shared"] == 0
    assert all(one["rows"] and one["checked"] and not one["refused"] for one in found["data"]["sets"])
    assert found["counted"] is True
    assert found["memory"]["peak"] > sum(found["memory"]["stays"].values())
    assert 0 < sum(found["usually"]["stages"].values()) <= sum(found["longest"]["stages"].values())
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_the_recipes_name_models_whose_architecture_is_known() -> None:
    named = {yaml.safe_load(path.read_text())["model"]["name"] for path in RECIPES}
    assert named | {yaml.safe_load(ON_A_CPU.read_text())["model"]["name"]} == set(PUBLISHED)


def test_the_recipe_for_a_cpu_fits_12_gb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model as it was published, whose vocabulary of 151,936 tokens no loss may hold."""
    monkeypatch.setattr("mass.lm.source.hub_answers", lambda: False)
    rows = [{"question": f"{'A word ' * 60}{i}?", "answer": f"{'It is so. ' * 40}\n#### {i}"} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"--{kind}.{name}" for kind in ("tasks", "validation") for name in (f"source={file}", "size=null")]
    code = main(["train", f"--config={ON_A_CPU}", *given, "--dry_run", "--json", "--device_gb", "12"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(printed.out)
    assert found["problems"] == []
    assert found["model"]["parameters"] == 494_032_768
    assert found["memory"]["peak"] < 12e9 * 0.94


@pytest.mark.parametrize(
    "path", [*RECIPES[2:4], *RECIPES[-2:], ON_A_CPU], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_command_in_a_recipe_s_comments_parses(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    monkeypatch.chdir(Path(__file__).parents[1])
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#  ")]
    commands = [shlex.split(line.partition("mass ")[2]) for line in lines]
    assert {command[0] for command in commands} == {"train", "eval"}
    for command in commands:
        assert main([*command, "--print_config"]) == 0, (command, capsys.readouterr().err)


def test_a_set_of_the_hub_that_cannot_be_reached_is_said_in_one_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mass.preflight.dryrun.data.hub_answers", lambda: False)
    path = next(p for p in RECIPES if p.stem == "mmlu")
    given = [a for a in arguments(path, folders, (tmp_path, tmp_path)) if ".source" not in a]
    assert main([*given, "--dry_run", "--json", "--device_tflops", "1"]) == 2
    printed = capsys.readouterr()
    said = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in said] == ["tasks", "validation"]
    assert re.search(
        r"\.jsonl or \.parquet file|give the path of a file of its rows", said[0]
    )  # with `datasets`, or not
    assert json.loads(printed.out)["memory"] is not None, "the rest is said all the same"
