"""Meta-training on a small model that writes well-formed practice and solves a sum now and then."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mass import checkpoint, metastep, outer, policy, synthesis
from mass.checkpoint import MetaState, init_state
from mass.config import (
    AtTestConfig,
    InnerConfig,
    LoraConfig,
    ModelConfig,
    OuterConfig,
    PracticeConfig,
    RunConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
    TasksConfig,
    TrainConfig,
    at_test,
)
from mass.errors import ConfigError, DataError, ModelError, RunError
from mass.lm import LM, load_lm
from mass.metastep import Gradients, Stack, grpo_gradients, mass_gradients
from mass.practice import valid_mask
from mass.runlog import RunFolder
from mass.train import Problems, Trainer, read_problems, task_stream, train
from mass.types import Verdict
from small_lms import float64_throughout, random_adapter, small_sums

METHODS = ["mass", "mass-gold", "solver-grpo"]


def config_for(base: Path, tasks: Path, method: str = "mass", **changes: object) -> RunConfig:
    adapt = PracticeConfig(
        SynthesisConfig(examples=3, sampling=SamplingConfig(max_tokens=32)),
        ScoringConfig(hidden=8),
        InnerConfig(learning_rate=0.5, steps=2),
    )
    options = {"steps": 4, "tasks_per_step": 4, "stack": 2, "eval_every": 2, "eval_size": 2, "checkpoint_every": 1}
    return RunConfig(
        model=ModelConfig(name=str(base)),
        lora=LoraConfig(rank=2, alpha=4.0),
        tasks=TasksConfig(source=str(tasks), verifier="exact"),
        validation=TasksConfig(source=str(tasks), verifier="exact"),
        adapt=adapt,
        test=AtTestConfig(3, 2, SamplingConfig(max_tokens=14, temperature=0.0)),
        outer=OuterConfig(sampling=SamplingConfig(max_tokens=14), samples=6),
        train=TrainConfig(method=method, **{**options, **changes}),
    )


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "sums.jsonl"
    rows = [{"problem": t.problem, "solution": t.solution, "answer": t.answer} for t in small_sums()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def straight(taught_base: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of four steps in one go, by method."""

    @functools.cache
    def run(method: str) -> Path:
        folder = tmp_path_factory.mktemp("straight") / method
        train(config_for(taught_base, sums, method), folder, False, lambda _: None)
        return folder

    return run


def tensors(state: MetaState) -> dict[str, Tensor]:
    parts = {"theta": state.theta, "eta": state.eta, "rate": state.log_rates}
    return {f"{part}.{name}": t for part, params in parts.items() for name, t in params.items()}


def saved(folder: Path, lm: LM, name: str = "") -> dict[str, Tensor]:
    """All numbers of a run's latest checkpoint (or the named one), the optimiser's included."""
    path = folder / "checkpoints" / name if name else RunFolder(folder).latest()[1]
    state, _ = checkpoint.load(path, lm)
    optimizer = torch.load(path / "trainer.pt", weights_only=True)
    memory = {f"{i}.{key}": t for i, slot in optimizer["state"].items() for key, t in slot.items()}
    return tensors(state) | memory


def assert_same_run(one: Path, other: Path, lm: LM) -> None:
    for name in ("", "best"):
        first, second = saved(one, lm, name), saved(other, lm, name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in RunFolder(f).metrics()]
        for f in (one, other)
    ]
    assert rows[0] == rows[1]
    assert RunFolder(one).latest()[0] == RunFolder(other).latest()[0]
    assert RunFolder(one).best_score() == RunFolder(other).best_score()


@pytest.fixture(scope="session")
def lm(taught_base: Path) -> LM:
    return load_lm(ModelConfig(name=str(taught_base)), LoraConfig(rank=2, alpha=4.0))


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
    assert changed == ({"theta"} if method == "solver-grpo" else {"theta", "eta", "rate"})
    assert all(bool(t.isfinite().all()) for t in tensors(state).values())


@pytest.mark.parametrize("method", METHODS)
def test_metrics_say_what_happened(method: str, straight: Callable[[str], Path]) -> None:
    rows = RunFolder(straight(method)).metrics()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    steps, evaluated = rows[1:], [rows[0], rows[2], rows[4]]
    always = {"outer loss", "tokens", "gradient norm/theta", "gradient norm/eta", "gradient norm/log_rates"}
    always |= {"seconds/outer"}
    sampled = {"reward", "solved by any", "no verdict"}
    adapting = {"valid", "weight", "heaviest weight", "attribution", "inner rate", "inner rate/lowest"}
    adapting |= {
        "practice loss",
        "skipped updates",
        "inner rate/highest",
        "seconds/synthesis",
        "seconds/scoring",
        "seconds/inner loop and meta-gradient",
        "not finite",
    }
    for row in steps:
        assert always <= row.keys()
        assert (sampled <= row.keys()) == (method != "mass-gold")
        assert (adapting <= row.keys()) == (method != "solver-grpo")
        assert all(math.isfinite(value) for value in row.values())
        for share in ("reward", "solved by any", "no verdict", "valid"):
            assert 0 <= row.get(share, 0) <= 1
    for row in evaluated:
        assert {"eval/accuracy", "eval/unadapted accuracy", "eval/fallbacks"} <= row.keys()
        assert 0 <= row["eval/accuracy"] <= 1
    assert not any("eval/accuracy" in row for row in (rows[1], rows[3]))
    if method != "solver-grpo":
        assert all(row["valid"] > 0.3 for row in steps), "the model writes practice, or nothing here is tested"
        assert any(row["gradient norm/eta"] > 0 for row in steps)
        assert steps[0]["inner rate"] != 0.5
    assert any(row["gradient norm/theta"] > 0 for row in steps)


def test_steps_are_reported_as_they_are_logged(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    config = config_for(taught_base, sums, "mass-gold", steps=1, eval_every=0)
    train(config, tmp_path / "run", False, seen.append)
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


@pytest.mark.parametrize("method", ["mass", "solver-grpo"])
def test_stopped_and_resumed_is_the_same_run(
    method: str, straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """Stopped in the middle of step 2 (logged, not saved), then of step 4, then finished."""
    config = config_for(taught_base, sums, method)
    for step, resume in [(2, False), (4, True)]:
        with pytest.raises(Stop):
            train(config, tmp_path / "run", resume, stop_after(step))
    train(config, tmp_path / "run", True, lambda _: None)
    assert_same_run(straight(method), tmp_path / "run", lm)


def test_rare_checkpoints_and_a_longer_run(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """Two steps with a checkpoint each, then resumed with more steps: as if asked for four at once."""
    config = config_for(taught_base, sums, "mass-gold")
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    train(short, tmp_path / "run", False, lambda _: None)
    train(config, tmp_path / "run", True, lambda _: None)
    assert_same_run(straight("mass-gold"), tmp_path / "run", lm)


def test_stopped_before_the_first_checkpoint_starts_again(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    config = config_for(taught_base, sums, "mass-gold")
    with pytest.raises(Stop):
        train(config, tmp_path / "run", False, stop_after(1))
    assert RunFolder(tmp_path / "run").latest() is None
    train(config, tmp_path / "run", True, lambda _: None)
    assert_same_run(straight("mass-gold"), tmp_path / "run", lm)


def run_in_a_process(base: str, tasks: str, folder: str) -> None:
    train(config_for(Path(base), Path(tasks)), Path(folder), False, lambda _: None)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_run(
    straight: Callable[[str], Path], taught_base: Path, sums: Path, lm: LM, tmp_path: Path
) -> None:
    """A real `kill -9` of another process, wherever it is after its second step."""
    straight("mass")
    folder = tmp_path / "run"
    arguments = str(taught_base), str(sums), str(folder)
    command = f"from test_train import run_in_a_process; run_in_a_process{arguments!r}"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not any('"step": 2' in line for line in lines(folder)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (folder / "checkpoints" / "step-000004").exists()
    train(config_for(taught_base, sums), folder, True, lambda _: None)
    assert_same_run(straight("mass"), folder, lm)


def lines(folder: Path) -> list[str]:
    file = folder / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


# ------------------------------------------------------------------------------- what it refuses


def refused(kind: type, match: str, config: RunConfig, folder: Path, resume: bool = False) -> None:
    with pytest.raises(kind, match=match) as error:
        train(config, folder, resume, lambda _: None)
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
    kl = config_for(taught_base, sums, "mass-gold", kl=0.1)
    refused(ConfigError, "train.kl is set, but mass-gold samples no solutions", kl, tmp_path / "kl")


def test_a_base_that_changed_since_is_refused(
    taught_base: Path, tiny_base: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(taught_base, sums, "mass-gold", steps=1, eval_every=0)
    train(config, tmp_path / "run", False, lambda _: None)
    monkeypatch.setattr("mass.train.load_lm", lambda *_: load_lm(ModelConfig(name=str(tiny_base)), config.lora))
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
    ],
)
def test_tasks_without_the_gold_a_method_needs(
    method: str, row: dict[str, str], match: str, taught_base: Path, sums: Path, tmp_path: Path
) -> None:
    good = {"problem": "Compute 1 + 1.", "solution": "1+1=2. Answer: 2", "answer": "2"}
    tasks = written(tmp_path / "t.jsonl", good, {"problem": "Compute 2 + 0.", **row})
    config = dataclasses.replace(config_for(taught_base, sums, method), tasks=tasks)
    refused(DataError, match, config, tmp_path / "run")
    unjudged = dataclasses.replace(config_for(taught_base, sums, method), validation=tasks)
    refused(DataError, "'t-2' of the validation tasks has no answer", unjudged, tmp_path / "run")


@pytest.mark.parametrize("method", METHODS)
def test_tasks_beyond_the_context_are_left_out_and_counted(
    method: str, taught_base: Path, sums: Path, tmp_path: Path, lm: LM
) -> None:
    """`taught_base` reads 256 tokens. The prompt to write practice is the longer one, and only mass-gold reads gold."""
    good = {"problem": "Compute 1 + 1.", "solution": "1+1=2. Answer: 2", "answer": "2"}
    endless = {**good, "problem": "1 + " * 400}
    worked = {**good, "solution": "1+1=2. " * 200}
    edge = {**good, "problem": next(p for n in range(256) if not fits(lm.synthesis_prompt, p := "1" * n))}
    assert fits(lm.solve_prompt, edge["problem"])
    tasks = written(tmp_path / "t.jsonl", good, endless, worked, edge)
    config = config_for(taught_base, sums, method, steps=1, eval_size=4)
    config = dataclasses.replace(config, tasks=tasks, validation=tasks)
    train(config, tmp_path / "run", False, lambda _: None)
    rows = RunFolder(tmp_path / "run").metrics()
    expected = {"mass": 2, "mass-gold": 3, "solver-grpo": 1}[method]
    assert [row.get("skipped tasks") for row in rows] == [expected, None]
    assert rows[0]["skipped validation tasks"] == (1 if method == "solver-grpo" else 2)
    none = dataclasses.replace(config, tasks=written(tmp_path / "none.jsonl", endless))
    refused(DataError, "none of the 1 tasks fits the 256 tokens", none, tmp_path / "other")


def fits(prompt: Callable[[str], list[int]], problem: str) -> bool:
    try:
        prompt(problem)
    except DataError:
        return False
    return True


# ------------------------------------------------------------------------------- gradients of a step


@pytest.fixture(scope="module")
def wide(taught_base: Path) -> LM:
    base = ModelConfig(name=str(taught_base), dtype="float64")
    return float64_throughout(load_lm(base, LoraConfig(rank=2, alpha=4.0)))


def gradients(lm: LM, config: RunConfig, stack: int, count: int = 4) -> dict[str, Tensor]:
    """Summed over `count` tasks, `stack` at a time, from a state that is not a special one."""
    fresh = init_state(lm, config.adapt, 0)
    generator = torch.Generator().manual_seed(3)
    eta = {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in fresh.eta.items()}
    state = MetaState(random_adapter(lm, 4, scale=0.02), eta, fresh.log_rates)
    stream = task_stream(config.tasks, 0)
    of = grpo_gradients if config.train.method == "solver-grpo" else mass_gradients
    parts: list[Gradients] = [
        of(Stack(lm, state, config, [stream(n) for n in range(i, i + stack)], list(range(i, i + stack))))
        for i in range(0, count, stack)
    ]
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for group in ("theta", "generator", "eta", "log_rates"):
            for name, t in getattr(part, group).items():
                found.setdefault(f"{group}.{name}", []).append(t)
    found["rewards.scale"] = [torch.tensor(part.reward_squares, dtype=torch.float64) for part in parts]
    total = {name: torch.stack(ts).sum(0) for name, ts in found.items()}
    return {g: torch.cat([t.flatten() for n, t in total.items() if n.startswith(g)]) for g in _groups(total)}


def _groups(total: dict[str, Tensor]) -> list[str]:
    return sorted({name.split(".")[0] for name in total})


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / one[n].norm().clamp_min(1e-30)) for n in one)


def with_outer(config: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(config, outer=dataclasses.replace(config.outer, **changes))


def with_inner(config: RunConfig, **changes: object) -> RunConfig:
    inner = dataclasses.replace(config.adapt.inner, **changes)
    return dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, inner=inner))


@pytest.mark.parametrize("changes", [{"memory_gb": 1.0}, {"checkpoint": True}, {"micro_batch": 1}])
def test_what_saves_memory_does_not_change_the_gradients(
    changes: dict[str, object], wide: LM, taught_base: Path, sums: Path
) -> None:
    config = with_inner(config_for(taught_base, sums, "mass-gold"), steps=2)
    assert worst(gradients(wide, with_inner(config, **changes), 4), gradients(wide, config, 4)) < 1e-9


def test_each_adapter_of_a_stack_is_clipped_by_its_own_norm(wide: LM, taught_base: Path, sums: Path) -> None:
    config = with_inner(config_for(taught_base, sums, "mass-gold"), steps=2)
    clipped = with_inner(config, clip_norm=1e-2)
    assert worst(gradients(wide, clipped, 1), gradients(wide, clipped, 4)) < 1e-8
    assert worst(gradients(wide, clipped, 4), gradients(wide, config, 4)) > 1e-3


def test_the_mode_of_a_run_reaches_the_engine(wide: LM, taught_base: Path, sums: Path) -> None:
    config = with_inner(config_for(taught_base, sums, "mass-gold"), steps=2)
    exact = gradients(wide, config, 4)
    for mode in ("first_order", "truncated(1)"):
        assert worst(gradients(wide, with_inner(config, mode=mode), 4), exact) > 1e-6
    near = gradients(wide, with_inner(config, mode="finite_difference"), 4)
    assert worst(near, exact) < 1e-3


@pytest.mark.parametrize(
    ("method", "kl"), [("mass", 0.0), ("mass", 0.3), ("mass-gold", 0.0), ("solver-grpo", 0.0), ("solver-grpo", 0.3)]
)
def test_the_stack_does_not_change_the_gradients(
    method: str, kl: float, wide: LM, taught_base: Path, sums: Path
) -> None:
    """Nor do micro-batches of the inner and the outer loss."""
    config = config_for(taught_base, sums, method, kl=kl)
    whole = gradients(wide, config, 4)
    if method != "solver-grpo":
        assert whole.keys() == {"theta", "generator", "eta", "log_rates", "rewards"}
        assert all(float(t.norm()) > 0 for t in whole.values())
    for stack in (1, 2):
        assert worst(whole, gradients(wide, config, stack)) < 1e-9
    inner_batched = dataclasses.replace(config.adapt, inner=dataclasses.replace(config.adapt.inner, micro_batch=2))
    small = with_outer(dataclasses.replace(config, adapt=inner_batched), micro_batch=3)
    assert worst(whole, gradients(wide, small, 4)) < 1e-9


@pytest.mark.parametrize("method", ["mass", "solver-grpo"])
def test_kl_adds_its_own_gradient(method: str, wide: LM, taught_base: Path, sums: Path) -> None:
    """Linear in its weight."""
    none, one, two = (gradients(wide, config_for(taught_base, sums, method, kl=kl), 4) for kl in (0.0, 0.5, 1.0))
    added, twice = one["theta"] - none["theta"], two["theta"] - none["theta"]
    assert float(added.norm()) > 1e-6
    torch.testing.assert_close(twice, 2 * added, rtol=1e-5, atol=1e-8)


def test_gamma_and_the_anchor_weigh_their_terms(wide: LM, taught_base: Path, sums: Path) -> None:
    def theta(**weights: float) -> Tensor:
        return gradients(wide, config_for(taught_base, sums, "mass", **weights), 4)["theta"]

    solver, anchor = theta(gamma=1.0, generator_kl=0.0), theta(gamma=0.0, generator_kl=1.0)
    assert float(solver.norm()) > 0
    assert float(anchor.norm()) > 0
    torch.testing.assert_close(theta(gamma=0.5, generator_kl=2.0), 0.5 * solver + 2 * anchor, rtol=1e-6, atol=1e-9)


def test_the_anchor_is_the_divergence_from_the_base_on_what_was_written(
    wide: LM, taught_base: Path, sums: Path
) -> None:
    config = config_for(taught_base, sums, "mass-gold", gamma=0.0, generator_kl=1.0)
    fresh = init_state(wide, config.adapt, 0)
    far = dataclasses.replace(fresh, theta=random_adapter(wide, 4, scale=0.1))
    tasks, seeds = [task_stream(config.tasks, 0)(n) for n in range(2)], [0, 1]
    problems = [task.problem for task in tasks]
    found = mass_gradients(Stack(wide, far, config, tasks, seeds))
    groups = synthesis.synthesise(wide, problems, config.adapt.synthesis, seeds, far.theta)
    rows = [(wide.synthesis_prompt(p), list(e.tokens)) for p, g in zip(problems, groups, strict=True) for e in g]

    def divergence(params: dict[str, Tensor]) -> float:
        with torch.no_grad():
            return float(sum(outer.kl_of_rows(wide, rows, params, None))) / config.adapt.synthesis.examples

    assert divergence(far.theta) == pytest.approx(found.measured["generator_KL"], rel=1e-9)
    squares = sum(float(g.square().sum()) for g in found.theta.values())
    ahead, back = ({n: t + h * found.theta[n] for n, t in far.theta.items()} for h in (1e-5, -1e-5))
    assert (divergence(ahead) - divergence(back)) / 2e-5 == pytest.approx(squares, rel=1e-4)
    at_base = mass_gradients(Stack(wide, fresh, config, tasks, seeds))
    assert at_base.measured["generator_KL"] == pytest.approx(0, abs=1e-12)
    assert all(float(t.abs().max()) < 1e-9 for t in at_base.theta.values())


def test_a_frozen_generator_writes_as_the_base_does_and_is_not_trained(wide: LM, taught_base: Path, sums: Path) -> None:
    config = config_for(taught_base, sums, "mass-gold")
    frozen = dataclasses.replace(config.adapt, synthesis=dataclasses.replace(config.adapt.synthesis, writer="base"))
    tasks, state = [task_stream(config.tasks, 0)(n) for n in range(2)], init_state(wide, config.adapt, 0)
    moved = dataclasses.replace(state, theta=random_adapter(wide, 4, scale=0.3))
    problems = [task.problem for task in tasks]
    written = [synthesis.synthesise(wide, problems, frozen.synthesis, [0, 1], s.theta) for s in (state, moved)]
    assert written[0] == written[1]
    found = mass_gradients(Stack(wide, moved, dataclasses.replace(config, adapt=frozen), tasks, [0, 1]))
    assert (found.generator, found.reward_squares) == ({}, (0.0, 0))
    assert "generator_KL" not in found.measured


def test_the_generator_is_rewarded_for_what_lowers_the_outer_loss(wide: LM, taught_base: Path, sums: Path) -> None:
    """A step along its gradient makes examples of negative attribution likelier than the others of their group."""
    config = config_for(taught_base, sums, "mass-gold")
    tasks, seeds = [task_stream(config.tasks, 0)(n) for n in range(4)], list(range(4))
    state = dataclasses.replace(init_state(wide, config.adapt, 0), theta=random_adapter(wide, 4, scale=0.02))
    seen: list[Tensor] = []
    right = policy.lowest_for_rejected

    def watch(rewards: Tensor, valid: Tensor) -> Tensor:
        seen.append(right(rewards, valid))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "lowest_for_rejected", watch)
        found = mass_gradients(Stack(wide, state, config, tasks, seeds))
    groups = synthesis.synthesise(wide, [t.problem for t in tasks], config.adapt.synthesis, seeds, state.theta)
    advantages = policy.group_advantages(seen[0], scale=False)
    assert bool(valid_mask(groups, wide.device).any())

    def expected_advantage(params: dict[str, Tensor]) -> float:
        rows = [
            (wide.synthesis_prompt(t.problem), list(e.tokens)) for t, g in zip(tasks, groups, strict=True) for e in g
        ]
        return float((-wide.losses(wide.batch(rows), params) * advantages.flatten()).sum())

    stepped = {n: t - 1e-3 * found.generator[n] for n, t in state.theta.items()}
    assert expected_advantage(stepped) > expected_advantage(state.theta)


def test_samples_without_a_verdict_do_not_count(
    wide: LM, taught_base: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metastep.verify, "check", lambda *_: Verdict(None, "timed out"))
    config = config_for(taught_base, sums, "solver-grpo")
    stack = Stack(wide, init_state(wide, config.adapt, 0), config, [task_stream(config.tasks, 0)(0)], [0])
    found = grpo_gradients(stack)
    assert found.measured["no_verdict"] == 1
    assert found.measured["reward"] == 0
    assert not any(bool(t.any()) for t in found.theta.values())


def test_without_valid_practice_the_solver_still_learns(tiny_base: Path, sums: Path) -> None:
    """A random model writes nothing that parses: theta gets the outer gradient, eta and the rates get none."""
    lm = load_lm(ModelConfig(name=str(tiny_base), dtype="float64"), LoraConfig(rank=2, alpha=4.0))
    config = config_for(tiny_base, sums, "mass-gold", generator_kl=0.0)
    state = dataclasses.replace(init_state(lm, config.adapt, 0), theta=random_adapter(lm, 4, scale=0.02))
    tasks = [task_stream(config.tasks, 0)(n) for n in range(2)]
    found = mass_gradients(Stack(lm, state, config, tasks, [0, 1]))
    assert found.measured["valid"] == 0
    assert (found.eta, found.log_rates, found.generator) == ({}, {}, {})
    assert found.reward_squares == (0.0, 6), "they count as in a stack where another task has practice"
    leaves = {n: t.clone().requires_grad_() for n, t in state.theta.items()}
    sum(outer.gold_losses(lm, tasks, config.outer, leaves)).backward()
    for name, tensor in leaves.items():
        torch.testing.assert_close(found.theta[name], tensor.grad, rtol=1e-7, atol=1e-10)


# ------------------------------------------------------------------------------- the update and the stream


def trainer_of(taught_base: Path, sums: Path, lm: LM, tmp_path: Path, **changes: object) -> Trainer:
    config = config_for(taught_base, sums, **{"eval_every": 0, **changes})
    return Trainer(lm, config, read_problems(lm, config), RunFolder(tmp_path))


def test_the_update_averages_clips_and_warms_up(taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    trainer = trainer_of(taught_base, sums, lm, tmp_path, solver_lr=0.01, rates_lr=0.0, warmup=4, max_grad_norm=1.0)
    before = {n: t.clone() for n, t in tensors(trainer.state).items()}
    ones = {n: torch.ones_like(t) for n, t in trainer.state.theta.items()}
    norms = trainer._update([Gradients(ones), Gradients(ones)], 4)
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
        norms = trainer._update([Gradients(none, ones, squares) for squares in parts], 4)
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
    norms = got._update([gradients_with(group, value)], 1)
    assert norms["skipped updates"] == 1
    assert not math.isfinite(norms[f"gradient norm/{group}"])
    assert expected._update([gradients_with(group, None)], 1)["skipped updates"] == 0
    both = tensors(got.state), tensors(expected.state)
    assert [name for name in both[0] if not torch.equal(both[0][name], both[1][name])] == []
    got.save({})
    next(iter(got.state.eta.values())).data.view(-1)[0] = value
    got.step = 7
    with pytest.raises(RunError, match="the parameters are not finite after step 7"):
        got.save({})
    assert RunFolder(tmp_path).latest()[0] == 0


def test_the_practice_loss_is_that_before_the_first_step(wide: LM, taught_base: Path, sums: Path) -> None:
    """Whatever the number of steps and the micro-batches of the inner loop: weighted within a task, then averaged."""
    config = config_for(taught_base, sums, "mass-gold")
    tasks, seeds = [task_stream(config.tasks, 0)(n) for n in range(4)], list(range(4))
    state = dataclasses.replace(init_state(wide, config.adapt, 0), theta=random_adapter(wide, 4, scale=0.02))

    def measured(**inner: object) -> dict[str, float]:
        adapt = dataclasses.replace(config.adapt, inner=dataclasses.replace(config.adapt.inner, **inner))
        return mass_gradients(Stack(wide, state, dataclasses.replace(config, adapt=adapt), tasks, seeds)).measured

    groups = synthesis.synthesise(wide, [t.problem for t in tasks], config.adapt.synthesis, seeds, state.theta)
    means = []
    for group in groups:
        rows = [wide.example_row(e.problem, e.solution) for e in group if e.valid]
        if rows:  # a fresh scorer weighs all alike
            means.append(float(wide.losses(wide.batch(rows), state.theta).mean()))
    assert len(means) >= 2
    for inner in ({"steps": 1}, {"steps": 3, "micro_batch": 2}, {"steps": 2, "memory_gb": 1.0}):
        found = measured(**inner)
        assert found["practice_loss"] == pytest.approx(sum(means), rel=1e-9)
        assert found["practised"] == len(means)


def test_a_file_is_read_in_a_new_order_each_epoch(sums: Path) -> None:
    stream = task_stream(TasksConfig(source=str(sums)), 0)
    epochs = [[stream(9 * e + i).problem for i in range(9)] for e in range(3)]
    assert all(sorted(epoch) == sorted(t.problem for t in small_sums()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert stream(4) == task_stream(TasksConfig(source=str(sums)), 0)(4)
    assert [task_stream(TasksConfig(source=str(sums)), 1)(i).problem for i in range(9)] != epochs[0]


def test_minimath_is_endless() -> None:
    stream = task_stream(TasksConfig(), 0)
    assert stream(10**9).id == "minimath-train-0-1000000000"
    few = task_stream(TasksConfig(size=5), 0)
    assert len({few(i).problem for i in range(50)}) == 5
