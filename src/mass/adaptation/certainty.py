"""Problems -> the gate's decisions on whether to practise, and practice on those that the model is not certain of.

Certainty is that of the model's own greedy answer, before any practice; the decision is `mass.adaptation.gate.before`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mass.adaptation import gate
from mass.adaptation.adapt import Assignment, practise_on, records_of
from mass.adaptation.judging import Adapted
from mass.lm.lora import repeat
from mass.seeds import derive
from mass.types import Adaptation, GateDecision, Sample


@dataclass(frozen=True)
class OwnAnswers:
    """Theta's own greedy answers, and the gate's decisions on whether to practise."""

    answers: list[Sample]
    decisions: list[GateDecision]


def own_answers(work: Assignment) -> OwnAnswers | None:
    """Ask the gate whether to practise on each problem; None where it practises on all."""
    lm, config, theta = work.lm, work.config, work.state.theta
    if not config.gate.enabled or config.gate.certainty is None:
        return None
    with work.clock.stage("certainty"):
        prompts = [lm.solve_prompt(problem) for problem in work.problems]
        greedy = dataclasses.replace(config.answer, temperature=0.0)
        row_seeds = [derive(seed, "answer") for seed in work.seeds]
        answers = lm.sample(prompts, greedy, row_seeds, theta, with_logprobs=True)
        values = gate.certainties(lm, prompts, answers, theta)
    return OwnAnswers(answers, [gate.before(value, config.gate) for value in values])


def practise_on_some(
    work: Assignment, asked: Sequence[int], before: Sequence[GateDecision]
) -> tuple[list[Adaptation], Adapted]:
    """Practise on the problems `asked`; the others have no examples, and theta itself in the stack."""
    count = len(work.problems)
    reasons, gates = tuple("" if d.adapt else d.reason for d in before), tuple(before)
    adapted = Adapted(repeat(work.state.theta, count), [()] * count, reasons, (0.0,) * count, gates)
    records = records_of(work, adapted)
    if not asked:
        return records, adapted
    some, learned = practise_on(work.only(asked))
    for b, record in zip(asked, some, strict=True):
        records[b] = record
    index = torch.tensor(asked, device=work.lm.device)
    stack = {name: t.index_copy(0, index, learned.stack[name]) for name, t in adapted.stack.items()}
    return records, Adapted(
        stack,
        [record.examples for record in records],
        tuple(record.fallback for record in records),
        tuple(record.update_norm for record in records),
        tuple(record.gate for record in records),
    )
