"""Write practice examples for a problem: sample `y_i ~ pi_theta(. | synthesis prompt of T)`, and parse or reject each.

Source: arXiv 2603.03524, section on self-synthesis. Only the problem's own text is read, never its gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.adaptation.synthesis.completion import with_solutions
from mass.adaptation.synthesis.reading import read
from mass.adaptation.synthesis.reasons import COPY, REPEAT, TOO_LONG, UNFINISHED, UNPARSED
from mass.adaptation.synthesis.result import Reading
from mass.adaptation.synthesis.verification import verified
from mass.config import SynthesisConfig
from mass.seeds import derive
from mass.timing import Clock
from mass.types import Example, Groups, Params, Sample

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
    """Sample `config.examples` candidates for each problem: practice problems first, then attempts at the problem.

    All are sampled side by side with the shared adapter `theta` (None for the plain base). The candidates of problem i
    are a function of the problem, `seeds[i]` and `theta`.
    """
    m = config.examples
    rows: list[list[int]] = []
    for problem in problems:
        rows += [lm.synthesis_prompt(problem)] * config.written + [lm.solve_prompt(problem)] * config.attempts
    row_seeds = [derive(seed, "synthesis", j) for seed in seeds for j in range(m)]
    writer = theta if config.writer == "theta" else None
    samples = lm.writing().sample(rows, config.sampling, row_seeds, writer, with_logprobs=with_logprobs)
    # A completed sample has no log-probabilities of its own, so a training that needs them leaves samples as they are.
    if not with_logprobs:
        samples = with_solutions(lm, rows, samples, config.sampling, row_seeds, writer)
    return [judge(lm, problem, samples[i * m : (i + 1) * m], config) for i, problem in enumerate(problems)]


def practice_for(
    lm: LM,
    problems: Sequence[str],
    config: SynthesisConfig,
    seeds: Sequence[int],
    theta: Params | None,
    clock: Clock,
    *,
    with_logprobs: bool = False,
) -> Groups:
    """Write practice for each problem (`synthesise`) and, if `config.verify` says so, verify it; both are timed."""
    with clock.stage("synthesis"):
        groups: Groups = synthesise(lm, problems, config, seeds, theta, with_logprobs=with_logprobs)
    if not config.verify.enabled:
        return groups
    with clock.stage("verification"):
        return verified(lm, groups, config, seeds, theta)


def written_tokens(examples: Sequence[Example]) -> dict[str, int]:
    """Return the tokens that were generated for the practice of a problem, by stage."""
    tokens = {"synthesis": sum(len(e.tokens) for e in examples)}
    verification = sum(e.verification_tokens for e in examples)
    return {**tokens, "verification": verification} if verification else tokens


def judge(lm: LM, target: str, samples: Sequence[Sample], config: SynthesisConfig) -> tuple[Example, ...]:
    """Read one problem's samples as examples, each with the reason for its rejection if it cannot be used."""
    written = _judge_written(lm, target, samples[: config.written], config)
    return (*written, *(_judge_attempt(lm, target, sample, config) for sample in samples[config.written :]))


def _judge_attempt(lm: LM, target: str, sample: Sample, config: SynthesisConfig) -> Example:
    """Read an attempt at the problem itself.

    Attempts may repeat each other: how often the model gives an answer is part of what practice on them learns.
    """
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
    """Read the practice problems that the model wrote."""
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
    """Return the reason why an example cannot be used; empty for a valid one."""
    if not sample.finished and not found.closed:  # a text that was cut off after its first example still has that one
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
    """Return `TOO_LONG` for an example beyond the model's context or the configured length; empty otherwise."""
    limit = min(config.max_example_tokens, lm.context)
    return TOO_LONG if lm.example_tokens(problem, solution) > limit else ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
