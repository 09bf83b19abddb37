"""The gradients of one step of the methods that do not adapt, each against a computation of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mass.adaptation import synthesis
from mass.adaptation.checkpoint import init_state
from mass.config import LoraConfig, ModelConfig
from mass.lm import LM, load_lm
from mass.runs.data import task_stream
from mass.training import targets
from mass.training.gradients import Gradients, Stack
from mass.training.solver_step import solver_gradients
from mass.types import Params, Verdict
from small_lms import random_adapter
from small_runs import config_for


def stack_of(lm: LM, base: Path, sums: Path, method: str, count: int = 3, theta: Params | None = None) -> Stack:
    config = config_for(base, sums, method)
    fresh = init_state(lm, config.adapt, 0)
    stream = task_stream(config.tasks, 0)
    state = dataclasses.replace(fresh, theta=random_adapter(lm, 4, scale=0.02) if theta is None else theta)
    return Stack(lm, state, config, [stream(n) for n in range(count)], list(range(count)))


def assert_gradient_of(loss: Tensor, leaves: Params, found: Gradients) -> None:
    """The gradient of `loss`, and of nothing but theta."""
    grads = torch.autograd.grad(loss, list(leaves.values()))
    for name, grad in zip(leaves, grads, strict=True):
        torch.testing.assert_close(found.theta[name], grad, rtol=1e-8, atol=1e-12)
    assert (found.generator, found.eta, found.log_rates, found.reward_squares) == ({}, {}, {}, (0.0, 0))
    assert found.measured["outer_loss"] == pytest.approx(float(loss.detach()), rel=1e-9)


def leaves_of(stack: Stack) -> Params:
    return {name: t.clone().requires_grad_() for name, t in stack.state.theta.items()}


def test_solver_sft_descends_the_loss_of_the_gold_solutions(wide: LM, taught_base: Path, sums: Path) -> None:
    stack = stack_of(wide, taught_base, sums, "solver-sft")
    leaves = leaves_of(stack)
    losses = [wide.losses(wide.batch([wide.example_row(t.problem, t.solution)]), leaves) for t in stack.tasks]
    found = solver_gradients(stack)
    assert_gradient_of(torch.cat(losses).sum(), leaves, found)
    assert found.measured.keys() == {"outer_loss"}, "nothing is sampled"


def test_self_sft_descends_the_loss_of_what_the_base_writes(wide: LM, taught_base: Path, sums: Path) -> None:
    """Whatever theta has become, and `synthesis.writer`: the mean over the valid examples of a problem."""
    stack = stack_of(wide, taught_base, sums, "self-sft", theta=random_adapter(wide, 4, scale=0.2))
    settings = stack.config.adapt.synthesis
    assert settings.writer == "theta"
    groups = synthesis.synthesise(wide, stack.problems, settings, stack.seeds, None)
    assert groups != synthesis.synthesise(wide, stack.problems, settings, stack.seeds, stack.state.theta)
    leaves = leaves_of(stack)
    rows = [[wide.example_row(e.problem, e.solution) for e in group if e.valid] for group in groups]
    assert sum(map(len, rows)) > len(rows), "a mean of one says nothing of the weights"
    means = [wide.losses(wide.batch(group), leaves).mean() for group in rows if group]
    found = solver_gradients(stack)
    assert_gradient_of(torch.stack(means).sum(), leaves, found)
    assert found.measured["valid"] == pytest.approx(sum(map(len, rows)) / 3)
    assert found.measured["tokens"] == sum(len(e.tokens) for group in groups for e in group)


def test_self_sft_reads_no_gold_and_asks_no_verifier(
    wide: LM, taught_base: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = stack_of(wide, taught_base, sums, "self-sft")
    monkeypatch.setattr(targets.verify, "check_all", lambda *_: pytest.fail("it asked"))
    bare = [dataclasses.replace(task, solution="", answer="") for task in stack.tasks]
    one, other = solver_gradients(stack), solver_gradients(dataclasses.replace(stack, tasks=bare))
    assert all(torch.equal(one.theta[name], other.theta[name]) for name in one.theta)


def test_self_sft_without_valid_practice_takes_no_step(tiny_base: Path, sums: Path) -> None:
    lm = load_lm(ModelConfig(name=str(tiny_base), dtype="float64"), LoraConfig(r=2, lora_alpha=4.0))
    found = solver_gradients(stack_of(lm, tiny_base, sums, "self-sft"))
    assert (found.measured["valid"], found.measured["outer_loss"]) == (0, 0)
    assert not any(bool(t.any()) for t in found.theta.values())
    assert found.theta.keys() == lm.init_adapter(0).keys()


def test_samples_without_a_verdict_do_not_count(
    wide: LM, taught_base: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.verify, "check", lambda *_: Verdict(None, "timed out"))
    found = solver_gradients(stack_of(wide, taught_base, sums, "solver-grpo", count=1))
    assert found.measured["no_verdict"] == 1
    assert found.measured["reward"] == 0
    assert not any(bool(t.any()) for t in found.theta.values())
