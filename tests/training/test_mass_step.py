"""The gradients of one outer step on a small model that writes well-formed practice and solves a sum now and then."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mass.adaptation import synthesis
from mass.adaptation.batch import valid_mask
from mass.adaptation.checkpoint import init_state
from mass.config import LoraConfig, ModelConfig
from mass.lm import LM, load_lm
from mass.runs.data import task_stream
from mass.training import outer, policy
from mass.training.gradients import Stack
from mass.training.mass_step import mass_gradients
from small_lms import random_adapter
from small_runs import ADAPTING, METHODS, config_for, gradients, with_inner, with_outer, worst


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
    ("method", "kl"),
    [("mass", 0.0), ("mass", 0.3), ("solver-grpo", 0.3), *((method, 0.0) for method in METHODS if method != "mass")],
)
def test_the_stack_does_not_change_the_gradients(
    method: str, kl: float, wide: LM, taught_base: Path, sums: Path
) -> None:
    """Nor do micro-batches of the inner and the outer loss."""
    config = config_for(taught_base, sums, method, kl=kl)
    whole = gradients(wide, config, 4)
    assert float(whole["theta"].norm()) > 0
    if method in ADAPTING:
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


def test_without_valid_practice_the_solver_still_learns(tiny_base: Path, sums: Path) -> None:
    """A random model writes nothing that parses: theta gets the outer gradient, eta and the rates get none."""
    lm = load_lm(ModelConfig(name=str(tiny_base), dtype="float64"), LoraConfig(r=2, lora_alpha=4.0))
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
