"""A problem -> candidate practice Examples: `y_i ~ pi_theta(. | synthesis prompt of T)`, parsed, or rejected and why.

Source: arXiv 2603.03524, section on self-synthesis. Only the problem's own text is read, never its gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.adaptation.synthesis.completion import with_solutions
from mass.adaptation.synthesis.reading import read
from mass.adaptation.synthesis.reasons import COPY, REPEAT, TOO_LONG, UNFINISHED, UNPARSED
from mass.adaptation.synthesis.result import Reading
from mass.config import SynthesisConfig
from mass.seeds import derive
from mass.types import Example, Params, Sample

if TYPE_CHECKING:
    from mass.lm import LM


def synthesise(
    lm: LM,
    problems: Sequence[str],
    config: SynthesisConfig,
    seeds: Sequence[int],
    theta: Params | None,
    *,
    with_logprobs: bool = False,
) -> list[tuple[Example, ...]]:
    """`config.examples` candidates for each problem, sampled side by side with the shared adapter `theta`: practice
    problems first, then attempts at the problem itself.

    Those of problem i are a function of the problem, `seeds[i]` and `theta`.
    """
    m = config.examples
    rows: list[list[int]] = []
    for problem in problems:
        rows += [lm.synthesis_prompt(problem)] * config.written + [lm.solve_prompt(problem)] * config.attempts
    row_seeds = [derive(seed, "synthesis", j) for seed in seeds for j in range(m)]
    writer = theta if config.writer == "theta" else None
    samples = lm.writing().sample(rows, config.sampling, row_seeds, writer, with_logprobs=with_logprobs)
    if not with_logprobs:
        samples = with_solutions(lm, rows, samples, config.sampling, row_seeds, writer)
    return [judge(lm, problem, samples[i * m : (i + 1) * m], config) for i, problem in enumerate(problems)]


def judge(lm: LM, target: str, samples: Sequence[Sample], config: SynthesisConfig) -> tuple[Example, ...]:
    """Read one problem's samples and say of each why it is not used, if it is not."""
    written = _judge_written(lm, target, samples[: config.written], config)
    return (*written, *(_judge_attempt(lm, target, sample, config) for sample in samples[config.written :]))


def _judge_attempt(lm: LM, target: str, sample: Sample, config: SynthesisConfig) -> Example:
    """Attempts may repeat each other: so many times is what the model thinks of an answer."""
    solution = sample.text.strip()
    if not sample.finished:
        rejected = UNFINISHED
    elif not solution:
        rejected = f"{UNPARSED}: nothing was written"
    else:
        scored = sum(map(len, lm.attempt_row(target, solution)))
        rejected = TOO_LONG if scored > lm.context else _too_long(lm, target, solution, config)
    note = "an attempt at the problem itself"
    return Example(
        target, solution, sample.text, sample.tokens, rejected, attempt=True, note=note, logprobs=sample.logprobs
    )


def _judge_written(lm: LM, target: str, samples: Sequence[Sample], config: SynthesisConfig) -> tuple[Example, ...]:
    examples: list[Example] = []
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        found = read(sample.text, lm.prompts.form, opening=lm.prompts.opens)
        key = (_normal(found.problem), _normal(found.solution))
        rejected = _why_rejected(lm, target, sample, found, key in seen, config)
        if not rejected:
            seen.add(key)
        note = f"the first of {found.also + 1} problems" if found.also and not rejected else ""
        examples.append(
            Example(
                found.problem, found.solution, sample.text, sample.tokens, rejected, note=note, logprobs=sample.logprobs
            )
        )
    return tuple(examples)


def _why_rejected(lm: LM, target: str, sample: Sample, found: Reading, repeated: bool, config: SynthesisConfig) -> str:
    if not sample.finished and not found.closed:
        return UNFINISHED
    if found.reason:
        return f"{UNPARSED}: {found.reason}"
    if repeated:
        return REPEAT
    if not config.allow_copies and _normal(found.problem) == _normal(target):
        return COPY
    if _normal(found.problem) == _normal(lm.prompts.shown_problem):
        return f"{COPY} of the example in the prompt"
    return _too_long(lm, found.problem, found.solution, config)


def _too_long(lm: LM, problem: str, solution: str, config: SynthesisConfig) -> str:
    """Why the inner loop cannot learn it, or may not; empty where it can."""
    limit = min(config.max_example_tokens, lm.context)
    return TOO_LONG if lm.example_tokens(problem, solution) > limit else ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
