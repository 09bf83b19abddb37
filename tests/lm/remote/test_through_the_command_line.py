"""`mass solve`, `eval` and `train` with a server that samples: what is asked there, and what is recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_stand_in import Fault, StandIn

from mass.cli.main import main
from mass.config import EngineConfig
from mass.runs.folder import RunFolder
from mass.training.trainer import train
from small_runs import config_for

SMALL = (
    "--adapt.synthesis.examples=2",
    "--adapt.synthesis.sampling.max_new_tokens=32",
    "--adapt.answer.max_new_tokens=14",
)
COMPLETE, LOAD = "/v1/completions", "/v1/load_lora_adapter"


@pytest.fixture
def at_server(server: StandIn, tmp_path: Path) -> tuple[str, ...]:
    return ("--model.engine.url", server.url, "--model.engine.lora_dir", str(tmp_path))


@pytest.fixture
def quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    capsys.readouterr()
    return capsys


@pytest.mark.slow
def test_solve_asks_the_server_for_practice_and_answers(
    server: StandIn, at_server: tuple[str, ...], taught_base: Path, quiet: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ("solve", "Compute 2 + 3.", "--model", str(taught_base), "--json", *SMALL)
    assert main([*command, *at_server]) == 0
    there = json.loads(quiet.readouterr().out)
    assert len(server.asked(COMPLETE)) == 2 + 2 + 2  # the comparison, two examples, two answers
    assert main(list(command)) == 0
    here = json.loads(quiet.readouterr().out)
    assert there["adaptation"]["unadapted_text"] == here["adaptation"]["unadapted_text"]
    assert there["adaptation"]["engine"].startswith("http ")
    assert here["adaptation"]["engine"] == ""
    (tmp_path / "record.json").write_text(json.dumps(there))
    assert main(["solve", "--json", "--replay", str(tmp_path / "record.json")]) == 0
    assert json.loads(quiet.readouterr().out)["text"] == there["text"]
    assert server.paths == {}


@pytest.mark.slow
def test_eval_of_greedy_methods_is_that_of_transformers(
    server: StandIn, at_server: tuple[str, ...], taught_base: Path, sums: Path, quiet: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    lines = sums.read_text().splitlines(keepends=True)
    (tmp_path / "five.jsonl").write_text("".join(lines[:5]))
    (tmp_path / "four.jsonl").write_text("".join(lines[5:]))
    command = [
        "eval",
        "--methods=base,base-ttt",
        f"--tasks={tmp_path}/five.jsonl",
        "--answer.max_new_tokens=14",
        "--json",
    ]
    command += [f"--train_tasks={tmp_path}/four.jsonl", f"--model={taught_base}", "--stack=3", "--examples=2"]
    assert main(["eval", "--print_config", *at_server]) == 0
    assert f"url: {server.url}" in quiet.readouterr().out
    rows = []
    for name, extra in (("there", at_server), ("here", ())):
        assert main([*command, "--out", str(tmp_path / name), *extra]) == 0
        records = [json.loads(line) for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        rows.append([(r["method"], r["text"], r["correct"]) for r in records])
    assert rows[0] == rows[1]
    assert len({text for _, text, _ in rows[0]}) == 3
    assert len(server.asked(LOAD)) == 1 + 5  # the comparison, and each problem's own adapter


def test_a_server_that_dies_ends_the_command_with_one_line(
    server: StandIn, at_server: tuple[str, ...], taught_base: Path, quiet: pytest.CaptureFixture[str]
) -> None:
    server.faults[COMPLETE] = [Fault(), Fault()] + [Fault(drop=True)] * 99
    assert (
        main(["solve", "Compute 2 + 3.", "--model", str(taught_base), *SMALL, *at_server, "--model.engine.retries=1"])
        == 2
    )
    said = quiet.readouterr().err
    assert said.count("error: ") == 1
    assert "tries); look at the server's log" in said


@pytest.mark.slow
def test_train_samples_at_the_server_and_learns_here(
    server: StandIn, engine_config: EngineConfig, taught_base: Path, sums: Path, tmp_path: Path
) -> None:
    config = config_for(taught_base, sums, steps=1, tasks_per_step=2, stack=2, eval_every=0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, engine=engine_config))
    train(config, tmp_path / "run")
    (metrics,) = RunFolder(tmp_path / "run").metrics()
    assert metrics["gradient norm/theta"] > 0
    assert len(server.asked(COMPLETE)) == 2 * 3 + 2 * 6  # practice, and solutions of the adapted weights
    assert 1 <= len(server.asked(LOAD)) <= 2
    assert server.paths == {}
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["engine"]["url"] == server.url
    elsewhere = dataclasses.replace(config.model.engine, url=f"{server.url}/v1", requests=3)
    moved = dataclasses.replace(config, model=dataclasses.replace(config.model, engine=elsewhere))
    train(moved, tmp_path / "run", resume=True)  # nothing is left to do, and nothing is refused
