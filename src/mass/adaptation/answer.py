"""Problems -> adapted weights -> answers, with a record of each.

Where the gate is on, it is asked first whether to practise at all (`mass.adaptation.certainty`).

Legend: B problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from mass.adaptation import gate
from mass.adaptation.adapt import Assignment, practise_on
from mass.adaptation.canaries import Canaries
from mass.adaptation.certainty import own_answers, practise_on_some
from mass.adaptation.checkpoint import MetaState
from mass.adaptation.judging import Adapted
from mass.config import AdaptConfig, SamplingConfig
from mass.lm import LM
from mass.lm.lora import repeat
from mass.seeds import derive
from mass.timing import Clock
from mass.types import Adaptation, GateDecision, Groups, Params, Sample
from mass.verify import final_answer


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
    work = Assignment(lm, state, problems, config, seeds, clock, replay, canaries, decided, losses)
    own = None if decided else own_answers(work)
    before = decided or (own.decisions if own else None)
    # A record of practice that the gate discarded is repeated too, and its update discarded again.
    again = [bool(decided and replay and replay[b]) for b in range(len(problems))]
    skipped = {b for b, d in enumerate(before or ()) if not d.adapt and not again[b]}
    if before is not None and skipped:
        asked = [b for b in range(len(problems)) if b not in skipped]
        records, adapted = practise_on_some(work, asked, before)
    else:
        records, adapted = practise_on(work)
    if own is not None:
        records = [
            dataclasses.replace(r, gate=gate.with_measures(r.gate, d.measures)) if r.gate else r
            for r, d in zip(records, own.decisions, strict=True)
        ]
    # Greedy answers of theta are there already where the gate asked for them.
    greedy = own.answers if own is not None and config.answer.temperature == 0 else None
    with clock.stage("answer"):
        sampled = _both_answers(work, adapted.stack, unadapted=unadapted and greedy is None)
    records = [_answered(record, sample) for record, sample in zip(records, sampled[: len(problems)], strict=True)]
    if unadapted:
        plain = greedy or sampled[len(problems) :]
        records = [_answered(record, sample, unadapted=True) for record, sample in zip(records, plain, strict=True)]
    practised = len(problems) - len(skipped)
    return [
        dataclasses.replace(r, seconds=_seconds(clock, len(problems), practised, b in skipped))
        for b, r in enumerate(records)
    ], adapted


def _both_answers(work: Assignment, stack: Params, *, unadapted: bool) -> list[Sample]:
    """Return an answer to each problem under the stack and then, if asked for, one of theta to each."""
    lm, problems, sampling, seeds = work.lm, work.problems, work.config.answer, work.seeds
    if not unadapted:
        return sample_answers(lm, problems, sampling, seeds, stack)
    # Side by side: a step of two rows takes hardly longer than one of one row, which only reads the weights.
    start = repeat(work.state.theta, len(problems))
    both = {name: torch.cat([t, start[name].to(t)]) for name, t in stack.items()}
    return sample_answers(lm, [*problems] * 2, sampling, [*seeds] * 2, both)


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
