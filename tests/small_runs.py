"""Short runs on a small model: their configuration, what they leave behind, their gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from mass.adaptation import checkpoint
from mass.adaptation.checkpoint import MetaState, init_state
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
)
from mass.lm import LM
from mass.runs.data import task_stream
from mass.runs.folder import RunFolder
from mass.training.gradients import Gradients, Stack
from mass.training.mass_step import mass_gradients
from mass.training.solver_step import solver_gradients
from small_lms import random_adapter

METHODS = ["mass", "mass-gold", "solver-grpo", "solver-sft", "self-sft"]
ADAPTING = ("mass", "mass-gold")


def config_for(base: Path, tasks: Path, method: str = "mass", **changes: object) -> RunConfig:
    adapt = PracticeConfig(
        SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=32)),
        ScoringConfig(hidden=8),
        InnerConfig(learning_rate=0.5, steps=2),
    )
    options = {"steps": 4, "tasks_per_step": 4, "stack": 2, "eval_every": 2, "eval_size": 2, "checkpoint_every": 1}
    return RunConfig(
        model=ModelConfig(name=str(base)),
        lora=LoraConfig(r=2, lora_alpha=4.0),
        tasks=TasksConfig(source=str(tasks), verifier="exact"),
        validation=TasksConfig(source=str(tasks), verifier="exact"),
        adapt=adapt,
        test=AtTestConfig(3, 2, SamplingConfig(max_new_tokens=14, temperature=0.0)),
        outer=OuterConfig(sampling=SamplingConfig(max_new_tokens=14), samples=6),
        train=TrainConfig(method=method, **{**options, **changes}),
    )


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


def gradients(lm: LM, config: RunConfig, stack: int, count: int = 4) -> dict[str, Tensor]:
    """Summed over `count` tasks, `stack` at a time, from a state that is not a special one."""
    fresh = init_state(lm, config.adapt, 0)
    generator = torch.Generator().manual_seed(3)
    eta = {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in fresh.eta.items()}
    state = MetaState(random_adapter(lm, 4, scale=0.02), eta, fresh.log_rates)
    stream = task_stream(config.tasks, 0)
    of = mass_gradients if config.train.method in ADAPTING else solver_gradients
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
    summed = {name: torch.stack(ts).sum(0) for name, ts in found.items()}
    return {g: torch.cat([t.flatten() for n, t in summed.items() if n.startswith(g)]) for g in _groups(summed)}


def _groups(summed: dict[str, Tensor]) -> list[str]:
    return sorted({name.split(".")[0] for name in summed})


def worst(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / one[n].norm().clamp_min(1e-30)) for n in one)


def with_outer(config: RunConfig, **changes: object) -> RunConfig:
    return dataclasses.replace(config, outer=dataclasses.replace(config.outer, **changes))


def with_inner(config: RunConfig, **changes: object) -> RunConfig:
    inner = dataclasses.replace(config.adapt.inner, **changes)
    return dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, inner=inner))
