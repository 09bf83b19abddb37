"""Adapt to problems at test time, with a record of each.

For each problem the model writes practice examples, weights them, and takes gradient steps on them in an adapter. No
gold solution and no verifier is used. Problems are adapted side by side as a
stack, each with its own adapter; the base and the checkpoint are never changed. An update that cannot be trusted (not
finite, exploding, or without a valid example) is discarded: that problem falls back on the unadapted weights, and its
record says so.

Legend: B problems, m examples of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mass.adaptation import scoring, synthesis
from mass.adaptation.batch import Practice, practice_of, trust_of, valid_mask
from mass.adaptation.canaries import Canaries
from mass.adaptation.checkpoint import MetaState
from mass.adaptation.gate import EXPLODING, NO_EXAMPLE, NOT_FINITE
from mass.adaptation.judging import Adapted, Judge, Lesson, judged, judged_by, where
from mass.config import AdaptConfig, config_hash, to_dict
from mass.lm import LM
from mass.lm.continuous import check_cancelled
from mass.lm.lora import adapter_hash, pick, repeat
from mass.lm.prompts import to_json
from mass.metagrad.outer import inner_loop
from mass.timing import Clock
from mass.types import Adaptation, GateDecision, Groups, Params

T = TypeVar("T")


@dataclass(frozen=True)
class Assignment:
    """Problems to practise on side by side, and all that they are practised with."""

    lm: LM
    state: MetaState
    problems: Sequence[str]
    config: AdaptConfig
    seeds: Sequence[int]
    """One for each problem."""
    clock: Clock = field(default_factory=Clock)
    """Measures the stages."""
    replay: Groups | None = None
    """Practice examples of each problem, to use instead of sampling new ones."""
    canaries: Canaries | None = None
    """Canary prompts of the gate; None for new ones, where it is on."""
    decided: Sequence[GateDecision] | None = None
    """The gate's decisions in records of the problems, to be taken as they are; None to decide."""
    losses: bool = True
    """True to measure the losses of practice before and after."""

    def only(self, chosen: Sequence[int]) -> Assignment:
        """Return the assignment of these problems alone."""

        def of(values: Sequence[T]) -> list[T]:
            return [values[b] for b in chosen]

        return dataclasses.replace(
            self,
            problems=of(self.problems),
            seeds=of(self.seeds),
            replay=None if self.replay is None else of(self.replay),
            decided=None if self.decided is None else of(self.decided),
        )


@torch.no_grad()
def adapt_stack(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    groups: Groups,
    config: AdaptConfig,
    clock: Clock,
    judge: Judge | None = None,
    *,
    losses: bool = True,
) -> Adapted:
    """Score the examples, weight them, and take K steps on them from theta, for B problems side by side.

    Raises Cancelled between two steps where nobody waits for the result any more (`mass.lm.continuous`).

    Args:
        judge: what the gate judges with, where it is on; by default as the configuration says, with new canaries.
        losses: True to measure the examples' losses before and after, which takes two forward passes; a gate that is
            on needs them.
    """
    start = repeat(state.theta, len(problems))
    practice = practice_of(lm, groups)
    judge = judge or Judge.of(lm, state, config.gate, None)
    if practice is None or config.inner.steps == 0:
        reason = NO_EXAMPLE if practice is None else ""
        return judged_by(
            {}, Adapted(start, groups, (reason,) * len(problems), (0.0,) * len(problems), ()), start, judge
        )
    valid = valid_mask(groups, lm.device)
    with clock.stage("scoring"):
        scores = torch.zeros(valid.shape, dtype=lm.adapter_dtype, device=lm.device)
        if config.scoring.normalise != "uniform":
            rows = practice.targets(problems, groups)
            scores = practice.spread(scoring.score(lm, state.eta, *rows, config.inner.micro_batch), *valid.shape)
        trust = trust_of(groups, config.synthesis.verify, scores)
        weights = scoring.normalise(scores, valid, config.scoring.normalise, trust)
    size = practice.rows_per_pass(config.inner.micro_batch)
    with clock.stage("inner loop"):
        # A learned rate may overflow in exp; an infinite one would be an error of `adapt` instead of a bad update.
        rates = {name: t.exp().clamp_max(torch.finfo(t.dtype).max) for name, t in state.log_rates.items()}
        run = inner_loop(practice.losses, config.inner, size, practice.spare_gb(size), _end_if_cancelled)
        stack = run(start, practice.pick(weights), rates)
        norms = update_norms(stack, start)
        fallbacks = [
            why_fall_back(n, bool(v), config.inner.max_update_norm) for n, v in zip(norms, valid.any(1), strict=True)
        ]
        stack = where([not reason for reason in fallbacks], stack, start)
    columns = {"score": practice.pick(scores), "weight": practice.pick(weights)}
    if losses or config.gate.enabled:
        with clock.stage("practice losses"):
            columns |= {"loss_before": practice.measured(start, size), "loss_after": practice.measured(stack, size)}
    adapted = Adapted(stack, _annotate(groups, practice, columns), tuple(fallbacks), tuple(norms), ())
    if not judge.config.enabled:
        return judged_by({}, adapted, start, judge)
    lesson = Lesson(practice, scores, weights, trust, columns["loss_before"], start, rates)
    return judged(lm, problems, adapted, lesson, config, judge, clock)


def _end_if_cancelled(step: int, params: Params) -> None:  # noqa: ARG001 (as the inner loop calls it)
    check_cancelled()


def update_norms(stack: Params, start: Params) -> list[float]:
    """Return ‖θ_K - θ_0‖ / ‖θ_0‖ of each adapter, in float64."""

    def squares(tensors: list[Tensor]) -> Tensor:
        return torch.stack([t.double().square().flatten(1).sum(1) for t in tensors]).sum(0)

    change = squares([stack[name] - start[name] for name in stack])
    return (change / squares([start[name] for name in stack]).clamp_min(1e-300)).sqrt().tolist()


def why_fall_back(norm: float, any_valid: bool, limit: float) -> str:
    """Return the reason to discard an update; empty for one that can be trusted."""
    if not any_valid:
        return NO_EXAMPLE
    if norm != norm or norm == float("inf"):
        return NOT_FINITE
    return EXPLODING if norm > limit else ""


def _annotate(groups: Groups, practice: Practice, columns: Mapping[str, Tensor]) -> Groups:
    """Return the examples with the fields that `columns` names filled in, a value for each row of the practice."""
    places = zip(practice.owners.tolist(), practice.places.tolist(), strict=True)
    values = zip(*[column.tolist() for column in columns.values()], strict=True)
    found = {place: dict(zip(columns, row, strict=True)) for place, row in zip(places, values, strict=True)}
    return [
        tuple(dataclasses.replace(e, **found.get((b, j), {})) for j, e in enumerate(group))
        for b, group in enumerate(groups)
    ]


def practise(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    clock: Clock | None = None,
    replay: Groups | None = None,
    *,
    canaries: Canaries | None = None,
    decided: Sequence[GateDecision] | None = None,
    losses: bool = True,
) -> tuple[list[Adaptation], Adapted]:
    """Write practice for each problem and adapt to it, without answering: the records have no texts and no verdicts.

    Where the gate is on, it judges each update. Whether to practise at all, `mass.adaptation.answer`
    asks it before.

    Args:
        seeds: one for each problem.
        clock: measures the stages; a new one by default.
        replay: practice examples to use instead of sampling new ones.
        canaries: canary prompts of the gate; new ones by default, where it is on.
        decided: the gate's decisions in records, to be taken as they are.
        losses: True to measure the losses of practice before and after.
    """
    given = (lm, state, problems, config, seeds, clock or Clock(), replay)
    return practise_on(Assignment(*given, canaries, decided, losses))


def practise_on(work: Assignment) -> tuple[list[Adaptation], Adapted]:
    """Do what `practise` does, with its arguments as one value."""
    lm, state, config, clock = work.lm, work.state, work.config, work.clock
    if work.replay:
        with clock.stage("synthesis"):  # of no length: records of all adaptations have the stage
            groups = work.replay
    else:
        groups = synthesis.practice_for(lm, work.problems, config.synthesis, work.seeds, state.theta, clock)
    decided = work.decided
    judge = Judge(config.gate, decided=decided) if decided else Judge.of(lm, state, config.gate, work.canaries)
    adapted = adapt_stack(lm, state, work.problems, groups, config, clock, judge, losses=work.losses)
    return records_of(work, adapted), adapted


def records_of(work: Assignment, adapted: Adapted) -> list[Adaptation]:
    """Return a record of each problem, without answers."""
    lm, description, digest = work.lm, to_dict(work.config), config_hash(work.config)
    return [
        Adaptation(
            problem=problem,
            model=lm.name,
            seed=work.seeds[b],
            config=description,
            config_hash=digest,
            kind=lm.kind,
            prompts=to_json({lm.kind: lm.prompts})[lm.kind],
            stacked=len(work.problems),
            examples=adapted.groups[b],
            fallback=adapted.fallbacks[b],
            gate=adapted.gates[b],
            adapter_hash=adapter_hash(pick(adapted.stack, b)),
            update_norm=adapted.update_norms[b],
            tokens=synthesis.written_tokens(adapted.groups[b]),
            seconds=work.clock.shares(len(work.problems)),
        )
        for b, problem in enumerate(work.problems)
    ]
