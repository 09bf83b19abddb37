"""Drift on unrelated problems: its value in closed form, its gradient against differences, its place in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from mass.adaptation import drift as canary
from mass.adaptation.batch import practice_of, valid_mask
from mass.adaptation.checkpoint import MetaState, init_state
from mass.adaptation.synthesis import synthesise
from mass.config import InnerConfig, RunConfig, SamplingConfig, TasksConfig
from mass.errors import ConfigError, DataError
from mass.lm import LM
from mass.lm.lora import pick
from mass.metagrad.outer import inner_loop, meta_gradients
from mass.runs.data import canary_stream, read_problems, task_stream
from mass.runs.folder import RunFolder
from mass.training.gradients import Gradients, Stack
from mass.training.mass_step import mass_gradients
from mass.training.trainer import train
from mass.types import Params, Task
from small_lms import float64_throughout, full_logits, make_lm, random_adapter
from small_runs import assert_same_run, config_for

CANARIES = ((Task("Compute 3 + 4."), Task("Find the area.")), (Task("x + 1"),))
SHORT = SamplingConfig(max_new_tokens=9, temperature=0.1)


@pytest.fixture(scope="module")
def small() -> LM:
    return float64_throughout(make_lm())


@pytest.fixture(scope="module")
def answers(small: LM) -> canary.Answers:
    return canary.sample_answers(small, CANARIES, SHORT, [1, 2], random_adapter(small, 1))


def summed(lm: LM, answers: canary.Answers, theta: Params, adapted: Params, micro_batch: int | None = None) -> float:
    with torch.no_grad():
        return float(sum(canary.kl_losses(lm, answers, theta, adapted, micro_batch)))


# ------------------------------------------------------------------------------- the value


def test_answers_are_sampled_from_theta_at_temperature_one(small: LM, answers: canary.Answers) -> None:
    theta = random_adapter(small, 1)
    assert answers.owners.tolist() == [0, 0, 1]
    assert answers.shares.tolist() == [0.5, 0.5, 1.0]
    assert answers.num_tokens == sum(len(answer) for _, answer in answers.rows) > 3
    prompts = [small.solve_prompt(task.problem) for tasks in CANARIES for task in tasks]
    assert [prompt for prompt, _ in answers.rows] == prompts
    hot = canary.sample_answers(small, CANARIES, dataclasses.replace(SHORT, temperature=2.0, top_p=0.1), [1, 2], theta)
    assert hot.rows == answers.rows, "the divergence is that of theta itself, not of theta at another temperature"
    assert canary.sample_answers(small, CANARIES, SHORT, [1, 2], random_adapter(small, 2)).rows != answers.rows
    assert canary.sample_answers(small, CANARIES, SHORT, [3, 4], theta).rows != answers.rows


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_the_divergence_is_that_of_the_two_distributions_at_each_token(
    micro_batch: int | None, small: LM, answers: canary.Answers
) -> None:
    theta, stack = random_adapter(small, 1), random_adapter(small, 5, count=2)
    expected = 0.0
    for (prompt, answer), owner, share in zip(answers.rows, answers.owners.tolist(), (0.5, 0.5, 1.0), strict=True):
        batch = small.batch([(prompt, answer)])
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        one, other = (full_logits(small, batch, params)[0, places] for params in (theta, pick(stack, owner)))
        expected += share * float(kl_divergence(Categorical(logits=one), Categorical(logits=other)).mean())
    assert expected > 0.1
    assert summed(small, answers, theta, stack, micro_batch) == pytest.approx(expected, rel=1e-10)
    shared = pick(stack, 0)
    alike = {name: torch.stack([t, t]) for name, t in shared.items()}
    assert summed(small, answers, theta, shared) == pytest.approx(summed(small, answers, theta, alike), rel=1e-12)


def test_the_drift_of_each_task_is_its_part_of_the_sum(small: LM, answers: canary.Answers) -> None:
    theta, stack = random_adapter(small, 1), random_adapter(small, 5, count=2)
    found = canary.drifts(small, answers, theta, stack, 2)
    assert found.shape == (2,)
    assert float(found.sum()) == pytest.approx(summed(small, answers, theta, stack), rel=1e-12)
    alone = dataclasses.replace(answers, rows=answers.rows[2:], owners=torch.tensor([0]), shares=answers.shares[2:])
    assert float(found[1]) == pytest.approx(summed(small, alone, theta, pick(stack, 1)), rel=1e-10)


def test_where_nothing_moved_there_is_no_drift_and_no_pull(small: LM, answers: canary.Answers) -> None:
    theta = random_adapter(small, 1)
    leaves = {name: t.expand(2, *t.shape).clone().requires_grad_() for name, t in theta.items()}
    total = sum(canary.kl_losses(small, answers, theta, leaves, None))
    assert float(total.detach()) == pytest.approx(0, abs=1e-14)
    grads = torch.autograd.grad(total, list(leaves.values()))
    assert max(float(g.abs().max()) for g in grads) < 1e-12


# ------------------------------------------------------------------------------- the gradient


def test_the_gradient_through_the_inner_loop_is_that_of_differences(wide: LM, taught_base: Path, sums: Path) -> None:
    """Of scores, start and rates, two steps long; the theta that answers and is compared with stays where it is."""
    problems, seeds = [task.problem for task in tasks_of(sums, taught_base)], [0, 1]
    config = config_for(taught_base, sums).adapt
    theta = random_adapter(wide, 4, scale=0.1)
    groups = synthesise(wide, problems, config.synthesis, seeds, theta)
    practice, valid = practice_of(wide, groups), valid_mask(groups, wide.device)
    assert bool(valid.any(1).all())
    answers = canary.sample_answers(wide, [[Task("Compute 1 + 3.")], [Task("Compute 2 + 2.")]], SHORT, seeds, theta)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(valid.shape, generator=generator, dtype=torch.float64)
    rates = {name: torch.full((), -0.5, dtype=torch.float64) for name in theta}

    def found(scores: Tensor, theta_0: Params, rates: Params):
        return meta_gradients(
            inner_loop(practice.losses, InnerConfig(steps=2), None),
            lambda s, alive: practice.pick(torch.softmax(s, 1) * valid * alive[:, None]),
            scores,
            theta_0,
            rates,
            lambda adapted: canary.kl_losses(wide, answers, theta, adapted, 1),
        )

    here = found(scores, theta, rates)
    assert here.outer_loss > 1e-4
    for group, gradient in (("scores", {"": here.scores}), ("theta", here.theta), ("rates", here.log_rates)):
        along = {name: torch.randn(g.shape, generator=generator, dtype=g.dtype) for name, g in gradient.items()}

        def value(h: float, group: str = group, along: Params = along) -> float:
            moved = {"scores": {"": scores}, "theta": theta, "rates": rates}
            moved[group] = {name: t + h * along[name] for name, t in moved[group].items()}
            return found(moved["scores"][""], moved["theta"], moved["rates"]).outer_loss

        h = 1e-4
        slope = (8 * (value(h) - value(-h)) - value(2 * h) + value(-2 * h)) / (12 * h)
        expected = sum(float((g * along[name]).sum()) for name, g in gradient.items())
        assert abs(expected) > 1e-5, group
        # Central differences are off by a third derivative and by rounding, which differ between processors.
        assert slope == pytest.approx(expected, rel=2e-5), group


def tasks_of(sums: Path, base: Path, count: int = 2) -> list[Task]:
    stream = task_stream(config_for(base, sums).tasks, 0)
    return [stream(number) for number in range(count)]


def step(lm: LM, config: RunConfig, sums: Path, base: Path, state: MetaState, canaries: bool = True) -> Gradients:
    tasks = tasks_of(sums, base)
    beside = [[Task("Compute 1 + 3."), Task("Compute 2 + 2.")]] * len(tasks) if canaries else ()
    return mass_gradients(Stack(lm, state, config, tasks, list(range(len(tasks))), beside))


@pytest.fixture(scope="module")
def moved(wide: LM, taught_base: Path, sums: Path) -> MetaState:
    fresh = init_state(wide, config_for(taught_base, sums).adapt, 0)
    return dataclasses.replace(fresh, theta=random_adapter(wide, 4, scale=0.1))


@pytest.mark.parametrize("method", ["mass", "mass-gold"])
def test_it_adds_its_own_gradient_linear_in_its_weight(
    method: str, wide: LM, taught_base: Path, sums: Path, moved: MetaState
) -> None:
    none, one, two = (
        step(wide, config_for(taught_base, sums, method, canary_kl=weight), sums, taught_base, moved)
        for weight in (0.0, 0.5, 1.0)
    )
    assert "canary_KL" not in none.measured
    assert one.measured["canary_KL"] == two.measured["canary_KL"] > 1e-4
    drift = one.measured["canary_KL"]
    assert one.measured["outer_loss"] == pytest.approx(none.measured["outer_loss"] + 0.5 * drift, rel=1e-9)
    assert one.measured["tokens"] > none.measured["tokens"]
    for group in ("theta", "log_rates", "eta"):
        plain, half, whole = (torch.cat([t.flatten() for t in getattr(g, group).values()]) for g in (none, one, two))
        assert float((half - plain).norm()) > 1e-9, group
        torch.testing.assert_close(whole - plain, 2 * (half - plain), rtol=1e-6, atol=1e-12)


def test_weight_zero_changes_not_a_bit(
    wide: LM, taught_base: Path, sums: Path, moved: MetaState, straight: Callable[[str], Path], lm: LM, tmp_path: Path
) -> None:
    config = config_for(taught_base, sums, canary_tasks=5)
    one, other = (step(wide, config, sums, taught_base, moved, canaries=given) for given in (True, False))
    assert one.measured == other.measured
    for group in ("theta", "generator", "eta", "log_rates"):
        assert all(torch.equal(t, getattr(other, group)[name]) for name, t in getattr(one, group).items())
    train(config, tmp_path / "run")
    assert_same_run(straight("mass"), tmp_path / "run", lm)


# ------------------------------------------------------------------------------- in a run


def test_a_run_measures_its_drift(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    config = config_for(taught_base, sums, "mass-gold", canary_kl=0.3, steps=2, eval_every=0)
    train(config, tmp_path / "run")
    rows = RunFolder(tmp_path / "run").metrics()
    assert all(row["canary KL"] > 0 for row in rows)


@pytest.mark.parametrize("method", ["solver-grpo", "solver-sft", "self-sft"])
def test_what_does_not_adapt_does_not_drift(method: str, taught_base: Path, sums: Path, tmp_path: Path) -> None:
    config = config_for(taught_base, sums, method, canary_kl=0.1)
    with pytest.raises(ConfigError, match=f"train.canary_kl is set, but {method} does not adapt"):
        train(config, tmp_path / "run")


def test_canaries_are_of_other_subjects(lm: LM, taught_base: Path, sums: Path) -> None:
    config = config_for(taught_base, sums)
    tasks = [Task(f"{subject} {i}", subject=subject) for subject in ("A", "B", "C") for i in range(3)]
    drawn = canary_stream(config.tasks, 0, 4, lambda number: tasks[number], tasks)
    found = [drawn(number) for number in range(len(tasks))]
    assert all(len(set(ones)) == len(ones) == 4 for ones in found)
    assert all(one.subject != task.subject for task, ones in zip(tasks, found, strict=True) for one in ones)
    assert found == [drawn(number) for number in range(len(tasks))]
    assert len({tuple(ones) for ones in found}) > 3
    nameless = [dataclasses.replace(task, subject="") for task in tasks]
    few = canary_stream(config.tasks, 0, 20, lambda number: nameless[number], nameless)(0)
    assert sorted(t.problem for t in few) == sorted(t.problem for t in nameless[1:]), "all that there are"
    with pytest.raises(DataError, match="no task has another subject than 'A'; expected several"):
        canary_stream(config.tasks, 0, 2, lambda number: tasks[number], tasks[:3])(0)
    assert read_problems(lm, config).canaries is None


def test_an_endless_stream_has_canaries_that_are_not_trained_on(lm: LM) -> None:
    config = RunConfig(tasks=TasksConfig("minimath"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, canary_kl=0.1, eval_every=0))
    problems = read_problems(lm, config)
    target, canaries = problems.task_at(7), problems.canaries(7)
    assert len(canaries) == 2
    assert all(task.subject != target.subject and task.id.startswith("minimath-train-0-") for task in canaries)
    assert all(int(task.id.rsplit("-", 1)[1]) > 10**9 for task in canaries)


def test_tasks_of_one_subject_are_refused_before_the_run(taught_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"problem": "What is 1?", "answer": "1", "subject": "A"}\n' * 2)
    config = config_for(taught_base, file, canary_kl=0.1)
    with pytest.raises(DataError, match=r"set train\.canary_kl to 0$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
