"""An adapted stack and what was measured on it -> the stack without the updates that the gate discards.

Legend: B problems, m examples of each, N valid examples of all problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mass.adaptation import gate, scoring
from mass.adaptation.batch import Practice, valid_mask
from mass.adaptation.canaries import Canaries, needs_canaries, prepare_canaries
from mass.adaptation.checkpoint import MetaState
from mass.config import AdaptConfig, GateConfig
from mass.lm import room
from mass.lm.lora import pick
from mass.metagrad.outer import inner_loop
from mass.timing import Clock
from mass.types import Example, GateDecision, Groups, Params

if TYPE_CHECKING:
    from mass.lm import LM
    from mass.lm.model import Row


@dataclass(frozen=True)
class Adapted:
    """A stack of B adapted adapters, with the examples they learned from."""

    stack: Params
    """[B, ...]; for a problem that fell back, the start itself."""
    groups: Groups
    """The examples of each problem with scores, weights, and losses before and after the update."""
    fallbacks: tuple[str, ...]
    """For each problem the reason why it fell back; empty where it did not."""
    update_norms: tuple[float, ...]
    """For each problem the norm of the change over the norm of the start, both over all tensors of the adapter."""
    gates: tuple[GateDecision | None, ...]
    """For each problem the gate's decision; None where the gate is off."""


@dataclass(frozen=True)
class Judge:
    """The bounds of the gate, and the canaries or recorded decisions that it judges updates with."""

    config: GateConfig
    canaries: Canaries | None = None
    """None to measure no drift."""
    decided: Sequence[GateDecision] | None = None
    """Decisions of a record for each problem, to be taken as they are; None to decide."""

    @staticmethod
    def of(lm: LM, state: MetaState, config: GateConfig, canaries: Canaries | None) -> Judge:
        """Return a judge with these canaries, or with new ones where the configuration needs them."""
        if canaries is None and needs_canaries(config):
            canaries = prepare_canaries(lm, state.theta, config)
        return Judge(config, canaries)


@dataclass(frozen=True)
class Lesson:
    """The practice of an update, with the weights, losses and rates from which the gate repeats a part of it."""

    practice: Practice
    scores: Float[Tensor, "B m"]
    weights: Float[Tensor, "B m"]
    trust: Float[Tensor, "B m"] | None
    """Factors of the weights by how far verified practice is trusted; None for equal ones."""
    losses: Float[Tensor, " N"]
    """Losses of the valid examples before the update."""
    start: Params
    rates: Params


def judged(
    lm: LM,
    problems: Sequence[str],
    adapted: Adapted,
    lesson: Lesson,
    config: AdaptConfig,
    judge: Judge,
    clock: Clock,
) -> Adapted:
    """Measure what the gate decides by, and return the stack without the updates that it discards.

    Held-out examples judge a trial update, which learns the others alone. The update that answers learns all of them,
    as it would without a gate.
    """
    measures = dict[str, Sequence[float | None]]()
    if judge.config.enabled and judge.decided is None:
        valid = valid_mask(adapted.groups, lm.device)
        least = lesson.practice.spread(lesson.losses, *valid.shape, fill=float("inf")).min(1).values
        measures["least_loss"] = [*least.tolist()]
        with clock.stage("surprise"):
            measures["surprise"] = _surprise(lm, problems, adapted.groups, lesson, config)
        with clock.stage("held out"):
            measures["held_out_rise"] = _rise(lesson, valid, config)
    with clock.stage("canaries") if judge.config.enabled else nullcontext():
        return judged_by(measures, adapted, lesson.start, judge)


def judged_by(measures: Mapping[str, Sequence[float | None]], adapted: Adapted, start: Params, judge: Judge) -> Adapted:
    """Return the stack with the gate's decisions, and the start in place of the updates that it discards."""
    if not judge.config.enabled:
        return dataclasses.replace(adapted, gates=(None,) * len(adapted.fallbacks))
    decisions = judge.decided or _decisions(adapted, measures, judge)
    return dataclasses.replace(
        adapted,
        stack=where([decision.adapt for decision in decisions], adapted.stack, start),
        fallbacks=tuple("" if decision.adapt else decision.reason for decision in decisions),
        gates=tuple(decisions),
    )


def _surprise(
    lm: LM, problems: Sequence[str], groups: Groups, lesson: Lesson, config: AdaptConfig
) -> list[float | None]:
    """Return the mean loss (nats per token) of each problem's solutions as the writer of practice sees them, by weight.

    The writer sees a solution after its own prompt and the example's problem. What it wrote freely has about the loss
    that it expects; what was put in its place has more.
    """
    owners: list[int] = lesson.practice.owners.tolist()
    places: list[int] = lesson.practice.places.tolist()
    rows = [_written(lm, problems[b], groups[b][j]) for b, j in zip(owners, places, strict=True)]
    length = max(len(context) + len(target) for context, target in rows)
    size = room.rows_that_fit(lm, len(rows), length, "forward")
    # One adapter for all rows: theta, which the start repeats.
    writer = pick(lesson.start, 0) if config.synthesis.writer == "theta" else None
    losses = torch.cat([lm.losses(lm.batch(rows[at : at + size]), writer) for at in range(0, len(rows), size)])
    weights = lesson.weights / lesson.weights.sum(1, keepdim=True)
    return [*(weights * lesson.practice.spread(losses, *weights.shape)).sum(1).tolist()]


def _written(lm: LM, problem: str, example: Example) -> Row:
    """Return what the writer saw before a solution, and the solution's tokens, the last of the example's."""
    if example.attempt:
        return lm.solve_prompt(problem), list(example.tokens)
    tokens = list(example.tokens) or lm.written_ids(example.problem, example.solution)
    before = max(0, len(tokens) - len(lm.target_ids(example.solution)))
    return [*lm.synthesis_prompt(problem), *tokens[:before]], tokens[before:]


def _rise(lesson: Lesson, valid: Bool[Tensor, "B m"], config: AdaptConfig) -> list[float | None]:
    """Return how much the loss on held-out examples rises by a trial update on the others; None where none is held."""
    held = gate.held_out(valid, config.gate)
    if not held.any():
        return [None] * len(valid)
    practice, learned = lesson.practice, valid & ~held
    weights = scoring.normalise(lesson.scores, learned, config.scoring.normalise, lesson.trust)
    if config.scoring.normalise == "sigmoid":  # the others weigh together what all would
        weights = weights * (valid.sum(1, keepdim=True) / learned.sum(1, keepdim=True).clamp_min(1))
    some, apart = practice.only(learned), practice.only(held)
    size = some.rows_per_pass(config.inner.micro_batch)
    trial = inner_loop(some.losses, config.inner, size, some.spare_gb(size))(
        lesson.start, some.pick(weights), lesson.rates
    )
    before, after = apart.pick(practice.spread(lesson.losses, *valid.shape)), apart.measured(trial, size)
    return gate.mean_over(apart.spread(after - before, *valid.shape), held)


def _decisions(adapted: Adapted, measures: Mapping[str, Sequence[float | None]], judge: Judge) -> list[GateDecision]:
    lost = [False] * len(adapted.fallbacks)
    if judge.canaries is not None and not all(adapted.fallbacks):
        drift, some_lost = judge.canaries.measure(adapted.stack)
        measures, lost = {**measures, "drift": drift.tolist()}, some_lost.tolist()
    found: list[GateDecision] = []
    for b, (reason, norm) in enumerate(zip(adapted.fallbacks, adapted.update_norms, strict=True)):
        own = {"update_norm": norm, **{name: v for name, values in measures.items() if (v := values[b]) is not None}}
        # What an update that is not finite does to practice and canaries was measured on the start in its place.
        failed = GateDecision(False, reason, {"update_norm": norm})
        found.append(failed if reason else gate.after(own, judge.config, unrefused=lost[b]))
    return found


def where(keep: Sequence[bool], stack: Params, start: Params) -> Params:
    """Return the stack with the start in place of the adapters that are not kept."""
    # `where` and not a product: 0 times an update that is not finite would be NaN.
    mask = torch.tensor(keep, device=next(iter(stack.values())).device).view(-1, 1, 1)
    return {name: torch.where(mask, tensor, start[name]) for name, tensor in stack.items()}
