"""Verify practice without gold: written examples -> the same, those that fail rejected, some with a better solution.

- Programs: the problem's own `assert` lines, or those of its solution, are run against the solution in the sandbox. An
  example without tests, or whose tests fail, is rejected.
- Other problems: the model solves each practice problem k times more. The written solution and these vote; if too small
  a share gives the most frequent answer, the example is rejected. Else a solution with that answer is learned: the
  written one if it has it, else the first sampled one.

Attempts at the target itself are left as they are: the tests in its text may be the ones that judge the answer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mass.adaptation.synthesis.reasons import DISAGREED, FAILED, TOO_LONG, UNTESTED
from mass.config import SynthesisConfig, VerifyConfig
from mass.lm.prompts import CHOICE, CODE, MATH
from mass.seeds import derive
from mass.types import Example, Groups, Params, Sample, Verdict
from mass.verify import asserted
from mass.verify.math import POOL
from mass.verify.votes import ballots

if TYPE_CHECKING:
    from mass.lm import LM

_VERIFIER = {MATH: "math", CHOICE: "choice"}
"""For each kind of problem, the verifier that says which answers are equal; `exact` for the others."""


def verified(lm: LM, groups: Groups, config: SynthesisConfig, seeds: Sequence[int], theta: Params | None) -> Groups:
    """Verify the valid practice problems of each target, those of target i with random numbers from `seeds[i]`.

    Raises:
        ConfigError: Programs cannot be run safely on this machine.
    """
    places = [(b, j) for b, group in enumerate(groups) for j, e in enumerate(group) if e.valid and not e.attempt]
    examples = [groups[b][j] for b, j in places]
    if not places:
        return groups
    if lm.kind == CODE:
        found = _by_tests(examples)
    else:
        writer = theta if config.writer == "theta" else None
        found = _by_agreement(lm, examples, config, [derive(seeds[b], "agreement", j) for b, j in places], writer)
    changed = dict(zip(places, found, strict=True))
    return [tuple(changed.get((b, j), e) for j, e in enumerate(group)) for b, group in enumerate(groups)]


def _by_tests(examples: Sequence[Example]) -> list[Example]:
    tests = [asserted.tests_in(e.problem, e.solution) for e in examples]
    with ThreadPoolExecutor(max_workers=POOL.size) as threads:
        verdicts = list(threads.map(asserted.check, (e.solution for e in examples), tests))
    return [_tested(e, len(own), verdict) for e, own, verdict in zip(examples, tests, verdicts, strict=True)]


def _tested(example: Example, tests: int, verdict: Verdict) -> Example:
    if not tests:
        return dataclasses.replace(example, rejected=UNTESTED)
    if verdict.correct is not True:
        return dataclasses.replace(example, rejected=f"{FAILED}: {verdict.reason}")
    return dataclasses.replace(example, note=_joined(example.note, f"passed its {tests} test{'s' * (tests != 1)}"))


def _by_agreement(
    lm: LM, examples: Sequence[Example], config: SynthesisConfig, seeds: Sequence[int], writer: Params | None
) -> list[Example]:
    k = config.verify.solutions
    prompts = [lm.solve_prompt(example.problem) for example in examples for _ in range(k)]
    row_seeds = [derive(seed, i) for seed in seeds for i in range(k)]
    samples = lm.sample(prompts, config.verify.sampling, row_seeds, writer)
    limit, verifier = min(config.max_example_tokens, lm.context), _VERIFIER.get(lm.kind, "exact")
    found: list[Example] = []
    for i, example in enumerate(examples):
        voted = _voted(example, samples[i * k : (i + 1) * k], config.verify, verifier)
        too_long = voted.resolved and voted.valid and lm.example_tokens(voted.problem, voted.solution) > limit
        found.append(dataclasses.replace(voted, rejected=TOO_LONG) if too_long else voted)
    return found


def _voted(example: Example, samples: Sequence[Sample], config: VerifyConfig, verifier: str) -> Example:
    """Return the example with the solution that the vote chose, or rejected. Unfinished texts have no vote."""
    texts = [example.solution, *(sample.text.strip() if sample.finished else "" for sample in samples)]
    answers = ballots(texts, verifier)
    tally = Counter(answer for answer in answers if answer is not None)
    # Of equally frequent answers, `max` takes the one seen first, and the written solution comes first.
    answer = max(tally, key=lambda one: tally[one], default=None)
    share = tally[answer] / len(texts) if answer is not None else 0.0
    place = answers.index(answer) if answer is not None else 0
    example = dataclasses.replace(
        example, agreement=share, verification_tokens=sum(len(sample.tokens) for sample in samples)
    )
    if answer is None or share < config.least_share:
        return dataclasses.replace(example, rejected=DISAGREED)
    note = _joined(example.note, f"{tally[answer]} of {len(texts)} solutions agree")
    if place == 0:
        return dataclasses.replace(example, note=note)
    return dataclasses.replace(example, solution=texts[place], resolved=True, note=f"{note}, the written one does not")


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
