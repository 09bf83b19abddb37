"""A problem -> candidate practice Examples: `y_i ~ pi_theta(. | synthesis prompt of T)`, parsed, or rejected and why.

Source: arXiv 2603.03524, section on self-synthesis. Only the problem's own text is read, never its gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.config import SynthesisConfig
from mass.seeds import derive
from mass.synthesis.reading import Reading, read
from mass.types import Example, Params, Sample

if TYPE_CHECKING:
    from mass.lm import LM


def synthesise(
    lm: LM, problems: Sequence[str], config: SynthesisConfig, seeds: Sequence[int], theta: Params | None
) -> list[tuple[Example, ...]]:
    """`config.examples` candidates for each problem, sampled side by side with the shared adapter `theta`.

    Those of problem i are a function of the problem, `seeds[i]` and `theta`.
    """
    m = config.examples
    prompts = [lm.synthesis_prompt(problem) for problem in problems]
    rows = [prompt for prompt in prompts for _ in range(m)]
    row_seeds = [derive(seed, "synthesis", j) for seed in seeds for j in range(m)]
    samples = lm.sample(rows, config.sampling, row_seeds, theta if config.writer == "theta" else None)
    return [judge(lm, problem, samples[i * m : (i + 1) * m], config) for i, problem in enumerate(problems)]


def judge(lm: LM, target: str, samples: Sequence[Sample], config: SynthesisConfig) -> tuple[Example, ...]:
    """Parse one problem's samples and say of each why it is not used, if it is not."""
    examples: list[Example] = []
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        found = read(sample.text, lm.prompts.example)
        key = (_normal(found.problem), _normal(found.solution))
        rejected = _why_rejected(lm, target, sample, found, key in seen, config)
        if not rejected:
            seen.add(key)
        note = f"the first of {found.also + 1} problems" if found.also and not rejected else ""
        examples.append(Example(found.problem, found.solution, sample.text, sample.tokens, rejected, note=note))
    return tuple(examples)


def _why_rejected(lm: LM, target: str, sample: Sample, found: Reading, repeated: bool, config: SynthesisConfig) -> str:
    if not sample.finished and not found.closed:
        return "unfinished"
    if found.reason:
        return f"unparsed: {found.reason}"
    if repeated:
        return "repeat"
    if not config.allow_copies and _normal(found.problem) == _normal(target):
        return "copy"
    limit = min(config.max_example_tokens, lm.context)
    return "too long" if lm.example_tokens(found.problem, found.solution) > limit else ""


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
