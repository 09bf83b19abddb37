"""A set of examples -> examples of the model's own that continue it, judged and weighted.

An example is not used where it repeats another, where its output is none of the set's labels, where a verifier of the
user's that needs no gold rejects it, or where the model itself, with the set before the new input, answers otherwise.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mass import verify
from mass.adaptation import scoring
from mass.adaptation.checkpoint import MetaState
from mass.adaptation.examples.asking import listed, prompt
from mass.adaptation.examples.given import ExampleSet, one_line
from mass.adaptation.synthesis import synthesise
from mass.config import ExamplesConfig, SamplingConfig, ScoringConfig, SynthesisConfig
from mass.seeds import derive
from mass.types import Example, Task

if TYPE_CHECKING:
    from mass.lm import LM

SHOWN, OF_ONE_PROMPT = 8, 4
"""Given examples that a prompt shows, in random order, and new ones that are sampled from it."""
COPY, REPEAT, NO_LABEL, REFUSED = "copy", "repeat", "not a label of the set", "refused by the verifier"
DISAGREES = "answered otherwise with the set in context"


def write(
    lm: LM, state: MetaState, examples: ExampleSet, config: ExamplesConfig, weighing: ScoringConfig, seed: int
) -> tuple[Example, ...]:
    """Sample `config.written` examples, used or rejected, with weights that sum to `config.written_share`."""
    groups = -(-config.written // OF_ONE_PROMPT)
    shown = [_shown(examples, derive(seed, "shown", i)) for i in range(groups)]
    each = SynthesisConfig(OF_ONE_PROMPT, config.sampling, max_example_tokens=config.max_example_tokens)
    seeds = [derive(seed, "written", i) for i in range(groups)]
    found = synthesise(lm, shown, each, seeds, state.theta)
    pairs = [(target, one) for target, some in zip(shown, found, strict=True) for one in some][: config.written]
    judged = _judged(lm, state, examples, [one for _, one in pairs], seed)
    return _weighed(lm, state, [target for target, _ in pairs], judged, config.written_share, weighing)


def _shown(examples: ExampleSet, seed: int) -> str:
    pairs = examples.pairs
    return listed(random.Random(seed).sample(pairs, min(SHOWN, len(pairs))))


def _judged(lm: LM, state: MetaState, examples: ExampleSet, found: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples, each that cannot be used with the reason."""
    given = {one_line(task.problem).lower() for task in examples.tasks}
    verifier = examples.tasks[0].verifier
    seen = set[str]()
    judged: list[Example] = []
    for one in found:
        name, reason = one_line(one.problem).lower(), one.rejected
        if not reason:
            reason = COPY if name in given else REPEAT if name in seen else ""
        if not reason and examples.labels and one_line(one.solution) not in examples.labels:
            reason = NO_LABEL
        if not reason and verifier not in verify.VERIFIERS:
            verdict = verify.check(Task(one.problem, verifier=verifier), one.solution)
            reason = REFUSED if verdict.correct is False else ""
        seen.add(name)
        judged.append(dataclasses.replace(one, rejected=reason))
    return _agreeing(lm, state, examples, judged, seed)


def _agreeing(lm: LM, state: MetaState, examples: ExampleSet, found: Sequence[Example], seed: int) -> list[Example]:
    """Reject the examples to whose inputs the model gives another output, with the set in context."""
    asked = [i for i, one in enumerate(found) if one.valid]
    prompts = [prompt(lm, examples.pairs, found[i].problem, examples.answer_tokens) for i in asked]
    sampling = SamplingConfig(examples.answer_tokens, 0.0)
    samples = lm.sample(prompts, sampling, [derive(seed, "agree", i) for i in asked], state.theta) if asked else []
    agree = dict(zip(asked, samples, strict=True))
    verifier = examples.tasks[0].verifier

    def same(one: Example, answer: str) -> bool:
        gold = Task(one.problem, answer=one.solution, verifier=verifier if verifier in verify.VERIFIERS else "text")
        return verify.check(gold, answer).correct is not False

    return [
        dataclasses.replace(one, rejected=DISAGREES) if i in agree and not same(one, agree[i].text) else one
        for i, one in enumerate(found)
    ]


def _weighed(
    lm: LM,
    state: MetaState,
    targets: Sequence[str],
    found: Sequence[Example],
    share: float,
    weighing: ScoringConfig,
) -> tuple[Example, ...]:
    """Return the examples with the scorer's scores and their weights."""
    valid = [i for i, one in enumerate(found) if one.valid]
    if not valid:
        return tuple(found)
    scores = torch.zeros(len(valid), device=lm.device, dtype=lm.adapter_dtype)
    if weighing.normalise != "uniform":
        with torch.no_grad():
            scores = scoring.score(lm, state.eta, [targets[i] for i in valid], [found[i] for i in valid])
    mask = torch.ones(1, len(valid), dtype=torch.bool, device=lm.device)
    weights = scoring.normalise(scores[None], mask, weighing.normalise)[0] * share
    scored = {i: (float(s), float(w)) for i, s, w in zip(valid, scores, weights, strict=True)}
    return tuple(
        dataclasses.replace(one, score=scored[i][0], weight=scored[i][1]) if i in scored else one
        for i, one in enumerate(found)
    )
