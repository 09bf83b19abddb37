"""Meta-training on a small model that writes well-formed practice and solves a sum now and then."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mass.adaptation import checkpoint
from mass.adaptation.checkpoint import init_state
from mass.config import ModelConfig, RunConfig, TasksConfig, at_test
from mass.errors import ConfigError, DataError, ModelError, RunError
from mass.lm import LM, load_lm
from mass.runs.data import Problems, read_problems
from mass.runs.folder import RunFolder, held
from mass.training.gradients import Gradients, total
from mass.training.trainer import Trainer, train
from small_lms import small_sums
from small_runs import ADAPTING, METHODS, assert_same_run, config_for, tensors
from waiting import until

SAMPLING, WRITING = ("mass", "solver-grpo"), (*ADAPTING, "self-sft")
"""Those that sample solutions, and those that learn with practice."""


# ------------------------------------------------------------------------------- it runs, and learns what it should


@pytest.mark.parametrize("method", METHODS)
def test_four_steps_change_what_the_method_learns(
    method: str, straight: Callable[[str], Path], lm: LM, taught_base: Path, sums: Path
) -> None:
    folder = straight(method)
    config = config_for(taught_base, sums, method)
    start = tensors(init_state(lm, config.adapt, config.train.seed))
    state, description = checkpoint.load(folder, lm)
    assert (description.method, description.adapt) == (method, at_test(config))
    changed = {name.split(".")[0] for name, t in tensors(state).items() if not torch.equal(t, start[name])}
    assert changed == ({"theta", "eta", "rate"} if method in ADAPTING else {"theta"})
    assert all(bool(t.isfinite().all()) for t in tensors(state).values())


@pytest.mark.parametrize("method", METHODS)
def test_metrics_say_what_happened(method: str, straight: Callable[[str], Path]) -> None:
    rows = RunFolder(straight(method)).metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    steps, evaluated = rows[1:], [rows[0], rows[2], rows[4]]
    always = {"outer loss", "tokens", "gradient norm/theta", "gradient norm/eta", "gradient norm/log_rates"}
    always |= {"seconds/outer"}
    sampled = {"reward", "solved by any", "no verdict"}
    always |= {"skipped updates"}
    written = {"valid", "seconds/synthesis"}
    adapting = {"weight", "heaviest weight", "attribution", "inner rate", "inner rate/lowest"}
    adapting |= {
        "practice loss",
        "inner rate/highest",
        "seconds/scoring",
        "seconds/inner loop and meta-gradient",
        "not finite",
    }
    for row in steps:
        assert always <= row.keys()
        for keys, methods in ((sampled, SAMPLING), (written, WRITING), (adapting, ADAPTING)):
            assert keys & row.keys() == (keys if method in methods else set())
        assert (row["tokens"] > 0) == (method != "solver-sft")
        assert all(math.isfinite(value) for value in row.values())
        for share in ("reward", "solved by any", "no verdict", "valid"):
            assert 0 <= row.get(share, 0) <= 1
    for row in evaluated:
        assert {"eval/accuracy", "eval/unadapted accuracy", "eval/fallbacks"} <= row.keys()
        assert 0 <= row["eval/accuracy"] <= 1
    assert not any("eval/accuracy" in row for row in (rows[1], rows[3]))
    if method in WRITING:
        assert all(row["valid"] > 0.3 for row in steps), "the model writes practice, or nothing here is tested"
    if method in ADAPTING:
        assert any(row["gradient norm/eta"] > 0 for row in steps)
        assert steps[0]["inner rate"] != 0.5
    assert any(row["gradient norm/theta"] > 0 for row in steps)


def test_steps_are_reported_as_they_are_logged(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    config = config_for(taught_base, sums, "mass-gold", steps=1, eval_every=0)
    train(config, tmp_path / "run", callbacks=[seen.append])
    assert seen == RunFolder(tmp_path / "run").metrics()
    assert [row["step"] for row in seen] == [1]


# ------------------------------------------------------------------------------- stopped and resumed


class Stop(Exception):
    pass


def stop_after(step: int) -> Callable[[dict[str, float]], None]:
    def on_step(metrics: dict[str, float]) -> None:
        if metrics["step"] == step:
            raise Stop

    return on_step


@pytest.mark.parametrize("method", ["mass", "solver-grpo", "self-sft"])
def test_stopped_and_resumed_is_the_same_run(
    method: str, straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """Stopped in the middle of step 2 (logged, not saved), then of step 4, then finished."""
    config = config_for(taught_base, sums, method)
    for step, resume in [(2, False), (4, True)]:
        with pytest.raises(Stop):
            train(config, tmp_path / "run", resume=resume, callbacks=[stop_after(step)])
    train(config, tmp_path / "run", resume=True)
    assert_same_run(straight(method), tmp_path / "run", lm)


def test_rare_checkpoints_and_a_longer_run(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """Two steps with a checkpoint each, then resumed with more steps: as if asked for four at once."""
    config = config_for(taught_base, sums, "mass-gold")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(short, tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert_same_run(straight("mass-gold"), tmp_path / "run", lm)


def test_stopped_before_the_first_checkpoint_starts_again(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    config = config_for(taught_base, sums, "mass-gold")
    with pytest.raises(Stop):
        train(config, tmp_path / "run", callbacks=[stop_after(1)])
    assert RunFolder(tmp_path / "run").latest() is None
    train(config, tmp_path / "run", resume=True)
    assert_same_run(straight("mass-gold"), tmp_path / "run", lm)


def run_in_a_process(base: str, tasks: str, folder: str) -> None:
    train(config_for(Path(base), Path(tasks)), Path(folder))


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """A real `kill -9` of another process, wherever it is after its second step."""
    straight("mass")
    folder = tmp_path / "run"
    arguments = str(taught_base), str(sums), str(folder)
    command = f"from test_trainer import run_in_a_process; run_in_a_process{arguments!r}"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until(lambda: any('"step": 2' in line for line in lines(folder)) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (folder / "checkpoints" / "step-000004").exists()
    train(config_for(taught_base, sums), folder, resume=True)
    assert_same_run(straight("mass"), folder, lm)


def lines(folder: Path) -> list[str]:
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


# ------------------------------------------------------------------------------- what it refuses


def refused(kind: type, match: str, config: RunConfig, folder: Path, resume: bool = False) -> None:
    with pytest.raises(kind, match=match) as error:
        train(config, folder, resume=resume)
    assert "\n" not in str(error.value)


def test_folders_and_configurations_that_do_not_fit(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, tmp_path: Path
) -> None:
    config, used = config_for(taught_base, sums), straight("mass")
    refused(RunError, "is in use; a run needs a folder of its own; add --resume", config, used)
    refused(RunError, "holds no run to resume", config, tmp_path / "none", resume=True)
    other = config_for(taught_base, sums, gamma=0.5)
    refused(RunError, "was started with train.gamma = 1.0, now it is 0.5", other, used, resume=True)
    (tmp_path / "file").write_text("")
    refused(RunError, "cannot be written", config, tmp_path / "file" / "run")
    with held(tmp_path / "busy"):
        refused(RunError, "another process is at work", config, tmp_path / "busy")
    kl = config_for(taught_base, sums, "mass-gold", kl=0.1)
    refused(ConfigError, "train.kl is set, but mass-gold samples no solutions", kl, tmp_path / "kl")
    kl = config_for(taught_base, sums, "self-sft", kl=0.1)
    refused(ConfigError, "train.kl is set, but self-sft samples no solutions", kl, tmp_path / "kl")


def test_a_base_that_changed_since_is_refused(
    taught_base: Path, tiny_base: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(taught_base, sums, "mass-gold", steps=1, eval_every=0)
    train(config, tmp_path / "run")
    monkeypatch.setattr(
        "mass.training.trainer.load_lm", lambda *_: load_lm(ModelConfig(name=str(tiny_base)), config.lora)
    )
    refused(ModelError, "load it with its own base", config, tmp_path / "run", resume=True)


def written(file: Path, *rows: dict[str, str]) -> TasksConfig:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TasksConfig(source=str(file), verifier="exact")


def test_a_failing_start_leaves_nothing_behind(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    config = config_for(taught_base, sums)
    nowhere = TasksConfig(source=str(tmp_path / "none.jsonl"))
    missing = ModelConfig(name=str(tmp_path / "none"))
    refused(DataError, "none.jsonl", dataclasses.replace(config, tasks=nowhere), tmp_path / "run")
    refused(DataError, "none.jsonl", dataclasses.replace(config, validation=nowhere), tmp_path / "run")
    refused(ModelError, "does not exist", dataclasses.replace(config, model=missing), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "row", "match"),
    [
        ("mass", {"solution": "It is 2."}, "'t-2' of the tasks has no answer, which mass needs"),
        ("solver-grpo", {"solution": "It is 2."}, "'t-2' of the tasks has no answer, which solver-grpo needs"),
        ("mass-gold", {}, "'t-2' of the tasks has no solution and no answer, which mass-gold needs"),
        ("solver-sft", {}, "'t-2' of the tasks has no solution and no answer, which solver-sft needs"),
        ("self-sft", {}, ""),
    ],
)
def test_tasks_without_the_gold_a_method_needs(
    method: str, row: dict[str, str], match: str, taught_base: Path, sums: Path, tmp_path: Path
) -> None:
    good = {"problem": "Compute 1 + 1.", "solution": "1+1=2. Answer: 2", "answer": "2"}
    tasks = written(tmp_path / "t.jsonl", good, {"problem": "Compute 2 + 0.", **row})
    config = dataclasses.replace(config_for(taught_base, sums, method, steps=1), tasks=tasks)
    if match:
        refused(DataError, match, config, tmp_path / "run")
    else:  # it learns from the problems alone
        train(config, tmp_path / "without")
    unjudged = dataclasses.replace(config_for(taught_base, sums, method), validation=tasks)
    refused(DataError, "'t-2' of the validation tasks has no answer", unjudged, tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_tasks_beyond_the_context_are_left_out_and_counted(
    method: str, taught_base: Path, sums: Path, tmp_path: Path, lm: LM
) -> None:
    """`taught_base` reads 256 tokens. The prompt to write practice is the longer one; some methods do not use it, and
    some do not read gold."""
    good = {"problem": "Compute 1 + 1.", "solution": "1+1=2. Answer: 2", "answer": "2"}
    endless = {**good, "problem": "1 + " * 400}
    worked = {**good, "solution": "1+1=2. " * 200}
    edge = {**good, "problem": next(p for n in range(256) if not fits(lm.synthesis_prompt, p := "1" * n))}
    assert fits(lm.solve_prompt, edge["problem"])
    tasks = written(tmp_path / "t.jsonl", good, endless, worked, edge)
    config = config_for(taught_base, sums, method, steps=1, eval_size=4)
    config = dataclasses.replace(config, tasks=tasks, validation=tasks)
    train(config, tmp_path / "run")
    rows = RunFolder(tmp_path / "run").metrics()
    expected = {"mass": 2, "mass-gold": 3, "solver-grpo": 1, "solver-sft": 3, "self-sft": 2}[method]
    assert [row.get("skipped tasks") for row in rows] == [expected, None]
    assert rows[0]["skipped validation tasks"] == (2 if method in ADAPTING else 1)
    none = dataclasses.replace(config, tasks=written(tmp_path / "none.jsonl", endless))
    refused(DataError, "none of the 1 tasks fits the 256 tokens", none, tmp_path / "other")


def fits(prompt: Callable[[str], list[int]], problem: str) -> bool:
    try:
        prompt(problem)
    except DataError:
        return False
    return True


# ------------------------------------------------------------------------------- the update and the stream


def trainer_of(taught_base: Path, sums: Path, lm: LM, tmp_path: Path, **changes: object) -> Trainer:
    config = config_for(taught_base, sums, **{"eval_every": 0, **changes})
    return Trainer(lm, config, read_problems(lm, config), RunFolder(tmp_path))


def test_the_update_averages_clips_and_warms_up(taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    trainer = trainer_of(taught_base, sums, lm, tmp_path, solver_lr=0.01, rates_lr=0.0, warmup=4, max_grad_norm=1.0)
    before = {n: t.clone() for n, t in tensors(trainer.state).items()}
    ones = {n: torch.ones_like(t) for n, t in trainer.state.theta.items()}
    norms = trainer._update(total([Gradients(ones), Gradients(ones)]), 4)
    size = sum(t.numel() for t in ones.values())
    assert norms["gradient norm/theta"] == pytest.approx(0.5 * size**0.5, rel=1e-4)
    for name, t in trainer.state.theta.items():  # Adam's first step is the learning rate, a quarter of it at first
        torch.testing.assert_close(t, before[f"theta.{name}"] - 0.01 / 4, rtol=1e-3, atol=1e-6)
    after = tensors(trainer.state)
    assert all(torch.equal(after[n], before[n]) for n in after if not n.startswith("theta"))


def test_each_step_takes_the_next_problems(taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    trainer = trainer_of(taught_base, sums, lm, tmp_path, method="solver-grpo", tasks_per_step=3, stack=2)
    seen: list[int] = []
    trainer.problems = Problems(lambda number: seen.append(number) or small_sums()[number % 9], [])
    trainer.outer_step()
    trainer.outer_step()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_the_generator_s_rewards_are_scaled_over_the_batch(
    taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """In units of their standard deviation, here 0.5, whatever the stacks."""
    for parts in ([(4.0, 16)], [(1.0, 4), (3.0, 12)], [(4.0, 8), (0.0, 8)]):
        trainer = trainer_of(taught_base, sums, lm, tmp_path, generator=3.0)
        none, ones = ({n: torch.full_like(t, v) for n, t in trainer.state.theta.items()} for v in (0.0, 1 / len(parts)))
        norms = trainer._update(total([Gradients(none, ones, squares) for squares in parts]), 4)
        size = sum(t.numel() for t in ones.values())
        assert norms["gradient norm/generator"] == pytest.approx(3.0 * size**0.5 / 4 / 0.5, rel=1e-4)
        assert norms["gradient norm/theta"] == 0


@pytest.mark.parametrize("group", ["theta", "eta", "log_rates", "generator"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_group_that_is_not_finite_is_skipped_and_counted(
    group: str, value: float, taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    def fresh() -> Trainer:
        return trainer_of(taught_base, sums, lm, tmp_path)

    def gradients_with(name: str, value: float | None) -> Gradients:
        state = fresh().state
        groups = {g: {n: torch.ones_like(t) for n, t in getattr(state, g).items()} for g in ("theta", "eta")}
        groups["log_rates"] = {n: torch.ones_like(t) for n, t in state.log_rates.items()}
        groups["generator"] = {n: 2 * t for n, t in groups["theta"].items()}
        if value is None:
            groups[name] = {}
        else:
            next(iter(groups[name].values())).view(-1)[0] = value
        return Gradients(**groups, reward_squares=(4.0, 1))

    got, expected = fresh(), fresh()
    norms = got._update(gradients_with(group, value), 1)
    assert norms["skipped updates"] == 1
    assert not math.isfinite(norms[f"gradient norm/{group}"])
    assert expected._update(gradients_with(group, None), 1)["skipped updates"] == 0
    both = tensors(got.state), tensors(expected.state)
    assert [name for name in both[0] if not torch.equal(both[0][name], both[1][name])] == []
    got.save({})
    next(iter(got.state.eta.values())).data.view(-1)[0] = value
    got.step = 7
    with pytest.raises(RunError, match="the parameters are not finite after step 7"):
        got.save({})
    assert RunFolder(tmp_path).latest()[0] == 0
