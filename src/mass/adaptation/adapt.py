"""Adapt to problems at test time and answer them, with a record of each.

For each problem the model writes practice examples, weights them, takes gradient steps on them in an adapter, and
answers with the adapted weights. No gold solution and no verifier is used. Problems are adapted side by side as a
stack, each with its own adapter; the base and the checkpoint are never changed. An update that cannot be trusted (not
finite, exploding, or without a valid example) is discarded: that problem falls back on the unadapted weights, and its
record says so.

Legend: B problems, m examples of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mass.adaptation import gate, scoring, synthesis
from mass.adaptation.batch import Practice, practice_of, trust_of, valid_mask
from mass.adaptation.canaries import Canaries
from mass.adaptation.checkpoint import MetaState
from mass.adaptation.gate import EXPLODING, NO_EXAMPLE, NOT_FINITE
from mass.adaptation.judging import Adapted, Judge, Lesson, judged, judged_by, where
from mass.config import AdaptConfig, SamplingConfig, config_hash, to_dict
from mass.lm import LM
from mass.lm.continuous import check_cancelled
from mass.lm.lora import adapter_hash, pick, repeat
from mass.lm.prompts import to_json
from mass.metagrad.outer import inner_loop
from mass.seeds import derive
from mass.timing import Clock
from mass.types import Adaptation, GateDecision, Groups, Params, Sample
from mass.verify import final_answer

T = TypeVar("T")


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
            _why_fall_back(n, bool(v), config.inner.max_update_norm) for n, v in zip(norms, valid.any(1), strict=True)
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


def _why_fall_back(norm: float, any_valid: bool, limit: float) -> str:
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

    Where the gate is on, it judges each update. Whether to practise at all, `answer_all` asks it before.

    Args:
        seeds: one for each problem.
        clock: measures the stages; a new one by default.
        replay: practice examples to use instead of sampling new ones.
        canaries: canary prompts of the gate; new ones by default, where it is on.
        decided: the gate's decisions in records, to be taken as they are.
        losses: True to measure the losses of practice before and after.
    """
    clock = clock or Clock()
    if replay:
        with clock.stage("synthesis"):  # of no length: records of all adaptations have the stage
            groups = replay
    else:
        groups = synthesis.practice_for(lm, problems, config.synthesis, seeds, state.theta, clock)
    judge = Judge(config.gate, decided=decided) if decided else Judge.of(lm, state, config.gate, canaries)
    adapted = adapt_stack(lm, state, problems, groups, config, clock, judge, losses=losses)
    return _records(lm, problems, config, seeds, adapted, clock), adapted


def _records(
    lm: LM, problems: Sequence[str], config: AdaptConfig, seeds: Sequence[int], adapted: Adapted, clock: Clock
) -> list[Adaptation]:
    description, digest = to_dict(config), config_hash(config)
    return [
        Adaptation(
            problem=problem,
            model=lm.name,
            seed=seeds[b],
            config=description,
            config_hash=digest,
            kind=lm.kind,
            prompts=to_json({lm.kind: lm.prompts})[lm.kind],
            stacked=len(problems),
            examples=adapted.groups[b],
            fallback=adapted.fallbacks[b],
            gate=adapted.gates[b],
            adapter_hash=adapter_hash(pick(adapted.stack, b)),
            update_norm=adapted.update_norms[b],
            tokens=synthesis.written_tokens(adapted.groups[b]),
            seconds=clock.shares(len(problems)),
        )
        for b, problem in enumerate(problems)
    ]


def answer_all(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    *,
    unadapted: bool = True,
    replay: Groups | None = None,
    canaries: Canaries | None = None,
    decided: Sequence[GateDecision] | None = None,
    losses: bool = True,
) -> tuple[list[Adaptation], Adapted]:
    """Adapt to each problem and answer it; the records carry no verdicts.

    Where the gate is on, a problem whose answer the model is certain of is not practised on.

    Args:
        seeds: one for each problem.
        unadapted: True to answer with theta without the update too, for comparison. Both answers are sampled side by
            side, and the seconds of the stage "answer" are those of both.
        replay: practice examples to use instead of sampling new ones.
        canaries: canary prompts of the gate; new ones by default, where it is on.
        decided: the gate's decisions in records, to be taken as they are.
        losses: True to measure the losses of practice before and after.
    """
    clock = Clock()
    own = None if decided else _own_answers(lm, state, problems, config, seeds, clock)
    before = decided or (own.decisions if own else None)
    # A record of practice that the gate discarded is repeated too, and its update discarded again.
    again = [bool(decided and replay and replay[b]) for b in range(len(problems))]
    skipped = {b for b, d in enumerate(before or ()) if not d.adapt and not again[b]}
    if before is not None and skipped:
        asked = [b for b in range(len(problems)) if b not in skipped]
        records, adapted = _practise_some(
            lm, state, problems, config, seeds, clock, replay, canaries, decided, before, asked
        )
    else:
        records, adapted = practise(
            lm, state, problems, config, seeds, clock, replay, canaries=canaries, decided=decided, losses=losses
        )
    if own is not None:
        records = [
            dataclasses.replace(r, gate=gate.with_measures(r.gate, d.measures)) if r.gate else r
            for r, d in zip(records, own.decisions, strict=True)
        ]
    # Greedy answers of theta are there already where the gate asked for them.
    greedy = own.answers if own is not None and config.answer.temperature == 0 else None
    with clock.stage("answer"):
        sampled = _both_answers(lm, state, problems, config, seeds, adapted.stack, unadapted and greedy is None)
    records = [_answered(record, sample) for record, sample in zip(records, sampled[: len(problems)], strict=True)]
    if unadapted:
        plain = greedy or sampled[len(problems) :]
        records = [_answered(record, sample, unadapted=True) for record, sample in zip(records, plain, strict=True)]
    practised = len(problems) - len(skipped)
    return [
        dataclasses.replace(r, seconds=_seconds(clock, len(problems), practised, b in skipped))
        for b, r in enumerate(records)
    ], adapted


def _both_answers(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    stack: Params,
    unadapted: bool,
) -> list[Sample]:
    """Return an answer to each problem under the stack and then, if asked for, one of theta to each."""
    if not unadapted:
        return sample_answers(lm, problems, config.answer, seeds, stack)
    # Side by side: a step of two rows takes hardly longer than one of one row, which only reads the weights.
    start = repeat(state.theta, len(problems))
    both = {name: torch.cat([t, start[name].to(t)]) for name, t in stack.items()}
    return sample_answers(lm, [*problems] * 2, config.answer, [*seeds] * 2, both)


@dataclass(frozen=True)
class _Own:
    """Theta's own greedy answers, and the gate's decisions on whether to practise."""

    answers: list[Sample]
    decisions: list[GateDecision]


def _own_answers(
    lm: LM, state: MetaState, problems: Sequence[str], config: AdaptConfig, seeds: Sequence[int], clock: Clock
) -> _Own | None:
    """Ask the gate if to practise on each problem; None where it practises on all."""
    if not config.gate.enabled or config.gate.certainty is None:
        return None
    with clock.stage("certainty"):
        prompts = [lm.solve_prompt(problem) for problem in problems]
        greedy = dataclasses.replace(config.answer, temperature=0.0)
        row_seeds = [derive(seed, "answer") for seed in seeds]
        answers = lm.sample(prompts, greedy, row_seeds, state.theta, with_logprobs=True)
        values = gate.certainties(lm, prompts, answers, state.theta)
    return _Own(answers, [gate.before(value, config.gate) for value in values])


def _practise_some(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    clock: Clock,
    replay: Groups | None,
    canaries: Canaries | None,
    decided: Sequence[GateDecision] | None,
    before: Sequence[GateDecision],
    asked: Sequence[int],
) -> tuple[list[Adaptation], Adapted]:
    """Practise on the problems `asked`; the others have no examples, and theta itself in the stack."""
    count = len(problems)
    reasons, gates = tuple("" if d.adapt else d.reason for d in before), tuple(before)
    adapted = Adapted(repeat(state.theta, count), [()] * count, reasons, (0.0,) * count, gates)
    records = _records(lm, problems, config, seeds, adapted, clock)
    if not asked:
        return records, adapted

    def of(values: Sequence[T] | None) -> list[T] | None:
        return None if values is None else [values[b] for b in asked]

    some = practise(
        lm,
        state,
        [problems[b] for b in asked],
        config,
        [seeds[b] for b in asked],
        clock,
        of(replay),
        canaries=canaries,
        decided=of(decided),
    )
    for b, record in zip(asked, some[0], strict=True):
        records[b] = record
    index = torch.tensor(asked, device=lm.device)
    stack = {name: t.index_copy(0, index, some[1].stack[name]) for name, t in adapted.stack.items()}
    return records, Adapted(
        stack,
        [record.examples for record in records],
        tuple(record.fallback for record in records),
        tuple(record.update_norm for record in records),
        tuple(record.gate for record in records),
    )


FOR_ALL = ("certainty", "answer", "unadapted answer")
"""Stages that problems pass which are not practised on."""


def _seconds(clock: Clock, count: int, practised: int, skipped: bool) -> dict[str, float]:
    """Return one problem's share of the seconds of each stage that it passed."""
    passed = {stage: s for stage, s in clock.seconds.items() if not skipped or stage in FOR_ALL}
    return {stage: s / (count if stage in FOR_ALL else practised) for stage, s in passed.items()}


def sample_answers(
    lm: LM, problems: Sequence[str], config: SamplingConfig, seeds: Sequence[int], adapter: Params
) -> list[Sample]:
    """Sample one answer to each problem, under a stack of adapters or one adapter for all.

    A seed gives the same random numbers with and without adaptation, so that two answers differ by the weights alone.
    """
    prompts = [lm.solve_prompt(problem) for problem in problems]
    return lm.sample(prompts, config, [derive(seed, "answer") for seed in seeds], adapter)


def _answered(record: Adaptation, sample: Sample, *, unadapted: bool = False) -> Adaptation:
    """Return the record with an answer filled in, as the adapted or as the unadapted one."""
    text = sample.text.strip()
    if unadapted:
        tokens = {**record.tokens, "unadapted answer": len(sample.tokens)}
        return dataclasses.replace(record, unadapted_text=text, tokens=tokens)
    tokens = {**record.tokens, "answer": len(sample.tokens)}
    return dataclasses.replace(record, text=text, answer=final_answer(sample.text), tokens=tokens)
