from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mass.config import RunConfig, TasksConfig, TrainConfig, to_dict
from mass.errors import RunError
from mass.runs.folder import RunFolder, check_folder, held, open_run, replace_text

CONFIG = RunConfig()


def refused(match: str, path: Path, config: RunConfig = CONFIG, *, resume: bool = False) -> None:
    with pytest.raises(RunError, match=match) as error:
        open_run(path, config, resume=resume)
    assert "\n" not in str(error.value)


def writer(text: str):
    return lambda folder: (folder / "file").write_text(text)


def test_a_fresh_folder_holds_the_resolved_configuration(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a" / "run", CONFIG, resume=False)
    assert json.loads((run.path / "config.json").read_text()) == to_dict(CONFIG)
    assert run.metrics() == []
    assert run.latest() is None
    assert run.best_score() is None


def test_an_empty_folder_is_fresh(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert open_run(tmp_path / "run", CONFIG, resume=False).latest() is None


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused("is in use; a run needs a folder of its own; add --resume", tmp_path)
    refused("is in use", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    refused("cannot be written", tmp_path / "file" / "run")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    refused(r"cannot be written \(Permission denied\); name a folder that can", tmp_path)


HOLD = """
import sys
from pathlib import Path
from mass.runs.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_works_in_a_folder_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=r"another process is at work in .*; wait for it or end it"), held(folder):
            pass
        other.kill()
    with held(folder), held(tmp_path):
        assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), held(tmp_path / "file" / "run"):
        pass


def test_resuming_needs_the_same_configuration(tmp_path: Path) -> None:
    refused("holds no run to resume", tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"methods": []}')
    refused("holds no run to resume", tmp_path, resume=True)
    open_run(tmp_path / "run", CONFIG, resume=False)
    open_run(tmp_path / "run", CONFIG, resume=True)
    longer = dataclasses.replace(CONFIG, train=TrainConfig(steps=500))
    open_run(tmp_path / "run", longer, resume=True)
    for config, key in [
        (dataclasses.replace(CONFIG, train=TrainConfig(gamma=0.5)), "train.gamma = 1.0, now it is 0.5"),
        (dataclasses.replace(CONFIG, tasks=TasksConfig(fields={"problem": "q"})), "tasks.fields"),
        (dataclasses.replace(CONFIG, validation=TasksConfig(split="test", seed=1)), "validation.split"),
    ]:
        refused(f"was started with {key}", tmp_path / "run", config, resume=True)


def test_metrics_are_lines_that_can_be_rewound(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, resume=False)
    for step in range(5):
        run.log({"step": step, "loss": step / 7})
    assert [row["loss"] for row in run.metrics()] == [step / 7 for step in range(5)]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    run.rewind(2)
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]
    run.rewind(-1)
    assert run.metrics() == []


def test_metrics_are_json_also_where_a_number_is_not_finite(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, resume=False)
    run.log({"step": 1, "loss": float("nan"), "norm": float("inf"), "rate": 0.5})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    (line,) = (run.path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": None, "norm": None, "rate": 0.5}


def test_checking_a_folder_writes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "run", CONFIG, resume=False)
    assert not (tmp_path / "run").exists()


def test_checkpoints_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, resume=False)

    def breaks(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.write_checkpoint(3, breaks)
        assert run.latest() is None
    path = run.write_checkpoint(3, writer("whole"))
    assert run.latest() == (3, path)
    with pytest.raises(KeyboardInterrupt):
        run.write_checkpoint(3, breaks)
    assert (path / "file").read_text() == "whole"
    assert run.write_checkpoint(3, writer("again")) == path
    assert (path / "file").read_text() == "again"
    assert [p.name for p in run.checkpoints.iterdir() if p.name != ".step-000003.tmp"] == ["step-000003"]


def test_the_latest_are_kept_and_the_best(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG, resume=False)
    run.write_best(writer("best"), {"step": 9, "accuracy": 0.5})
    for step in (9, 10, 100, 11):
        run.write_checkpoint(step, writer(str(step)))
    run.keep_latest(2)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["best", "step-000011", "step-000100"]
    assert run.latest()[0] == 100
    assert run.best_score() == {"step": 9, "accuracy": 0.5}
    assert (run.checkpoints / "best" / "file").read_text() == "best"


def test_a_replacement_killed_between_its_renames_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path / "run", CONFIG, resume=False)
    run.write_best(writer("old"), {"step": 1})
    right = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return right(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_best(writer("new"), {"step": 2})
    monkeypatch.undo()
    assert run.best_score() is None
    open_run(tmp_path / "run", CONFIG, resume=True)
    assert run.best_score() == {"step": 1}
    run.write_best(writer("new"), {"step": 2})
    assert run.best_score() == {"step": 2}
    assert [p.name for p in run.checkpoints.iterdir()] == ["best"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    replace_text(file, "1")
    replace_text(file, "2")
    assert file.read_text() == "2"
    assert list(tmp_path.iterdir()) == [file]
    assert RunFolder(tmp_path).metrics() == []
