"""Each switch of the ablations does what it says, and nothing else: on gradients, in a run, and at test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mass.adaptation import checkpoint, scoring, synthesis
from mass.adaptation.adapt import practise
from mass.adaptation.batch import practice_of, valid_mask
from mass.adaptation.checkpoint import MetaState, init_state
from mass.adaptation.synthesis.result import Reading
from mass.config import RunConfig, at_test
from mass.lm import LM
from mass.metagrad import SGD, adapt
from mass.metagrad.outer import outer_gradient
from mass.runs.data import task_stream
from mass.runs.folder import RunFolder
from mass.training.gradients import Gradients, Stack
from mass.training.mass_step import mass_gradients
from mass.training.outer import gold_losses
from mass.training.trainer import train
from mass.types import Params
from small_lms import random_adapter
from small_runs import config_for, tensors, with_inner


def with_adapt(config: RunConfig, stage: str, **changes: Any) -> RunConfig:
    changed = dataclasses.replace(getattr(config.adapt, stage), **changes)
    return dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, **{stage: changed}))


def state_of(lm: LM, config: RunConfig) -> MetaState:
    """A scorer that does not weigh all alike, a theta that is not the base."""
    fresh = init_state(lm, config.adapt, 0)
    generator = torch.Generator().manual_seed(3)
    eta = {n: t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in fresh.eta.items()}
    return MetaState(random_adapter(lm, 4, scale=0.02), eta, fresh.log_rates)


def stack_of(lm: LM, config: RunConfig, count: int = 3) -> Stack:
    stream = task_stream(config.tasks, 0)
    return Stack(lm, state_of(lm, config), config, [stream(n) for n in range(count)], list(range(count)))


def found_with(lm: LM, config: RunConfig) -> Gradients:
    return mass_gradients(stack_of(lm, config))


def run(config: RunConfig, folder: Path, lm: LM) -> tuple[dict[str, bool], list[dict[str, float]]]:
    """Which groups of parameters a run of two steps changed by a single bit, and its metrics."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2, eval_every=0))
    train(config, folder)
    before = tensors(init_state(lm, config.adapt, config.train.seed))
    after = tensors(checkpoint.load(folder, lm)[0])
    changed = {group: False for group in ("theta", "eta", "rate")}
    for name, t in after.items():
        changed[name.split(".")[0]] |= not torch.equal(t, before[name])
    return changed, RunFolder(folder).metrics()


def flat(params: Params) -> Tensor:
    return torch.cat([t.flatten() for t in params.values()])


# ------------------------------------------------------------------------------- the parts of the objective


def test_no_scorer(wide: LM, taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    """scoring.normalise uniform: all valid examples weigh alike, and eta is not trained."""
    config = config_for(taught_base, sums, "mass-gold")
    uniform = with_adapt(config, "scoring", normalise="uniform")
    found = found_with(wide, uniform)
    assert not any(bool(t.any()) for t in found.eta.values())
    assert any(bool(t.any()) for t in found_with(wide, config).eta.values())
    groups = practise(wide, state_of(wide, uniform), ["Compute 1 + 1."], at_test(uniform), [0])[1].groups[0]
    weights = [e.weight for e in groups if e.valid]
    assert weights == [pytest.approx(1 / len(weights))] * len(weights) != []
    changed, rows = run(uniform, tmp_path / "run", lm)
    assert changed == {"theta": True, "eta": False, "rate": True}
    assert [row["gradient norm/eta"] for row in rows] == [0, 0]


def test_no_attribution_reward(wide: LM, taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    """train.generator 0: no policy gradient, and the other gradients are what they were."""
    config = config_for(taught_base, sums, "mass-gold")
    without = config_for(taught_base, sums, "mass-gold", generator=0.0)
    one, other = found_with(wide, config), found_with(wide, without)
    assert one.reward_squares[0] > 0
    assert flat(one.generator).norm() > 0
    assert (other.generator, other.reward_squares) == ({}, (0.0, 0))
    for group in ("theta", "eta", "log_rates"):
        assert torch.equal(flat(getattr(one, group)), flat(getattr(other, group)))
    _, rows = run(without, tmp_path / "run", lm)
    assert not any("gradient norm/generator" in row for row in rows)


def test_no_solver_term(wide: LM, taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    """train.gamma 0: theta moves by the generator's terms alone, and without those not at all."""
    base = {"gamma": 0.0, "generator_kl": 0.0}
    found = found_with(wide, config_for(taught_base, sums, "mass-gold", **base))
    assert not flat(found.theta).any()
    assert flat(found.generator).norm() > 0
    whole = found_with(wide, config_for(taught_base, sums, "mass-gold", generator_kl=0.0))
    assert flat(whole.theta).norm() > 0
    assert torch.equal(flat(found.generator), flat(whole.generator))
    changed, rows = run(config_for(taught_base, sums, "mass-gold", **base), tmp_path / "generator", lm)
    assert changed == {"theta": True, "eta": True, "rate": True}
    assert all(row["gradient norm/theta"] == 0 < row["gradient norm/generator"] for row in rows)
    changed, _ = run(config_for(taught_base, sums, "mass-gold", generator=0.0, **base), tmp_path / "none", lm)
    assert changed == {"theta": False, "eta": True, "rate": True}


def test_first_order(wide: LM, taught_base: Path, sums: Path) -> None:
    """inner.mode first_order: the gradient of theta is the outer gradient where the inner loop ends."""
    config = with_inner(config_for(taught_base, sums, "mass-gold", generator_kl=0.0), mode="first_order", steps=2)
    stack = stack_of(wide, config)
    groups = synthesis.synthesise(wide, stack.problems, config.adapt.synthesis, stack.seeds, stack.state.theta)
    practice, valid = practice_of(wide, groups), valid_mask(groups, wide.device)
    scores = practice.spread(
        scoring.score(wide, stack.state.eta, *practice.targets(stack.problems, groups)).detach(), *valid.shape
    )
    weights = practice.pick(scoring.normalise(scores, valid))
    start = {name: t.expand(len(valid), *t.shape) for name, t in stack.state.theta.items()}
    rates = {name: t.exp() for name, t in stack.state.log_rates.items()}
    with torch.no_grad():
        adapted = adapt(practice.losses, start, weights, optimizer=SGD(lr=rates), steps=2, stacked=True)
    _, expected = outer_gradient(lambda params: gold_losses(wide, stack.tasks, config.outer, params), adapted)
    found = mass_gradients(stack)
    for name, grad in zip(adapted, expected, strict=True):
        torch.testing.assert_close(found.theta[name], grad.sum(0), rtol=1e-8, atol=1e-12)
    exact = mass_gradients(dataclasses.replace(stack, config=with_inner(config, mode="exact")))
    assert float((flat(exact.theta) - flat(found.theta)).norm() / flat(exact.theta).norm()) > 1e-4


def test_a_frozen_generator(wide: LM, taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    """synthesis.writer base: the practice is the base's, in training and at test, and theta is not trained to write."""
    config = with_adapt(config_for(taught_base, sums, "mass-gold"), "synthesis", writer="base")
    state, problems = state_of(wide, config), ["Compute 1 + 1.", "Compute 2 + 3."]
    assert at_test(config).synthesis.writer == "base"
    written = practise(wide, state, problems, at_test(config), [0, 1])[1].groups
    by_base = synthesis.synthesise(wide, problems, config.adapt.synthesis, [0, 1], None)
    assert [[e.tokens for e in group] for group in written] == [[e.tokens for e in group] for group in by_base]
    found = found_with(wide, config)
    assert found.generator == {}
    assert "generator_KL" not in found.measured
    _, rows = run(config, tmp_path / "run", lm)
    assert all(row.get("gradient norm/generator", 0.0) == 0 for row in rows)


def test_learned_inner_rates_off(taught_base: Path, sums: Path, lm: LM, tmp_path: Path) -> None:
    """train.rates_lr 0: not a bit of them changes, though their gradient is there."""
    changed, rows = run(config_for(taught_base, sums, rates_lr=0.0), tmp_path / "run", lm)
    assert changed == {"theta": True, "eta": True, "rate": False}
    assert any(row["gradient norm/log_rates"] > 0 for row in rows)
    assert len({row[f"inner rate{which}"] for row in rows for which in ("", "/lowest", "/highest")}) == 1


@pytest.mark.parametrize(("kind", "sum_of_all", "most"), [("softmax", 1.0, 1.0), ("sigmoid", None, 1 / 3)])
def test_softmax_against_sigmoid(
    kind: str, sum_of_all: float | None, most: float, wide: LM, taught_base: Path, sums: Path
) -> None:
    """scoring.normalise: softmax shares 1 among the valid, sigmoid weighs each by itself and can abstain."""
    config = with_adapt(config_for(taught_base, sums, "mass-gold"), "scoring", normalise=kind)
    state = state_of(wide, config)

    def weights(eta: Params) -> list[float]:
        moved = dataclasses.replace(state, eta=eta)
        groups = practise(wide, moved, ["Compute 1 + 1."], at_test(config), [0])[1].groups[0]
        return [e.weight for e in groups if e.valid]

    found = weights(state.eta)
    assert len(found) > 1
    assert max(found) < most
    assert len(set(found)) > 1
    low = weights({**state.eta, "head.b2": state.eta["head.b2"] - 30})
    if sum_of_all is not None:
        assert sum(found) == pytest.approx(sum_of_all) == pytest.approx(sum(low))
    else:
        assert sum(low) < 1e-4 * sum(found)
    assert (found_with(wide, config).measured["weight"] > 0) == (kind in ("softmax", "sigmoid"))


# ------------------------------------------------------------------------------- copies of the target


def test_copies_are_allowed_or_not_in_training_and_at_test(
    wide: LM, taught_base: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """synthesis.allow_copies, on practice that is the target's own text in other letters."""
    config = config_for(taught_base, sums, "mass-gold")
    stack = stack_of(wide, config, 1)
    target, drawn = stack.problems[0], iter(range(10**6))
    monkeypatch.setattr(synthesis, "read", lambda *_, **__: Reading(f" {target.upper()} ", f"It is {next(drawn)}."))
    for allowed in (False, True):
        switched = with_adapt(config, "synthesis", allow_copies=allowed)
        assert at_test(switched).synthesis.allow_copies is allowed
        found = mass_gradients(dataclasses.replace(stack, config=switched))
        assert (found.measured["valid"] > 0) is allowed
        assert any(bool(t.any()) for t in found.eta.values()) is allowed
        (group,) = practise(wide, stack.state, stack.problems, at_test(switched), stack.seeds)[1].groups
        finished = {e.rejected for e in group if e.rejected != "unfinished"}
        assert finished == ({""} if allowed else {"copy"})
