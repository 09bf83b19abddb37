"""Measure the accuracy of a state in training on held-out problems, with and without adaptation.

Both use the same random numbers. Adapted minus unadapted accuracy of one state is the gain of the update itself; a gain
of both came through theta. Processes share the problems, and all get the same results. Answer i is a function of the
state, the problem and i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from mass import verify
from mass.adaptation.answer import answer_all, sample_answers
from mass.adaptation.checkpoint import MetaState
from mass.config import RunConfig, SamplingConfig, at_test
from mass.lm import LM
from mass.seeds import derive
from mass.training.distributed import Ranks
from mass.types import Params, Task

SHARES = ("accuracy", "unadapted accuracy", "fallbacks")
SAMPLED = ("sampled accuracy", "unadapted sampled accuracy")
COUNTS = ("helped", "hurt")


def evaluate(lm: LM, state: MetaState, config: RunConfig, tasks: Sequence[Task], ranks: Ranks) -> dict[str, float]:
    """Return accuracies and counts on held-out problems, under names that start with `eval/`.

    Shares of the problems: answered correctly by the adapted weights and by theta itself, decoded as `test.answer` says
    and, with `train.eval_temperature`, by one sample at that temperature; and those whose adaptation fell back. Numbers
    of problems: correct only with the adaptation (helped), correct only without it (hurt). A method that does not adapt
    answers with theta in both cases.
    """
    names = (*SHARES, *COUNTS, *(SAMPLED if config.train.eval_temperature else ()))
    counts = torch.zeros(len(names), dtype=torch.float64)
    with ranks.together():
        for portion in ranks.portion(len(tasks), config.train.stack):
            found = _counts(lm, state, config, tasks, portion)
            counts += torch.tensor([found[name] for name in names], dtype=torch.float64)
    totals = zip(names, ranks.sum(counts).tolist(), strict=True)
    return {f"eval/{name}": total if name in COUNTS else total / len(tasks) for name, total in totals}


def _counts(lm: LM, state: MetaState, config: RunConfig, tasks: Sequence[Task], portion: range) -> dict[str, int]:
    part = [tasks[i] for i in portion]
    seeds = [derive(config.train.seed, "eval", i) for i in portion]
    texts, plain, fallbacks, adapter = _answers(lm, state, config, part, seeds)
    right, before = _right(part, texts), _right(part, plain)
    found = {
        "accuracy": sum(right),
        "unadapted accuracy": sum(before),
        "fallbacks": fallbacks,
        "helped": sum(a and not b for a, b in zip(right, before, strict=True)),
        "hurt": sum(b and not a for a, b in zip(right, before, strict=True)),
    }
    if config.train.eval_temperature:
        sampling = dataclasses.replace(config.test.answer, temperature=config.train.eval_temperature)
        sampled = [_sample(lm, part, sampling, seeds, weights) for weights in (adapter, state.theta)]
        found |= {name: sum(_right(part, texts)) for name, texts in zip(SAMPLED, sampled, strict=True)}
    return found


def _answers(
    lm: LM, state: MetaState, config: RunConfig, part: Sequence[Task], seeds: Sequence[int]
) -> tuple[Sequence[str], Sequence[str], int, Params]:
    """Return adapted texts, unadapted texts, the number of adaptations that fell back, and the adapted weights.

    The weights are a stack of adapters, or theta itself for a method that does not adapt.
    """
    if not config.train.adapts:
        texts = _sample(lm, part, config.test.answer, seeds, state.theta)
        return texts, texts, 0, state.theta
    records, adapted = answer_all(lm, state, [task.problem for task in part], at_test(config), seeds)
    plain = [record.unadapted_text or "" for record in records]
    return [r.text for r in records], plain, sum(bool(r.fallback) for r in records), adapted.stack


def _sample(lm: LM, part: Sequence[Task], sampling: SamplingConfig, seeds: Sequence[int], weights: Params) -> list[str]:
    return [s.text for s in sample_answers(lm, [task.problem for task in part], sampling, seeds, weights)]


def _right(part: Sequence[Task], answers: Sequence[str]) -> list[bool]:
    return [verdict.correct is True for verdict in verify.check_all(list(zip(part, answers, strict=True)))]
