"""Compute the outer loss of a run on a stack of problems, in parts that each fit one backward pass.

The outer loss of `mass-gold` and `solver-sft` is the gold solution's cross-entropy. That of the other methods is the
policy loss of sampled and verified solutions, plus `train.kl` times their divergence from the base. For a method that
adapts, `train.canary_kl` times the drift on unrelated problems is added. The parameters are the adapted ones of each
problem, or theta itself for a method that does not adapt.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from mass import verify
from mass.adaptation import drift as canary
from mass.lm.lora import detach
from mass.timing import Clock
from mass.training import outer
from mass.training.gradients import Measured, Stack
from mass.types import Params


def outer_parts(stack: Stack, params: Params, clock: Clock, measured: Measured) -> Iterator[Tensor]:
    """Yield the outer loss on the targets under `params` (stacked or shared), in parts; fills in `measured`."""
    yield from _on_targets(stack, params, clock, measured)
    if stack.config.train.canary_kl and stack.canaries:
        yield from _on_canaries(stack, params, clock, measured)


def _on_targets(stack: Stack, params: Params, clock: Clock, measured: Measured) -> Iterator[Tensor]:
    config, lm = stack.config, stack.lm
    if config.train.learns_gold:
        yield from clock.each("outer", outer.gold_losses(lm, stack.tasks, config.outer, params))
        return
    with clock.stage("outer"):
        solutions = outer.sample_solutions(lm, stack.tasks, config.outer, stack.seeds, detach(params), verify.check_all)
    judged = solutions.judged.sum(1).clamp_min(1)
    measured.add(
        reward=float((solutions.rewards * solutions.judged).double().sum(1).div(judged).sum()),
        solved_by_any=float((solutions.rewards > 0).any(1).sum()),
        no_verdict=float((~solutions.judged).sum()) / config.outer.samples,
        tokens=sum(len(s.tokens) for s in solutions.samples),
    )
    yield from clock.each("outer", outer.verifier_losses(lm, stack.tasks, solutions, config.outer, params))
    if config.train.kl:
        parts = outer.kl_losses(lm, stack.tasks, solutions, config.outer, params)
        yield from clock.each("outer", (config.train.kl * part for part in parts))


def _on_canaries(stack: Stack, params: Params, clock: Clock, measured: Measured) -> Iterator[Tensor]:
    config, lm, theta = stack.config, stack.lm, detach(stack.state.theta)
    with clock.stage("outer"):
        answers = canary.sample_answers(lm, stack.canaries, config.outer.sampling, stack.seeds, theta)
    measured.add(tokens=answers.num_tokens)
    for part in clock.each("outer", canary.kl_losses(lm, answers, theta, params, config.outer.micro_batch)):
        measured.add(canary_KL=float(part.detach()))
        yield config.train.canary_kl * part
